//! The Unix socket that clients connect to: `.s.PGSQL.<port>` and its lock file, as Postgres has them.
//!
//! A socket file outlives a process that was killed, so whether one is in use is asked of whoever
//! listens on it, and of the lock: held by the system for as long as we live, and with our process id
//! in it, which a Postgres that is about to take the same place looks for.

use std::fs::{File, Permissions};
use std::io::{self, Seek, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

/// A listening Unix socket; its files go with this value.
#[derive(Debug)]
pub struct UnixSocket {
    listener: UnixListener,
    path: PathBuf,
    lock_path: PathBuf,
    /// Locked while it is open.
    _lock: File,
}

impl UnixSocket {
    /// Listens in `directory`. A file that a dead process left is taken over; one that is in use is
    /// an error.
    pub async fn bind(directory: &Path, port: u16, mode: u32) -> io::Result<Self> {
        let path = directory.join(format!(".s.PGSQL.{port}"));
        let lock_path = directory.join(format!(".s.PGSQL.{port}.lock"));
        let mut lock =
            File::options().read(true).write(true).create(true).truncate(false).open(&lock_path)?;
        let in_use = |what: &str| io::Error::new(io::ErrorKind::AddrInUse, what.to_owned());
        lock.try_lock().map_err(|_| in_use("another process holds its lock file"))?;
        match UnixStream::connect(&path).await {
            Ok(_) => return Err(in_use("another process listens on it")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // Nobody answers: a dead process left it.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(&path)?;
            }
            Err(error) => return Err(error),
        }
        lock.set_len(0)?;
        lock.rewind()?;
        // As Postgres reads it: process id, data directory, start, port, socket directory.
        let id = std::process::id();
        write!(lock, "{id}\n{0}\n0\n{port}\n{0}\n", directory.display())?;
        let listener = UnixListener::bind(&path)?;
        std::fs::set_permissions(&path, Permissions::from_mode(mode))?;
        Ok(Self { listener, path, lock_path, _lock: lock })
    }

    /// The next client. Cancel safety: as `UnixListener::accept`.
    pub async fn accept(&self) -> io::Result<UnixStream> {
        Ok(self.listener.accept().await?.0)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        // Best effort: the next one takes over what stays. The lock is given up last.
        let _ = std::fs::remove_file(&self.path);
        let _ = std::fs::remove_file(&self.lock_path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_is_taken_over_only_from_the_dead() {
        let directory = std::env::temp_dir().join(format!("pgward-unix-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let bind = || UnixSocket::bind(&directory, 7, 0o700);
        let mode = |socket: &UnixSocket| {
            std::fs::metadata(socket.path()).unwrap().permissions().mode() & 0o777
        };
        let socket = bind().await.unwrap();
        assert_eq!(mode(&socket), 0o700);
        let id = std::process::id().to_string();
        assert!(std::fs::read_to_string(&socket.lock_path).unwrap().starts_with(&id));
        let error = bind().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "{error}");
        drop(socket);
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0, "nothing stays behind");

        // Left by one that was killed: a socket that nobody listens on, and a lock that nobody holds.
        let path = directory.join(".s.PGSQL.7");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        std::fs::write(directory.join(".s.PGSQL.7.lock"), "1\n").unwrap();
        let socket = bind().await.unwrap();
        UnixStream::connect(&path).await.unwrap();
        socket.accept().await.unwrap();
        drop(socket);

        // A server that knows nothing of our lock.
        let other = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let error = bind().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "{error}");
        drop(other);
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
