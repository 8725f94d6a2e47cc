//! Who is connected: SHOW CLIENTS, cancel keys, and the way to stop a session.
//!
//! A cancel may hit only what runs for its client now: the entry knows the server that the client
//! holds, and a server is not handed on while a cancel is on its way to it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::server::login;

/// Bytes of the secret key of protocol 3.0.
const KEY_BYTES: usize = 4;
/// Draws of a free process id before a login is refused.
const PID_DRAWS_MAX: usize = 100;

/// All clients.
#[derive(Debug, Default)]
pub struct Directory {
    clients: Mutex<HashMap<i32, Arc<Client>, foldhash::quality::RandomState>>,
}

/// One client as others see it.
#[derive(Debug)]
pub struct Client {
    /// The process id that it was told.
    pub pid: i32,
    /// Its secret key.
    pub key: [u8; KEY_BYTES],
    /// Login name.
    pub user: Arc<str>,
    /// Database.
    pub database: Arc<str>,
    /// Where it comes from.
    pub peer: Option<std::net::SocketAddr>,
    /// When it came.
    pub since: SystemTime,
    /// Its application_name at login.
    pub application: Box<str>,
    running: Mutex<Running>,
    /// Wakes a session that waits for a server, and one that is idle.
    wake: Notify,
    is_killed: AtomicBool,
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
    done: Notify,
}

impl Hold {
    /// Returns when no cancel is on its way any more. Only after [`Client::on_detach`], which lets
    /// no new one begin.
    pub async fn cancels_done(&self) {
        loop {
            let done = self.done.notified();
            if self.cancels.load(Ordering::Acquire) == 0 {
                return;
            }
            done.await;
        }
    }
}

/// Where a cancel request has to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CancelTarget {
    /// The host as the server connection reached it.
    pub peer: Option<std::net::SocketAddr>,
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
    /// A new client with a process id and key that nobody can guess. `None`: no id is free.
    pub fn enter(
        &self,
        user: &str,
        database: &str,
        application: &str,
        peer: Option<std::net::SocketAddr>,
    ) -> Option<Arc<Client>> {
        let mut clients = lock(&self.clients);
        for _ in 0..PID_DRAWS_MAX {
            let pid = rand::random_range(1..i32::MAX);
            if clients.contains_key(&pid) {
                continue;
            }
            let client = Arc::new(Client {
                pid,
                key: rand::random(),
                user: user.into(),
                database: database.into(),
                peer,
                since: SystemTime::now(),
                application: application.into(),
                running: Mutex::default(),
                wake: Notify::new(),
                is_killed: AtomicBool::new(false),
            });
            clients.insert(pid, client.clone());
            return Some(client);
        }
        None
    }

    /// It has gone.
    pub fn leave(&self, client: &Client) {
        lock(&self.clients).remove(&client.pid);
    }

    /// All clients, in no order.
    pub fn all(&self) -> Vec<Arc<Client>> {
        lock(&self.clients).values().cloned().collect()
    }

    /// Number of clients.
    pub fn len(&self) -> usize {
        lock(&self.clients).len()
    }

    /// Nobody is connected.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Cancels what runs now for the client with this id and key; nothing if the key is wrong or
    /// nothing runs. Returns when the server has seen the request, or after `timeout`.
    pub async fn cancel(&self, pid: i32, key: &[u8], timeout: Duration) {
        let Some(client) = lock(&self.clients).get(&pid).cloned() else { return };
        if is_equal(&client.key, key) {
            client.cancel(timeout).await;
        }
    }
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
        let hold = Hold { target, cancels: AtomicUsize::new(0), done: Notify::new() };
        *running = Running::On(Arc::new(hold));
        !is_cancelled
    }

    /// It gives its server back. `Some`: a cancel is on its way to that server, which must not be
    /// handed on before [`Hold::cancels_done`].
    pub fn on_detach(&self) -> Option<Arc<Hold>> {
        match std::mem::take(&mut *lock(&self.running)) {
            Running::On(hold) if hold.cancels.load(Ordering::Acquire) > 0 => Some(hold),
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

    async fn cancel(&self, timeout: Duration) {
        let hold = match &mut *lock(&self.running) {
            Running::Idle => return,
            Running::Waiting(is_cancelled) => {
                *is_cancelled = true;
                self.wake.notify_waiters();
                return;
            }
            // Under the lock: whoever detaches after this sees the cancel.
            Running::On(hold) => {
                hold.cancels.fetch_add(1, Ordering::AcqRel);
                OnItsWay(hold.clone())
            }
        };
        let target = &hold.0.target;
        let Some(peer) = target.peer else { return };
        if login::send_cancel(peer, target.pid, &target.key, timeout).await.is_err() {
            tracing::debug!(pid = target.pid, "cancel request did not reach the server");
        }
    }
}

/// Ends with its future too: a cancel that dies must not hold the server for ever.
struct OnItsWay(Arc<Hold>);

impl Drop for OnItsWay {
    fn drop(&mut self) {
        self.0.cancels.fetch_sub(1, Ordering::AcqRel);
        self.0.done.notify_waiters();
    }
}

/// Takes the same time wherever the keys differ.
fn is_equal(ours: &[u8; KEY_BYTES], theirs: &[u8]) -> bool {
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
        CancelTarget { peer: None, pid, key: Bytes::from_static(b"key!") }
    }

    #[test]
    fn ids_are_unique_and_keys_compare_whole() {
        let directory = Directory::default();
        let a = directory.enter("u", "d", "", None).unwrap();
        let b = directory.enter("u", "d", "", None).unwrap();
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
        let client = directory.enter("u", "d", "", None).unwrap();
        client.on_wait();
        directory.cancel(client.pid, b"no", Duration::from_secs(1)).await;
        assert!(!client.is_cancelled());
        directory.cancel(client.pid, &client.key, Duration::from_secs(1)).await;
        assert!(client.is_cancelled());
        assert!(!client.on_attach(target(1)));
        assert!(client.on_detach().is_none());
    }

    #[tokio::test]
    async fn a_server_is_not_handed_on_while_a_cancel_is_on_its_way() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let directory = Arc::new(Directory::default());
        let client = directory.enter("u", "d", "", None).unwrap();
        client.on_wait();
        assert!(client.on_attach(CancelTarget { peer: Some(address), ..target(7) }));
        let (pid, key) = (client.pid, client.key);
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
        done.await;
        assert_eq!(client.state(), State::Waiting);
    }
}
