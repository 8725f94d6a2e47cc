//! Crowds at the door: connections that never log in, whatever they say instead.
//!
//! Each plays from an address of its own (127.0.0.x is all this machine), against a pgward with
//! small limits. What must hold: memory stays bounded, and a good client from elsewhere gets in.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::support::raw::{Raw, packet, startup};
use crate::support::{PATIENCE, Ward, WardOptions, eventually, shards, value};

/// Connections of each crowd.
const CROWD: usize = 3_000;
/// What pgward may grow by, over what 200 logins in progress may hold (20 kB each) and the noise
/// of an allocator.
const GROWTH_BYTES: u64 = 48 << 20;

const LIMITS: WardOptions<'static> = WardOptions {
    map: None,
    config: &[
        ("listen", "max_logins = 200\nmax_logins_per_address = 100\nmax_client_conn = 20"),
        ("listen", "client_login_timeout = 600"),
    ],
};

fn from(address: [u8; 4], ward: &Ward) -> Option<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let local = SocketAddr::from((Ipv4Addr::from(address), 0));
    socket.bind(&local.into()).expect("a loopback address");
    let there = SocketAddr::from((Ipv4Addr::LOCALHOST, ward.port));
    socket.connect_timeout(&there.into(), PATIENCE).ok()?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    Some(stream)
}

/// What somebody does who does not log in.
type Act = fn(&mut TcpStream) -> std::io::Result<()>;

fn ssl_request() -> Vec<u8> {
    packet(&[&80_877_103_u32.to_be_bytes()])
}

const ACTS: [(&str, Act); 8] = [
    ("says nothing", |_| Ok(())),
    ("says one byte", |stream| stream.write_all(&[0])),
    ("says half of a startup packet", |stream| {
        let whole = startup(0x0003_0000);
        stream.write_all(&whole[..whole.len() / 2])
    }),
    ("says all but the last byte of the longest packet", |stream| {
        let body = [&0x0003_0000_u32.to_be_bytes()[..], &[b'x'; 9_991]].concat();
        stream.write_all(&packet(&[&body]))
    }),
    ("asks for TLS again and again", |stream| {
        for _ in 0..20 {
            stream.write_all(&ssl_request())?;
            if stream.read(&mut [0])? == 0 {
                break;
            }
        }
        Ok(())
    }),
    ("announces a gigabyte", |stream| stream.write_all(&[0x40, 0, 0, 0, 0, 3, 0, 0])),
    ("sends a cancel request of nobody's", |stream| {
        stream.write_all(&packet(&[&80_877_102_u32.to_be_bytes(), &[0, 0, 0, 1, 1, 2, 3, 4]]))
    }),
    ("logs in and never proves it", |stream| {
        stream.write_all(&startup(0x0003_0000))?;
        stream.read_exact(&mut [0; 5])?;
        stream.write_all(b"p\0\0\x27\0SCRAM-SHA-256\0")
    }),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_crowd_at_the_door_keeps_a_good_client_out() {
    let shards = shards();
    let ward = Ward::start(shards, &LIMITS);
    // A first client, so that what it costs to get going is spent.
    let first = ward.connect().await;
    assert_eq!(value(&first, "SELECT 1").await, "1");
    drop(first);
    for (n, (what, act)) in (1..).zip(ACTS) {
        let before = ward.memory_bytes();
        let mut crowd = Vec::new();
        for member in 0..CROWD {
            let address = [127, 1, n, (member % 8) as u8 + 1];
            let Some(mut stream) = from(address, &ward) else { continue };
            // Most are turned away, which is no error here.
            let _ = act(&mut stream);
            crowd.push(stream);
        }
        let good = ward.connect().await;
        assert_eq!(value(&good, "SELECT 1").await, "1", "{what}");
        let grown = ward.memory_bytes().saturating_sub(before);
        assert!(grown < GROWTH_BYTES, "{what}: {CROWD} of them cost {grown} bytes");
        drop(crowd);
        drop(good);
        // The places are free again.
        eventually("all places are free", async || {
            let strangers: Vec<_> = (0..100).filter_map(|_| from([127, 2, n, 1], &ward)).collect();
            let is_kept = |stream: &TcpStream| {
                stream.set_read_timeout(Some(Duration::from_millis(1))).expect("a timeout");
                let read = (&*stream).read(&mut [0]);
                read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
            };
            strangers.iter().all(is_kept)
        })
        .await;
    }
    assert!(!ward.log().contains("panicked"), "{}", ward.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_too_many_at_the_door_is_told() {
    let shards = shards();
    let ward = Ward::start(
        shards,
        &WardOptions {
            config: &[("listen", "max_logins = 8\nmax_logins_per_address = 2")],
            ..WardOptions::default()
        },
    );
    let held = [from([127, 0, 0, 9], &ward), from([127, 0, 0, 9], &ward)];
    assert!(held.iter().all(Option::is_some));
    let refused = from([127, 0, 0, 9], &ward).expect("a connection");
    let told = Raw { stream: refused }.until_closed();
    assert_eq!(told.iter().map(|message| message.sqlstate()).collect::<Vec<_>>(), ["53300"]);
    // Nobody else pays for it.
    assert_eq!(value(&ward.connect().await, "SELECT 1").await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_have_not_logged_in_are_no_clients() {
    let shards = shards();
    let ward = Ward::start(
        shards,
        &WardOptions { config: &[("listen", "max_client_conn = 2")], ..WardOptions::default() },
    );
    let strangers: Vec<_> = (0..20).filter_map(|_| from([127, 0, 0, 9], &ward)).collect();
    let (one, two) = (ward.connect().await, ward.connect().await);
    assert_eq!(value(&one, "SELECT 1").await, "1");
    let third = ward.connect_with(&ward.client_config()).await.expect_err("refused");
    assert_eq!(third.code().map(|code| code.code()), Some("53300"));
    drop((strangers, two));
    eventually("a place is free", async || ward.connect_with(&ward.client_config()).await.is_ok())
        .await;
}

/// Column `tr` of the system's table of connections says which timer runs; 02 is keep-alive.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_whose_host_is_gone_will_be_noticed() {
    let shards = shards();
    for (config, want) in [("tcp_keepidle = 30", true), ("tcp_keepalive = false", false)] {
        let options = WardOptions { config: &[("listen", config)], ..WardOptions::default() };
        let ward = Ward::start(shards, &options);
        let client = ward.connect().await;
        assert_eq!(value(&client, "SELECT 1").await, "1");
        let port = format!(":{:04X}", ward.port);
        eventually("nothing is unacknowledged", async || {
            let table = std::fs::read_to_string("/proc/net/tcp").expect("the table");
            let rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
            let ours = |row: &Vec<&str>| row.get(1).is_some_and(|local| local.ends_with(&port));
            // State 01 is established.
            let timers: Vec<String> = rows
                .filter(|row| ours(row) && row[3] == "01")
                .map(|row| row[5].to_owned())
                .collect();
            let is_watched = |timer: &String| {
                let (kind, ticks) = timer.split_once(':').expect("a timer");
                let ticks = i64::from_str_radix(ticks, 16).expect("ticks");
                kind == "02" && ticks <= 30 * 100
            };
            !timers.is_empty() && timers.iter().all(|timer| is_watched(timer) == want)
        })
        .await;
    }
}
