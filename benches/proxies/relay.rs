//! A plain TCP relay that parses nothing: the floor that every proxy stands on.

use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::Result;

/// Entry of the process: `LISTEN TARGET`.
pub fn run(args: &[String]) -> Result<()> {
    let [listen, target] = args else { return Err("relay: wrong arguments".into()) };
    let (listen, target) = (listen.parse()?, target.parse()?);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async move {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(listen)?;
        let listener = socket.listen(4096)?;
        tokio::spawn(accept(listener, target)).await?;
        Ok(())
    })
}

async fn accept(listener: TcpListener, target: std::net::SocketAddr) {
    loop {
        let Ok((mut client, _)) = listener.accept().await else { continue };
        tokio::spawn(async move {
            let mut server = TcpStream::connect(target).await?;
            client.set_nodelay(true)?;
            server.set_nodelay(true)?;
            tokio::io::copy_bidirectional(&mut client, &mut server).await
        });
    }
}
