//! Who is connected: SHOW CLIENTS, cancel keys, and the way to stop a session.
//!
//! A cancel may hit only what runs for its client now: the entry knows the server that the client
//! holds, and a server is not handed on while a cancel is on its way to it, nor once one was given up
//! on: that one may come yet.
//!
//! A client is told a process id of pgward's own, or that of its server where it keeps one for
//! good. Servers of different hosts may have the same, so an id alone names nobody: its key does.
//! Ids of pgward's own are 2^30 and more, which no server's is, and carry the node's number, as do
//! the keys of protocol 3.2: a cancel that reaches another pgward tells it whose it is.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::sync::Notify;

use super::pins::Pins;
use crate::net::Way;
use crate::server::login;

/// Bytes of the secret key of protocol 3.0.
pub const KEY_BYTES: usize = 4;
/// Bytes of the secret key of protocol 3.2, as Postgres's: two name the node, the rest is random.
pub const LONG_KEY_BYTES: usize = 32;
/// Highest number of a node: what a process id has room for.
pub const NODE_MAX: u16 = (1 << (30 - NODE_SHIFT)) - 1;
/// Draws of a free process id before a login is refused.
const PID_DRAWS_MAX: usize = 100;
/// Set in process ids of pgward's own. Linux has none above 2^22.
const OWN_PID: i32 = 1 << 30;
/// Bits of a process id of pgward's own below the node's number.
const NODE_SHIFT: u32 = 20;

/// All clients.
#[derive(Debug, Default)]
pub struct Directory {
    node: u16,
    clients: Mutex<Clients>,
}

#[derive(Debug, Default)]
struct Clients {
    /// By process id and number: several may have one process id.
    by_pid: BTreeMap<(i32, u64), Arc<Client>>,
    last_number: u64,
}

/// Who enters.
#[derive(Debug, Clone, Copy, Default)]
pub struct Newcomer<'a> {
    /// Login name.
    pub user: &'a str,
    /// Database.
    pub database: &'a str,
    /// Its application_name.
    pub application: &'a str,
    /// Where it comes from.
    pub peer: Option<std::net::SocketAddr>,
    /// Protocol and cipher of its TLS.
    pub tls: Option<&'a str>,
    /// It speaks protocol 3.2, and so can be given a long key.
    pub has_long_key: bool,
    /// The process id of the server that it keeps for good; `None`: one of pgward's own.
    pub server_pid: Option<i32>,
}

/// What became of a cancel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CancelOutcome {
    /// The client is here: what ran for it, if anything did, has been cancelled.
    Here,
    /// Nobody here has that id and key.
    Nobody,
}

/// One client as others see it.
#[derive(Debug)]
pub struct Client {
    /// The process id that it was told; not unique, see the module.
    pub pid: i32,
    /// Its number among the clients of this process: unique, never used again.
    pub number: u64,
    /// Its secret key: [`KEY_BYTES`] or [`LONG_KEY_BYTES`].
    pub key: Box<[u8]>,
    /// Login name.
    pub user: Arc<str>,
    /// Database.
    pub database: Arc<str>,
    /// Where it comes from.
    pub peer: Option<std::net::SocketAddr>,
    /// Protocol and cipher of its TLS.
    pub tls: Option<Box<str>>,
    /// When it came.
    pub since: SystemTime,
    /// Its application_name at login.
    pub application: Box<str>,
    running: Mutex<Running>,
    /// Wakes a session that waits for a server, and one that is idle.
    wake: Notify,
    is_killed: AtomicBool,
    /// [`Pins::bits`] of why it keeps its server.
    pins: AtomicU8,
}

/// What runs for a client.
#[derive(Debug, Default)]
enum Running {
    #[default]
    Idle,
    /// It waits for a server; `true`: and has been cancelled.
    Waiting(bool),
    /// On this server.
    On(Arc<Hold>),
}

/// A client's hold on one server, for as long as it lasts, and the cancels on their way to it.
#[derive(Debug)]
pub struct Hold {
    target: CancelTarget,
    cancels: AtomicUsize,
    /// A cancel was sent, or begun, and nobody knows when or whether it comes.
    is_in_doubt: AtomicBool,
    done: Notify,
}

/// What the cancels of a hold mean for the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancels {
    /// All have come: it may be handed on.
    Done,
    /// One may hit what runs there next: it must be closed.
    InDoubt,
}

impl Hold {
    /// Returns when no cancel is on its way any more, or was given up on; after
    /// [`Client::on_detach`] no new one begins.
    pub async fn cancels_done(&self) -> Cancels {
        loop {
            let done = self.done.notified();
            if self.cancels.load(Ordering::Acquire) == 0 {
                return match self.is_in_doubt.load(Ordering::Acquire) {
                    true => Cancels::InDoubt,
                    false => Cancels::Done,
                };
            }
            done.await;
        }
    }

    fn has_cancels(&self) -> bool {
        self.cancels.load(Ordering::Acquire) > 0 || self.is_in_doubt.load(Ordering::Acquire)
    }
}

/// Where a cancel request has to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CancelTarget {
    /// As the server connection went.
    pub way: Option<Arc<Way>>,
    /// The server's process id.
    pub pid: i32,
    /// The server's key.
    pub key: Bytes,
}

/// What SHOW CLIENTS says of a client's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Holds no server.
    Idle,
    /// Waits for one.
    Waiting,
    /// Holds one with this process id.
    Active(i32),
}

impl Directory {
    /// Nobody yet; `node` is `[listen] peer_id`, at most [`NODE_MAX`].
    pub fn new(node: u16) -> Self {
        Self { node: node.min(NODE_MAX), clients: Mutex::default() }
    }

    /// A new client with a key that nobody can guess. `None`: no process id is free.
    pub fn enter(&self, newcomer: Newcomer<'_>) -> Option<Arc<Client>> {
        let key = if newcomer.has_long_key { long_key(self.node) } else { short_key() };
        let mut clients = lock(&self.clients);
        let pid = match newcomer.server_pid {
            Some(pid) => pid,
            None => {
                let mut draws = (0..PID_DRAWS_MAX).map(|_| own_pid(self.node));
                draws.find(|pid| clients.with_pid(*pid).next().is_none())?
            }
        };
        clients.last_number += 1;
        let client = Arc::new(Client {
            pid,
            number: clients.last_number,
            key,
            user: newcomer.user.into(),
            database: newcomer.database.into(),
            peer: newcomer.peer,
            tls: newcomer.tls.map(Box::from),
            since: SystemTime::now(),
            application: newcomer.application.into(),
            running: Mutex::default(),
            wake: Notify::new(),
            is_killed: AtomicBool::new(false),
            pins: AtomicU8::new(0),
        });
        clients.by_pid.insert((pid, client.number), client.clone());
        Some(client)
    }

    /// It has gone.
    pub fn leave(&self, client: &Client) {
        lock(&self.clients).by_pid.remove(&(client.pid, client.number));
    }

    /// All clients, in no order that means anything.
    pub fn all(&self) -> Vec<Arc<Client>> {
        lock(&self.clients).by_pid.values().cloned().collect()
    }

    /// Number of clients.
    pub fn len(&self) -> usize {
        lock(&self.clients).by_pid.len()
    }

    /// Nobody is connected.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Cancels what runs now for the client with this id and key; nothing if the key is wrong or
    /// nothing runs. Returns when the server has seen the request, or after `timeout`.
    pub async fn cancel(&self, pid: i32, key: &[u8], timeout: Duration) -> CancelOutcome {
        // All keys are compared, wherever the right one is.
        let is_named = |found: Option<Arc<Client>>, client: &Arc<Client>| {
            if is_equal(&client.key, key) { Some(client.clone()) } else { found }
        };
        let found = lock(&self.clients).with_pid(pid).fold(None, is_named);
        let Some(client) = found else { return CancelOutcome::Nobody };
        client.cancel(timeout).await;
        CancelOutcome::Here
    }
}

impl Clients {
    fn with_pid(&self, pid: i32) -> impl Iterator<Item = &Arc<Client>> {
        self.by_pid.range((pid, 0)..=(pid, u64::MAX)).map(|(_, client)| client)
    }
}

/// The node that a cancel's id and key name; 0 is a node without a number. `None`: they do not say.
pub fn node_of(pid: i32, key: &[u8]) -> Option<u16> {
    match key {
        [high, low, rest @ ..] if rest.len() + 2 == LONG_KEY_BYTES => {
            Some(u16::from_be_bytes([*high, *low]))
        }
        _ if pid & OWN_PID != 0 && pid > 0 => u16::try_from((pid & !OWN_PID) >> NODE_SHIFT).ok(),
        _ => None,
    }
}

fn own_pid(node: u16) -> i32 {
    OWN_PID | i32::from(node) << NODE_SHIFT | rand::random_range(0..1 << NODE_SHIFT)
}

fn short_key() -> Box<[u8]> {
    Box::new(rand::random::<[u8; KEY_BYTES]>())
}

fn long_key(node: u16) -> Box<[u8]> {
    let mut key: [u8; LONG_KEY_BYTES] = rand::random();
    key[..2].copy_from_slice(&node.to_be_bytes());
    Box::new(key)
}

impl Client {
    /// Its request waits for a server.
    pub fn on_wait(&self) {
        *lock(&self.running) = Running::Waiting(false);
    }

    /// Its request was cancelled while it waited.
    pub fn is_cancelled(&self) -> bool {
        matches!(*lock(&self.running), Running::Waiting(true))
    }

    /// It holds a server. `false`: it was cancelled while it waited for it.
    pub fn on_attach(&self, target: CancelTarget) -> bool {
        let mut running = lock(&self.running);
        let is_cancelled = matches!(*running, Running::Waiting(true));
        let hold = Hold {
            target,
            cancels: AtomicUsize::new(0),
            is_in_doubt: AtomicBool::new(false),
            done: Notify::new(),
        };
        *running = Running::On(Arc::new(hold));
        !is_cancelled
    }

    /// It gives its server back. `Some`: a cancel is on its way to that server, or was, and it must
    /// not be handed on before [`Hold::cancels_done`], nor unless they are.
    pub fn on_detach(&self) -> Option<Arc<Hold>> {
        match std::mem::take(&mut *lock(&self.running)) {
            Running::On(hold) if hold.has_cancels() => Some(hold),
            _ => None,
        }
    }

    /// Stops the session at the next moment at which it holds no server.
    pub fn kill(&self) {
        self.is_killed.store(true, Ordering::Release);
        self.wake.notify_waiters();
    }

    /// [`Self::kill`] was called.
    pub fn is_killed(&self) -> bool {
        self.is_killed.load(Ordering::Acquire)
    }

    /// Why it keeps its server now.
    pub fn set_pins(&self, pins: Pins) {
        self.pins.store(pins.bits(), Ordering::Relaxed);
    }

    /// Why it keeps its server.
    pub fn pins(&self) -> Pins {
        Pins::from_bits(self.pins.load(Ordering::Relaxed))
    }

    /// Something happened that a waiting session should look at.
    pub fn woken(&self) -> tokio::sync::futures::Notified<'_> {
        self.wake.notified()
    }

    /// For SHOW CLIENTS.
    pub fn state(&self) -> State {
        match &*lock(&self.running) {
            Running::Idle => State::Idle,
            Running::Waiting(_) => State::Waiting,
            Running::On(hold) => State::Active(hold.target.pid),
        }
    }

    /// Returns when no cancel is on its way to the server that it holds. One that was given up on
    /// can hit only the client's own then, until it detaches.
    pub async fn cancels_done(&self) {
        let hold = match &*lock(&self.running) {
            Running::On(hold) => hold.clone(),
            _ => return,
        };
        let _: Cancels = hold.cancels_done().await;
    }

    /// Cancels what runs now for a reason of pgward's own, without waiting for it.
    pub fn cancel_soon(&self, timeout: Duration) {
        if let Some(on_its_way) = self.begin_cancel() {
            tokio::spawn(on_its_way.deliver(timeout));
        }
    }

    /// Cancels what runs now, and no other client's query: see [`Directory::cancel`].
    pub async fn cancel(&self, timeout: Duration) {
        if let Some(on_its_way) = self.begin_cancel() {
            on_its_way.deliver(timeout).await;
        }
    }

    fn begin_cancel(&self) -> Option<OnItsWay> {
        match &mut *lock(&self.running) {
            Running::Idle => None,
            Running::Waiting(is_cancelled) => {
                *is_cancelled = true;
                self.wake.notify_waiters();
                None
            }
            // Under the lock: whoever detaches after this sees the cancel.
            Running::On(hold) => {
                hold.cancels.fetch_add(1, Ordering::AcqRel);
                Some(OnItsWay { hold: hold.clone(), has_come: false })
            }
        }
    }
}

/// Ends with its future too: a cancel that dies must not hold the server for ever.
struct OnItsWay {
    hold: Arc<Hold>,
    /// The server has seen it, or nothing was sent.
    has_come: bool,
}

impl OnItsWay {
    async fn deliver(mut self, timeout: Duration) {
        let target = &self.hold.target;
        self.has_come = match &target.way {
            None => true,
            Some(way) => login::send_cancel(way, target.pid, &target.key, timeout).await.is_ok(),
        };
        if !self.has_come {
            tracing::debug!(pid = target.pid, "a cancel request may not have reached the server");
        }
    }
}

impl Drop for OnItsWay {
    fn drop(&mut self) {
        if !self.has_come {
            self.hold.is_in_doubt.store(true, Ordering::Release);
        }
        self.hold.cancels.fetch_sub(1, Ordering::AcqRel);
        self.hold.done.notify_waiters();
    }
}

/// Takes the same time wherever the keys differ.
fn is_equal(ours: &[u8], theirs: &[u8]) -> bool {
    theirs.len() == ours.len()
        && ours.iter().zip(theirs).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(pid: i32) -> CancelTarget {
        CancelTarget { way: None, pid, key: Bytes::from_static(b"key!") }
    }

    #[test]
    fn ids_are_unique_and_keys_compare_whole() {
        let directory = Directory::default();
        let a = directory.enter(Newcomer::default()).unwrap();
        let b = directory.enter(Newcomer::default()).unwrap();
        assert_ne!(a.pid, b.pid);
        assert!(is_equal(&a.key, &a.key));
        assert!(!is_equal(&a.key, &a.key[..3]));
        assert!(!is_equal(&[1, 2, 3, 4], &[1, 2, 3, 5]));
        directory.leave(&a);
        assert_eq!(directory.len(), 1);
    }

    #[tokio::test]
    async fn a_cancel_with_the_wrong_key_or_while_idle_does_nothing() {
        let directory = Directory::default();
        let client = directory.enter(Newcomer::default()).unwrap();
        client.on_wait();
        directory.cancel(client.pid, b"no", Duration::from_secs(1)).await;
        assert!(!client.is_cancelled());
        directory.cancel(client.pid, &client.key, Duration::from_secs(1)).await;
        assert!(client.is_cancelled());
        assert!(!client.on_attach(target(1)));
        assert!(client.on_detach().is_none());
    }

    #[tokio::test]
    async fn clients_of_one_process_id_are_told_apart_by_their_keys() {
        let directory = Directory::default();
        let newcomer = Newcomer { server_pid: Some(4711), ..Newcomer::default() };
        let clients = [(); 3].map(|()| directory.enter(newcomer).unwrap());
        for client in &clients {
            assert_eq!(client.pid, 4711);
            client.on_wait();
        }
        let key = clients[1].key.clone();
        let outcome = directory.cancel(4711, &key, Duration::from_secs(1)).await;
        assert_eq!(outcome, CancelOutcome::Here);
        assert_eq!(clients.each_ref().map(|c| c.is_cancelled()), [false, true, false]);
        directory.leave(&clients[1]);
        let outcome = directory.cancel(4711, &key, Duration::from_secs(1)).await;
        assert_eq!((outcome, directory.len()), (CancelOutcome::Nobody, 2));
    }

    #[test]
    fn own_ids_and_long_keys_name_their_node() {
        for node in [0, 1, 7, NODE_MAX] {
            let directory = Directory::new(node);
            let short = directory.enter(Newcomer::default()).unwrap();
            assert!(short.pid > 0 && short.key.len() == KEY_BYTES);
            assert_eq!(node_of(short.pid, &short.key), Some(node));
            let long = Newcomer { has_long_key: true, server_pid: Some(99), ..Newcomer::default() };
            let long = directory.enter(long).unwrap();
            assert_eq!(
                (node_of(long.pid, &long.key), long.key.len()),
                (Some(node), LONG_KEY_BYTES)
            );
        }
        assert_eq!(node_of(4_194_303, &[1, 2, 3, 4]), None, "a server's own id says nothing");
        assert_eq!(node_of(-1, &[1, 2, 3, 4]), None);
    }

    #[tokio::test]
    async fn a_server_is_not_handed_on_while_a_cancel_is_on_its_way() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let directory = Arc::new(Directory::default());
        let client = directory.enter(Newcomer::default()).unwrap();
        client.on_wait();
        assert!(
            client
                .on_attach(CancelTarget { way: Some(Arc::new(Way::plain(address))), ..target(7) })
        );
        let (pid, key) = (client.pid, client.key.clone());
        let sender = directory.clone();
        let cancel = tokio::spawn(async move {
            sender.cancel(pid, &key, Duration::from_secs(30)).await;
        });
        // The request has arrived, and the "server" has not closed the connection yet.
        let (socket, _) = listener.accept().await.unwrap();
        let hold = client.on_detach().expect("held back");
        // The session goes on meanwhile; that must not let the server go.
        client.on_wait();
        let mut done = std::pin::pin!(hold.cancels_done());
        let polled =
            std::future::poll_fn(|cx| std::task::Poll::Ready(done.as_mut().poll(cx).is_ready()));
        assert!(!polled.await, "still on its way");
        drop(socket);
        cancel.await.unwrap();
        assert_eq!(done.await, Cancels::Done);
        assert_eq!(client.state(), State::Waiting);
    }

    #[tokio::test]
    async fn a_cancel_that_was_given_up_on_leaves_the_server_in_doubt() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let way = Some(Arc::new(Way::plain(listener.local_addr().unwrap())));
        let directory = Directory::default();
        let client = directory.enter(Newcomer::default()).unwrap();
        let key = client.key.clone();
        for is_ended in [false, true] {
            client.on_attach(CancelTarget { way: way.clone(), ..target(7) });
            // Nobody accepts it, which is no proof that nobody will.
            let limit = Duration::from_millis(20);
            let cancel =
                directory.cancel(client.pid, &key, if is_ended { limit * 100 } else { limit });
            if is_ended {
                drop(tokio::time::timeout(limit, cancel).await);
            } else {
                cancel.await;
            }
            let hold = client.on_detach().expect("held back");
            assert_eq!(hold.cancels_done().await, Cancels::InDoubt);
        }
        client.on_attach(target(7));
        directory.cancel(client.pid, &key, Duration::from_secs(1)).await;
        assert!(client.on_detach().is_none(), "another server, and nothing was sent to it");
    }
}
