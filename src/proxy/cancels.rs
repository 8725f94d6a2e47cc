//! Cancel requests: a budget of their own, so that a storm of them takes nothing from logins; and
//! the way to the peers, where several pgwards listen at one address and a request comes to another
//! one than its client.
//!
//! The process id or the key names the node (`session::directory`), else the client was told its
//! server's own process id and has a short key: then all peers are asked, at a bounded rate. What
//! is passed on carries a mark and is never passed on again, so that nothing goes round.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::Proxy;
use crate::config::{Config, Peer};
use crate::net::Stream;
use crate::route::refusals;
use crate::server::login;
use crate::session::Services;
use crate::session::directory::{CancelOutcome, node_of};
use crate::session::login::{Door, Hello, hello};
use crate::shard_map::Address;

/// How long a cancel request may take, its wait for a place included.
const CANCEL_WAIT: Duration = Duration::from_secs(10);
/// Cancels that are dealt with at once.
const UNDER_WAY_MAX: usize = 256;
/// Cancels that may wait for that; more are dropped.
const WAITING_MAX: usize = 4_096;
/// Cancels a second for which all peers are asked, and as many at once after a pause; more are
/// dropped.
const ASKS_PER_S: f64 = 100.0;
/// Ahead of the key of a cancel that comes from a peer: the one hop that it may go.
const FORWARDED: [u8; 8] = *b"\0pgward\x01";

/// See the module.
#[derive(Debug)]
pub(super) struct Cancels {
    places: Semaphore,
    present: AtomicUsize,
    asks: Mutex<Allowance>,
}

/// Where a cancel whose client is not here has to go.
#[derive(Debug, PartialEq)]
enum Onward<'a> {
    /// Nowhere: it has no other place, or has come from a peer.
    Nowhere,
    /// To the peer that its key names.
    One(&'a Peer),
    /// The key names nobody.
    All,
}

/// A rate with room for a burst of one second.
#[derive(Debug)]
struct Allowance {
    left: f64,
    at: Instant,
}

impl Cancels {
    pub(super) fn new() -> Self {
        Self {
            places: Semaphore::new(UNDER_WAY_MAX),
            present: AtomicUsize::new(0),
            asks: Mutex::new(Allowance { left: ASKS_PER_S, at: Instant::now() }),
        }
    }

    /// Deals with a cancel request; when it returns, the server has seen it, or nobody wants it.
    pub(super) async fn on_request(&self, services: &Services, pid: i32, key: &[u8]) {
        let count = self.present.fetch_add(1, Ordering::AcqRel);
        let _present = Present(&self.present);
        if count >= UNDER_WAY_MAX + WAITING_MAX {
            tracing::warn!("too many cancel requests: one is dropped");
            return;
        }
        let work = async {
            let Ok(_place) = self.places.acquire().await else { return };
            self.deal(services, pid, key).await;
        };
        drop(tokio::time::timeout(CANCEL_WAIT, work).await);
    }

    async fn deal(&self, services: &Services, pid: i32, key: &[u8]) {
        let forwarded = key.strip_prefix(&FORWARDED);
        let own = forwarded.unwrap_or(key);
        let outcome = services.directory.cancel(pid, own, CANCEL_WAIT).await;
        if outcome == CancelOutcome::Here {
            return;
        }
        let config = services.config.load_full();
        match onward(&config, pid, key) {
            Onward::Nowhere => {}
            Onward::One(peer) => forward(peer, pid, key).await,
            Onward::All => {
                let is_allowed = {
                    let mut asks = self.asks.lock().unwrap_or_else(|p| p.into_inner());
                    asks.take(Instant::now())
                };
                if !is_allowed {
                    tracing::warn!("too many cancels that may be any peer's: one is dropped");
                    return;
                }
                let mut asked = tokio::task::JoinSet::new();
                let peers: Vec<Peer> = others(&config).cloned().collect();
                for peer in peers {
                    let key = key.to_vec();
                    asked.spawn(async move { forward(&peer, pid, &key).await });
                }
                asked.join_all().await;
            }
        }
    }
}

/// Takes the cancels that peers pass on, and nothing else, at an address of this process alone.
pub(super) async fn serve_peers(proxy: Arc<Proxy>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let proxy = proxy.clone();
                tokio::spawn(async move { proxy.serve_peer(stream.into(), peer).await });
            }
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

impl Proxy {
    async fn serve_peer(&self, stream: Stream, peer: SocketAddr) {
        let config = self.services.config.load_full();
        let (limits, now) = ((&config.listen).into(), std::time::Instant::now());
        let Some(under_way) = self.logins.enter(Some(peer.ip()), limits, now) else { return };
        let users = self.services.users.load_full();
        let door = Door {
            users: &users,
            lookup: None,
            database: "",
            refusal: Some(refusals::cancels_only()),
            reserved_for: None,
            tls: None,
        };
        let opened = Box::pin(hello(stream, &door, Instant::now() + CANCEL_WAIT)).await;
        if let Ok(Hello::Cancel { stream, pid, key }) = opened {
            drop(under_way);
            self.cancels.on_request(&self.services, pid, &key).await;
            drop(stream);
        }
    }
}

/// All peers but this one.
fn others(config: &Config) -> impl Iterator<Item = &Peer> {
    config.peer.iter().filter(|peer| peer.id != config.listen.peer_id)
}

fn onward<'a>(config: &'a Config, pid: i32, key: &[u8]) -> Onward<'a> {
    if key.starts_with(&FORWARDED) || others(config).next().is_none() {
        return Onward::Nowhere;
    }
    match node_of(pid, key) {
        None => Onward::All,
        Some(node) => match others(config).find(|peer| peer.id == node) {
            Some(peer) => Onward::One(peer),
            // This one's own, whose client has gone, or nobody's.
            None => Onward::Nowhere,
        },
    }
}

async fn forward(peer: &Peer, pid: i32, key: &[u8]) {
    let address = Address { host: peer.host.clone(), port: peer.port };
    let marked = [&FORWARDED, key].concat();
    if login::send_cancel_to(&address, pid, &marked, CANCEL_WAIT).await.is_err() {
        tracing::info!(peer = peer.id, "a cancel could not be passed on");
    }
}

impl Allowance {
    fn take(&mut self, now: Instant) -> bool {
        let earned = now.saturating_duration_since(self.at).as_secs_f64() * ASKS_PER_S;
        self.left = (self.left + earned).min(ASKS_PER_S);
        self.at = now;
        let is_allowed = self.left >= 1.0;
        if is_allowed {
            self.left -= 1.0;
        }
        is_allowed
    }
}

struct Present<'a>(&'a AtomicUsize);

impl Drop for Present<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::directory::{Directory, Newcomer};

    fn config(peer_id: u16, peers: &[u16]) -> Config {
        let mut config = Config::default();
        config.listen.peer_id = peer_id;
        let peer = |id: &u16| Peer { id: *id, host: format!("ward{id}"), port: 6432 };
        config.peer = peers.iter().map(peer).collect();
        config
    }

    #[test]
    fn a_cancel_goes_where_its_key_says() {
        let ours = config(1, &[1, 2, 3]);
        let there = Directory::new(3).enter(Newcomer::default()).expect("a client");
        let long = Newcomer { has_long_key: true, server_pid: Some(77), ..Newcomer::default() };
        let long = Directory::new(2).enter(long).expect("a client");
        let here = Directory::new(1).enter(Newcomer::default()).expect("a client");
        let stranger = Directory::new(9).enter(Newcomer::default()).expect("a client");
        for (pid, key, want) in [
            (there.pid, &*there.key, Onward::One(&ours.peer[2])),
            (long.pid, &*long.key, Onward::One(&ours.peer[1])),
            (here.pid, &*here.key, Onward::Nowhere),
            (stranger.pid, &*stranger.key, Onward::Nowhere),
            // A server's own process id.
            (4711, &[1, 2, 3, 4][..], Onward::All),
            // From a peer: no further.
            (there.pid, &[&FORWARDED[..], &there.key].concat()[..], Onward::Nowhere),
            (4711, &[&FORWARDED[..], &[1, 2, 3, 4]].concat()[..], Onward::Nowhere),
        ] {
            assert_eq!(onward(&ours, pid, key), want, "{pid} {key:?}");
        }
        let alone = config(1, &[1]);
        assert_eq!(onward(&alone, 4711, &[1, 2, 3, 4]), Onward::Nowhere);
    }

    #[test]
    fn asking_all_peers_is_bounded() {
        let start = Instant::now();
        let mut asks = Allowance { left: ASKS_PER_S, at: start };
        let allowed = (0..1_000).filter(|_| asks.take(start)).count();
        assert_eq!(allowed, ASKS_PER_S as usize);
        let later = start + Duration::from_millis(55);
        assert_eq!((0..100).filter(|_| asks.take(later)).count(), 5);
    }
}
