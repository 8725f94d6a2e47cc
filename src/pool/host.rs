//! The pool of one (host, database, server user): gate, idle connections, last failure.
//!
//! bb8 keeps the idle connections (last in, first out), closes those that idle or live too long and keeps
//! `min_pool_size` of them; the [`Gate`] is the limit and the queue. A connection is made by
//! `dedicated_connection`, so that the caller learns why it failed, and added to bb8 when it comes
//! back clean (`crates.md`: bb8's own `get` hides connect errors and starves waiters).

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::gate::{Gate, Permit};
use crate::auth::users::ServerLimits;
use crate::net::{Buffer, Stream};
use crate::server::ServerConn;
use crate::server::login::{self, ConnectError, Target};

/// Limits of a pool, from `[pool]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Permits.
    pub size: usize,
    /// Idle connections kept.
    pub min_idle: usize,
    /// Share of one hospital while others wait.
    pub hospital_share: f64,
    /// Requests that may wait.
    pub waiting_max: usize,
    /// Age at which a connection is closed when it comes back.
    pub lifetime: Duration,
    /// Idle time after which it is closed.
    pub idle_timeout: Duration,
    /// Time for connect and login.
    pub connect_timeout: Duration,
    /// Time for which a failed connect is answered from memory.
    pub login_retry: Duration,
    /// Permits beyond `size` for a queue that has waited for `reserve_after`.
    pub reserve: usize,
    /// Zero: the reserve is never used.
    pub reserve_after: Duration,
    /// Connections to the database, of all pools; 0: no limit.
    pub database_connections_max: usize,
    /// Connections of the server user, of all pools; 0: no limit.
    pub user_connections_max: usize,
}

impl Limits {
    /// With what the users file says of the server user.
    pub fn of(&self, own: &ServerLimits) -> Self {
        Self {
            size: own.pool_size.unwrap_or(self.size),
            reserve: own.reserve_pool_size.unwrap_or(self.reserve),
            user_connections_max: own.max_user_connections.unwrap_or(self.user_connections_max),
            ..self.clone()
        }
    }
}

/// The places of one connection under the limits that hold across pools.
#[derive(Debug, Default)]
pub struct Places(Vec<Permit>);

/// Counters of a pool's connections, outliving them.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections open, idle or borrowed.
    pub open: AtomicUsize,
    /// Connections borrowed.
    pub borrowed: AtomicUsize,
    /// Connections being opened.
    pub connecting: AtomicUsize,
    /// Rises with RECONNECT: older connections are closed when they come back.
    pub epoch: AtomicU64,
    /// Connections ever made.
    pub made: AtomicU64,
}

/// One server connection as the pool holds it.
#[derive(Debug)]
pub struct Pooled {
    /// The connection.
    pub conn: ServerConn,
    /// Its line in SHOW SERVERS.
    pub entry: Arc<Entry>,
    counters: Arc<Counters>,
    expires_at: Instant,
    epoch: u64,
    /// Given back when the connection is closed: last.
    places: Places,
}

/// What SHOW SERVERS says of a connection.
#[derive(Debug)]
pub struct Entry {
    /// Process id on the server.
    pub pid: i32,
    /// When it was opened.
    pub since: std::time::SystemTime,
    /// Number of the client that holds it; 0: idle.
    pub client: AtomicU64,
    /// Times that it was borrowed.
    pub borrows: AtomicU64,
    /// Its number among the connections of its pool.
    pub id: u64,
    /// Protocol and cipher of its TLS.
    pub tls: Option<String>,
}

impl Pooled {
    /// Of the present epoch.
    fn is_current(&self) -> bool {
        self.epoch == self.counters.epoch.load(Ordering::Relaxed)
    }

    /// Clean, young, and of the present epoch.
    fn may_return(&self) -> bool {
        self.conn.is_clean()
            && self.is_current()
            && Instant::now() < self.expires_at
            && !self.places.are_awaited()
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        self.counters.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Places {
    /// Another pool can't connect before this connection is closed.
    fn are_awaited(&self) -> bool {
        self.0.iter().any(|place| place.gate().is_awaited())
    }
}

/// bb8's view of how connections are made and judged.
#[derive(Debug, Clone)]
pub struct Manager {
    target: Target,
    limits: Limits,
    counters: Arc<Counters>,
    entries: Arc<Mutex<Vec<std::sync::Weak<Entry>>>>,
    /// Limits across pools; none where there are none.
    shared: Vec<Arc<Gate>>,
}

impl bb8::ManageConnection for Manager {
    type Connection = Box<Pooled>;
    type Error = ConnectError;

    /// For bb8 itself, which keeps `min_pool_size` connections: only where there is place.
    async fn connect(&self) -> Result<Box<Pooled>, ConnectError> {
        let places = self.shared.iter().map(|gate| gate.enter_now(None)).collect::<Option<_>>();
        self.open(&self.target, Places(places.ok_or(ConnectError::NoPlace)?), true).await
    }

    async fn is_valid(&self, _conn: &mut Box<Pooled>) -> Result<(), ConnectError> {
        Ok(())
    }

    /// Called when it comes back: what is not proven clean is broken.
    fn has_broken(&self, conn: &mut Box<Pooled>) -> bool {
        !conn.may_return()
    }
}

impl Manager {
    /// `is_for_all`: sessions will want to know of it what its login doesn't tell.
    async fn open(
        &self,
        target: &Target,
        places: Places,
        is_for_all: bool,
    ) -> Result<Box<Pooled>, ConnectError> {
        let counters = self.counters.clone();
        counters.connecting.fetch_add(1, Ordering::Relaxed);
        let _connecting = scopeguard(|| {
            counters.connecting.fetch_sub(1, Ordering::Relaxed);
        });
        let epoch = counters.epoch.load(Ordering::Relaxed);
        let timeout = self.limits.connect_timeout;
        let mut conn = ServerConn::new(login::connect(target, timeout).await?);
        if is_for_all {
            match tokio::time::timeout(timeout, conn.learn()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(ConnectError::Closed),
                Err(_) => return Err(ConnectError::TimedOut),
            }
        }
        let entry = Arc::new(Entry {
            pid: conn.pid,
            since: std::time::SystemTime::now(),
            client: AtomicU64::new(0),
            borrows: AtomicU64::new(0),
            id: counters.made.fetch_add(1, Ordering::Relaxed) + 1,
            tls: conn.tls_version(),
        });
        {
            let mut entries = lock(&self.entries);
            entries.retain(|entry| entry.strong_count() > 0);
            entries.push(Arc::downgrade(&entry));
        }
        counters.open.fetch_add(1, Ordering::Relaxed);
        // Spread by up to a tenth, so that connections opened together don't close together.
        let spread = 0.9 + 0.1 * rand::random::<f64>();
        Ok(Box::new(Pooled {
            conn,
            entry,
            counters: self.counters.clone(),
            expires_at: Instant::now() + self.limits.lifetime.mul_f64(spread),
            epoch,
            places,
        }))
    }
}

/// The pool of one (host, database, server user).
#[derive(Debug)]
pub struct HostPool {
    target: Target,
    limits: Limits,
    gate: Arc<Gate>,
    idle: bb8::Pool<Manager>,
    manager: Manager,
    /// When it was first seen without use, and how many connections it had made then.
    unused: Mutex<Option<(Instant, u64)>>,
    counters: Arc<Counters>,
    entries: Arc<Mutex<Vec<std::sync::Weak<Entry>>>>,
    failure: Mutex<Option<(Instant, ConnectError)>>,
}

/// A borrowed connection without its place in the gate.
#[derive(Debug)]
enum Lease {
    /// bb8 takes it back when it drops.
    Pooled(bb8::PooledConnection<'static, Manager>),
    /// New: bb8 does not know it yet.
    New(Option<Box<Pooled>>),
}

/// A borrowed server. Returned clean by [`Borrowed::release`]; dropped, it goes back only if it is
/// provably clean, else it is closed.
#[derive(Debug)]
pub struct Borrowed {
    // Order matters: the connection goes back before the permit lets the next one in.
    lease: Lease,
    pool: Arc<HostPool>,
    _permit: Permit,
}

impl HostPool {
    /// A pool without connections; must be called within a tokio runtime.
    /// `shared`: limits across pools, in one order for all.
    pub fn new(target: Target, limits: Limits, shared: Vec<Arc<Gate>>) -> Arc<Self> {
        let counters = Arc::<Counters>::default();
        let entries = Arc::<Mutex<Vec<_>>>::default();
        let manager = Manager {
            target: target.clone(),
            limits: limits.clone(),
            counters: counters.clone(),
            entries: entries.clone(),
            shared,
        };
        let idle = bb8::Pool::builder()
            // The gate is the limit; a connection being closed must not block its successor.
            .max_size(u32::MAX)
            .min_idle(u32::try_from(limits.min_idle).ok().filter(|n| *n > 0))
            .test_on_check_out(false)
            .max_lifetime(None)
            .idle_timeout(Some(limits.idle_timeout).filter(|t| !t.is_zero()))
            .connection_timeout(Duration::from_millis(100))
            .retry_connection(false)
            .queue_strategy(bb8::QueueStrategy::Lifo)
            .build_unchecked(manager.clone());
        let gate = Gate::new(limits.size, limits.hospital_share, limits.waiting_max);
        if !limits.reserve_after.is_zero() {
            gate.set_reserve(limits.reserve, limits.reserve_after);
        }
        let (failure, unused) = (Mutex::new(None), Mutex::new(None));
        Arc::new(Self { target, limits, gate, idle, manager, unused, counters, entries, failure })
    }

    /// The limits across pools that a connection of this one needs a place under.
    pub fn shared(&self) -> &[Arc<Gate>] {
        &self.manager.shared
    }

    /// Closes one idle connection, to make room for another pool's; `false`: it has none.
    pub fn close_idle(&self) -> bool {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        if self.counters.open.load(Ordering::Relaxed)
            <= self.counters.borrowed.load(Ordering::Relaxed)
        {
            return false;
        }
        let got = std::pin::pin!(self.idle.get_owned()).poll(&mut cx);
        let Poll::Ready(Ok(mut lease)) = got else { return false };
        // bb8 closes what comes back unclean.
        lease.conn.is_opaque = true;
        true
    }

    /// For how long it has had neither connections nor requests, as far as calls of this one saw.
    pub fn unused_for(&self, now: Instant) -> Duration {
        let made = self.counters.made.load(Ordering::Relaxed);
        let load = self.gate.load(now);
        let is_unused = self.counters.open.load(Ordering::Relaxed) == 0
            && self.counters.connecting.load(Ordering::Relaxed) == 0
            && load.taken == 0
            && load.waiting == 0;
        let mut unused = lock(&self.unused);
        match *unused {
            Some((since, made_then)) if is_unused && made_then == made => now - since,
            _ => {
                *unused = is_unused.then_some((now, made));
                Duration::ZERO
            }
        }
    }

    /// Where it connects to.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Its gate.
    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// Its limits.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Its counters.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Its connections, for SHOW SERVERS.
    pub fn entries(&self) -> Vec<Arc<Entry>> {
        lock(&self.entries).iter().filter_map(std::sync::Weak::upgrade).collect()
    }

    /// An idle connection that is still there, without waiting; the permit back if there is none.
    pub fn borrow_idle(self: &Arc<Self>, permit: Permit) -> Result<Borrowed, Permit> {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        while self.counters.open.load(Ordering::Relaxed)
            > self.counters.borrowed.load(Ordering::Relaxed)
        {
            // bb8 has an idle one at once or not at all; to wait for one is the gate's business.
            let got = std::pin::pin!(self.idle.get_owned()).poll(&mut cx);
            let Poll::Ready(Ok(mut lease)) = got else { break };
            if lease.is_current() && lease.conn.is_quiet() {
                return Ok(self.borrowed(Lease::Pooled(lease), permit));
            }
            // Found broken now: bb8 closes it as it comes back.
            lease.conn.is_opaque = true;
        }
        Err(permit)
    }

    /// Why a new connection need not be tried: the last attempt failed just now.
    pub fn recent_failure(&self) -> Option<ConnectError> {
        if let Some((at, error)) = &*lock(&self.failure)
            && at.elapsed() < self.limits.login_retry
        {
            return Some(error.clone());
        }
        None
    }

    /// A new connection for the holder of `permit`, with its places under [`Self::shared`].
    pub async fn connect(
        self: &Arc<Self>,
        permit: Permit,
        places: Vec<Permit>,
    ) -> Result<Borrowed, ConnectError> {
        match self.manager.open(&self.target, Places(places), true).await {
            Ok(conn) => {
                *lock(&self.failure) = None;
                Ok(self.borrowed(Lease::New(Some(conn)), permit))
            }
            Err(error) => {
                *lock(&self.failure) = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    /// As [`Self::connect`], with further settings of the StartupMessage, for one session alone: it
    /// is closed at its end. That it fails says nothing of the pool.
    pub async fn connect_apart(
        self: &Arc<Self>,
        permit: Permit,
        places: Vec<Permit>,
        settings: &[(String, String)],
    ) -> Result<Borrowed, ConnectError> {
        let target = self.target.with_settings(settings);
        let mut conn = self.manager.open(&target, Places(places), false).await?;
        conn.conn.is_opaque = true;
        Ok(self.borrowed(Lease::New(Some(conn)), permit))
    }

    fn borrowed(self: &Arc<Self>, lease: Lease, permit: Permit) -> Borrowed {
        self.counters.borrowed.fetch_add(1, Ordering::Relaxed);
        let borrowed = Borrowed { lease, pool: self.clone(), _permit: permit };
        borrowed.entry().borrows.fetch_add(1, Ordering::Relaxed);
        borrowed
    }

    /// Existing connections are closed as they come back, new ones are made.
    pub fn reconnect(&self) {
        self.counters.epoch.fetch_add(1, Ordering::Relaxed);
    }
}

impl Borrowed {
    /// The bare connection, for a session that has it to itself and closes it; the lease keeps
    /// its place in the pool meanwhile.
    pub fn into_raw(mut self) -> (Stream, Buffer, Vec<(String, String)>, Borrowed) {
        let (stream, buffer, parameters) = self.take_raw();
        (stream, buffer, parameters, self)
    }

    /// The pool it is of.
    pub fn pool(&self) -> &Arc<HostPool> {
        &self.pool
    }

    /// Its line in SHOW SERVERS.
    pub fn entry(&self) -> &Arc<Entry> {
        match &self.lease {
            Lease::Pooled(lease) => &lease.entry,
            Lease::New(lease) => &lease.as_ref().expect("present until dropped").entry,
        }
    }
}

impl std::ops::Deref for Borrowed {
    type Target = ServerConn;
    fn deref(&self) -> &ServerConn {
        match &self.lease {
            Lease::Pooled(lease) => &lease.conn,
            Lease::New(lease) => &lease.as_ref().expect("present until dropped").conn,
        }
    }
}

impl std::ops::DerefMut for Borrowed {
    fn deref_mut(&mut self) -> &mut ServerConn {
        match &mut self.lease {
            Lease::Pooled(lease) => &mut lease.conn,
            Lease::New(lease) => &mut lease.as_mut().expect("present until dropped").conn,
        }
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        self.entry().client.store(0, Ordering::Relaxed);
        self.pool.counters.borrowed.fetch_sub(1, Ordering::Relaxed);
        if let Lease::New(lease) = &mut self.lease
            && let Some(conn) = lease.take()
            && conn.may_return()
        {
            // bb8 refuses only at its limit, which is out of reach; then the connection closes.
            drop(self.pool.idle.add(conn));
        }
    }
}

struct Guard<F: FnMut()>(F);

impl<F: FnMut()> Drop for Guard<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}

fn scopeguard<F: FnMut()>(on_drop: F) -> Guard<F> {
    Guard(on_drop)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
