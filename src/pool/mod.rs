//! Server pools: which host serves a shard and role now, and a clean connection to it.
//!
//! One pool per (host, database, server user), made on first use, behind a fair gate. The fleet
//! says which hosts are fit; this room picks among them and borrows. Sessions hold a
//! [`UserPools`], so that a checkout on the hot path looks nothing up by name.

pub mod gate;
pub mod host;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::auth::users::ServerCredentials;
use crate::config::{Consistency, ReplicaChoice};
use crate::fleet::{Fleet, ShardState};
use crate::net::tls::ServerTls;
use crate::route::{Role, refusals};
use crate::server::login::{ConnectError, Target};
use crate::shard_map::{Address, HospitalId, Shard, ShardId, ShardMap};
use crate::wire::backend::ErrorReply;
pub use gate::{Gate, Load};
pub use host::{Borrowed, HostPool, Limits};

/// How long a request waits for a shard to have a primary, before it is told that it has none.
const PRIMARY_WAIT: Duration = Duration::from_millis(500);

/// How often unused pools are looked for: a quarter of `pool_idle_timeout` within these.
const UNUSED_CHECK_MIN: Duration = Duration::from_millis(50);
const UNUSED_CHECK_MAX: Duration = Duration::from_secs(60);

/// Settings of all pools, from `[pool]` and `[routing]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Limits of a primary's pool.
    pub primary: Limits,
    /// Limits of a replica's pool.
    pub replica: Limits,
    /// How long a request may wait where nothing else is said; zero: for ever.
    pub query_wait_timeout: Duration,
    /// How long a pool may be of no use before it is forgotten; zero: for ever.
    pub pool_idle_timeout: Duration,
    /// When a read may use a replica.
    pub consistency: Consistency,
    /// For `bounded`.
    pub max_replica_lag: Duration,
    /// Choice among fresh replicas.
    pub replica_choice: ReplicaChoice,
    /// How servers are spoken to.
    pub tls: Arc<ServerTls>,
}

impl Settings {
    /// From the configuration, and what was made of its files.
    pub fn new(config: &crate::config::Config, tls: Arc<ServerTls>) -> Self {
        let pool = &config.pool;
        let limits = |size: usize| Limits {
            size,
            min_idle: pool.min_pool_size,
            hospital_share: pool.max_hospital_share,
            waiting_max: pool.max_waiting,
            lifetime: Duration::from_secs_f64(pool.server_lifetime),
            idle_timeout: Duration::from_secs_f64(pool.server_idle_timeout),
            connect_timeout: Duration::from_secs_f64(pool.server_connect_timeout),
            login_retry: Duration::from_secs_f64(pool.server_login_retry),
            reserve: pool.reserve_pool_size,
            reserve_after: Duration::from_secs_f64(pool.reserve_pool_timeout),
            database_connections_max: pool.max_db_connections,
            user_connections_max: pool.max_user_connections,
        };
        let replica_size = match pool.replica_pool_size {
            0 => pool.default_pool_size,
            size => size,
        };
        Self {
            primary: limits(pool.default_pool_size),
            replica: limits(replica_size),
            query_wait_timeout: Duration::from_secs_f64(pool.query_wait_timeout),
            pool_idle_timeout: Duration::from_secs_f64(pool.pool_idle_timeout),
            consistency: config.routing.consistency,
            max_replica_lag: Duration::from_millis(config.routing.max_replica_lag_ms),
            replica_choice: config.routing.replica_choice,
            tls,
        }
    }
}

/// Why there is no server.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// No host of the shard accepts writes.
    #[error("shard {0} has no primary")]
    NoPrimary(ShardId),
    /// Waited too long.
    #[error("no server became free in time")]
    WaitTimeout,
    /// The queue is full.
    #[error(transparent)]
    Full(#[from] gate::Full),
    /// Connect or login failed.
    #[error("connecting to shard {0} failed: {1}")]
    Connect(ShardId, ConnectError),
    /// The map has no such shard.
    #[error("no shard {0}")]
    NoShard(ShardId),
}

impl Error {
    /// What the client is told.
    pub fn to_reply(&self) -> ErrorReply {
        match self {
            Self::NoPrimary(shard) => refusals::no_primary(*shard),
            Self::WaitTimeout => refusals::query_wait_timeout(),
            Self::Full(_) => refusals::too_many_waiting(),
            Self::Connect(shard, error) => {
                refusals::could_not_connect(*shard, &error.public_words())
            }
            Self::NoShard(shard) => refusals::shard_not_in_map(*shard),
        }
    }
}

/// All pools. One per process.
pub struct Pools {
    settings: ArcSwap<Settings>,
    layout: ArcSwap<Layout>,
    users: Mutex<HashMap<String, Arc<UserPools>>>,
    /// Pools by what they are to, so that a reload keeps those that did not change.
    hosts: Mutex<HashMap<PoolKey, Arc<HostPool>>>,
    /// `max_db_connections` and `max_user_connections`.
    shared: Mutex<HashMap<SharedKey, Arc<Gate>>>,
    fleet: Arc<Fleet>,
    generation: AtomicUsize,
}

type PoolKey = (Address, String, String, bool);

/// What a limit across pools is of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum SharedKey {
    Database(Address, String),
    User(String),
}

/// The hosts of each shard, from the map.
#[derive(Debug, Default)]
struct Layout {
    shards: Vec<Shard>,
}

/// The pools of one server user: by shard, then by host.
pub struct UserPools {
    generation: usize,
    credentials: Arc<ServerCredentials>,
    shards: Vec<ShardPools>,
}

struct ShardPools {
    shard: Shard,
    state: Option<Arc<ShardState>>,
    hosts: Vec<OnceLock<Arc<HostPool>>>,
    turn: AtomicUsize,
}

/// A borrowed server, and where it is.
#[derive(Debug)]
pub struct Checkout {
    /// The connection.
    pub server: Borrowed,
    /// Its shard.
    pub shard: ShardId,
    /// The host's index in `Shard::hosts`.
    pub host: usize,
    /// What it was borrowed as: `Replica` only if it is one.
    pub role: Role,
}

/// What a request needs.
#[derive(Debug, Clone, Copy)]
pub struct Want {
    /// The shard; `None`: any that answers.
    pub shard: Option<ShardId>,
    /// Primary, or a replica if one is fresh enough.
    pub role: Role,
    /// For fairness and affinity.
    pub hospital: Option<HospitalId>,
    /// `Fleet::now` at the outcome of the last write that the read must see.
    pub written_at: u64,
}

impl UserPools {
    /// Rises whenever pools are made anew.
    pub fn generation(&self) -> usize {
        self.generation
    }
}

impl Pools {
    /// Pools for `map`; no connection is made yet.
    pub fn new(settings: Settings, map: &ShardMap, fleet: Arc<Fleet>) -> Arc<Self> {
        Arc::new(Self {
            settings: ArcSwap::from_pointee(settings),
            layout: ArcSwap::from_pointee(Layout { shards: map.shards().to_vec() }),
            users: Mutex::default(),
            hosts: Mutex::default(),
            shared: Mutex::default(),
            fleet,
            generation: AtomicUsize::new(1),
        })
    }

    /// A new map or new settings: sessions look their pools up again at their next checkout.
    /// Pools whose host, TLS and limits did not change stay; the others close as they come back.
    pub fn reload(&self, settings: Settings, map: &ShardMap) {
        let tls = settings.tls.clone();
        self.settings.store(Arc::new(settings));
        self.layout.store(Arc::new(Layout { shards: map.shards().to_vec() }));
        lock(&self.users).clear();
        let is_used = |key: &PoolKey, pool: &HostPool| {
            let of_key = |shard: &Shard| {
                shard.database == key.1
                    && shard.hosts().any(|address| *address == key.0)
                    && *tls.of(shard.id) == pool.target().tls
            };
            map.shards().iter().any(of_key)
        };
        lock(&self.hosts).retain(|key, pool| {
            let is_kept = is_used(key, pool);
            if !is_kept {
                pool.reconnect();
            }
            is_kept
        });
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Credentials may have changed: all pools of server users are made anew.
    pub fn forget_users(&self) {
        lock(&self.users).clear();
        for pool in lock(&self.hosts).drain().map(|(_, pool)| pool) {
            pool.reconnect();
        }
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// The pools of a server user.
    pub fn of_user(&self, credentials: &Arc<ServerCredentials>) -> Arc<UserPools> {
        let generation = self.generation.load(Ordering::Acquire);
        let mut users = lock(&self.users);
        if let Some(pools) = users.get(&credentials.user)
            && pools.generation == generation
            && pools.credentials == *credentials
        {
            return pools.clone();
        }
        let layout = self.layout.load();
        let shards = layout
            .shards
            .iter()
            .map(|shard| ShardPools {
                shard: shard.clone(),
                state: self.fleet.shard(shard.id),
                hosts: shard.hosts().map(|_| OnceLock::new()).collect(),
                turn: AtomicUsize::new(0),
            })
            .collect();
        let pools = Arc::new(UserPools { generation, credentials: credentials.clone(), shards });
        users.insert(credentials.user.clone(), pools.clone());
        pools
    }

    /// `pools` is still what [`Self::of_user`] would answer, but for changed credentials.
    pub fn is_current(&self, pools: &UserPools) -> bool {
        pools.generation == self.generation.load(Ordering::Acquire)
    }

    /// Every pool made so far.
    pub fn all(&self) -> Vec<Arc<HostPool>> {
        lock(&self.hosts).values().cloned().collect()
    }

    /// Every pool with the shard and host index that it serves, for the console.
    pub fn located(&self) -> Vec<(Shard, usize, Arc<HostPool>)> {
        let layout = self.layout.load();
        let pools = self.all();
        let mut located = Vec::new();
        for shard in &layout.shards {
            for (index, address) in shard.hosts().enumerate() {
                for pool in &pools {
                    let target = pool.target();
                    if target.address == *address && target.database == shard.database {
                        located.push((shard.clone(), index, pool.clone()));
                    }
                }
            }
        }
        located
    }

    /// Borrows a server for `want`. Cancel safety: a dropped checkout gives its place in the
    /// queue back, and a connection being opened is closed.
    pub async fn checkout(&self, pools: &UserPools, want: Want) -> Result<Checkout, Error> {
        let wait = self.settings.load().query_wait_timeout;
        self.checkout_within(pools, want, (!wait.is_zero()).then_some(wait)).await
    }

    /// As [`Self::checkout`], and waits in the queue no longer than `wait`; `None`: for ever.
    pub async fn checkout_within(
        &self,
        pools: &UserPools,
        want: Want,
        wait: Option<Duration>,
    ) -> Result<Checkout, Error> {
        match want.shard {
            Some(shard) => self.checkout_shard(pools, shard, want, wait).await,
            None => self.checkout_any(pools, want, wait).await,
        }
    }

    /// Forgets pools that have had neither connections nor clients for `pool_idle_timeout`, for as
    /// long as it runs.
    pub async fn forget_unused(self: Arc<Self>) {
        loop {
            let timeout = self.settings.load().pool_idle_timeout;
            // A while may be set at any time.
            let pause = if timeout.is_zero() { UNUSED_CHECK_MAX } else { timeout / 4 };
            tokio::time::sleep(pause.clamp(UNUSED_CHECK_MIN, UNUSED_CHECK_MAX)).await;
            if !timeout.is_zero() {
                self.forget_unused_now(timeout, Instant::now());
            }
        }
    }

    fn forget_unused_now(&self, timeout: Duration, now: Instant) {
        let mut hosts = lock(&self.hosts);
        let before = hosts.len();
        hosts.retain(|_, pool| {
            let is_kept = pool.unused_for(now) < timeout;
            if !is_kept {
                // Whoever has just found it gives its connection back to nobody.
                pool.reconnect();
            }
            is_kept
        });
        if hosts.len() < before {
            drop(hosts);
            lock(&self.users).clear();
            self.generation.fetch_add(1, Ordering::Release);
        }
    }

    /// As [`Self::checkout`] where nothing has to be waited for: a fit host, a permit and an idle
    /// connection are there. `None`: something is not.
    pub fn checkout_now(&self, pools: &UserPools, want: Want) -> Option<Checkout> {
        let id = want.shard?;
        let shard = pools.shards.get(usize::from(id.0))?;
        let state = shard.state.as_ref()?;
        let replica = match want.role {
            Role::Replica => self.pick_replica(&self.settings.load(), shard, state, &want),
            Role::Primary => None,
        };
        let (host, role) = match replica {
            Some(host) => (host, Role::Replica),
            None => (state.primary()?, Role::Primary),
        };
        let pool = shard.hosts[host].get()?;
        let permit = pool.gate().enter_now(want.hospital)?;
        let server = pool.borrow_idle(permit).ok()?;
        Some(Checkout { server, shard: id, host, role })
    }

    /// Any shard will do: the first that has a primary now. The same one for everybody, because
    /// what is asked of any shard is mostly its catalog, whose OIDs differ between shards.
    async fn checkout_any(
        &self,
        pools: &UserPools,
        want: Want,
        wait: Option<Duration>,
    ) -> Result<Checkout, Error> {
        let count = pools.shards.len();
        let mut last = Error::NoShard(ShardId(0));
        for pass in [true, false] {
            for step in 0..count {
                let shard = &pools.shards[step];
                let is_up = shard.state.as_ref().is_some_and(|s| s.primary().is_some());
                if pass && !is_up {
                    continue;
                }
                match self.checkout_shard(pools, shard.shard.id, want, wait).await {
                    Err(error @ (Error::NoPrimary(_) | Error::Connect(..))) => last = error,
                    outcome => return outcome,
                }
            }
        }
        Err(last)
    }

    async fn checkout_shard(
        &self,
        pools: &UserPools,
        id: ShardId,
        want: Want,
        wait: Option<Duration>,
    ) -> Result<Checkout, Error> {
        let shard = pools.shards.get(usize::from(id.0)).ok_or(Error::NoShard(id))?;
        let state = shard.state.as_ref().ok_or(Error::NoShard(id))?;
        let settings = self.settings.load();
        if want.role == Role::Replica
            && let Some(host) = self.pick_replica(&settings, shard, state, &want)
        {
            let pool = self.pool_of(&settings, pools, shard, host);
            match self.borrow(&pool, id, want.hospital, wait).await {
                Ok(server) => return Ok(Checkout { server, shard: id, host, role: Role::Replica }),
                // A replica that refuses is not chosen again until it answers; the primary can
                // always serve the read.
                Err(Error::Connect(..)) => state.report_failure(host),
                Err(error) => return Err(error),
            }
        }
        let host = primary_of(id, state).await?;
        let pool = self.pool_of(&settings, pools, shard, host);
        let outcome = self.borrow(&pool, id, want.hospital, wait).await;
        if matches!(outcome, Err(Error::Connect(..))) {
            state.report_failure(host);
        }
        Ok(Checkout { server: outcome?, shard: id, host, role: Role::Primary })
    }

    /// A new connection to `id`'s primary with further settings of the StartupMessage, for one
    /// session alone: it has its place in the pool, and is closed at its end.
    pub async fn connect_apart(
        &self,
        pools: &UserPools,
        id: ShardId,
        settings: &[(String, String)],
        wait: Option<Duration>,
    ) -> Result<Checkout, Error> {
        let shard = pools.shards.get(usize::from(id.0)).ok_or(Error::NoShard(id))?;
        let state = shard.state.as_ref().ok_or(Error::NoShard(id))?;
        let host = primary_of(id, state).await?;
        let pool = self.pool_of(&self.settings.load(), pools, shard, host);
        let deadline = wait.map(|wait| tokio::time::Instant::now() + wait);
        let permit = enter(&pool, None, deadline).await?;
        let places = self.places(&pool, deadline).await?;
        let server = pool.connect_apart(permit, places, settings).await;
        let server = server.map_err(|error| Error::Connect(id, error))?;
        Ok(Checkout { server, shard: id, host, role: Role::Primary })
    }

    fn pool_of(
        &self,
        settings: &Settings,
        pools: &UserPools,
        shard: &ShardPools,
        host: usize,
    ) -> Arc<HostPool> {
        shard.hosts[host].get_or_init(|| self.host_pool(settings, pools, shard, host)).clone()
    }

    async fn borrow(
        &self,
        pool: &Arc<HostPool>,
        shard: ShardId,
        hospital: Option<HospitalId>,
        wait: Option<Duration>,
    ) -> Result<Borrowed, Error> {
        let deadline = wait.map(|wait| tokio::time::Instant::now() + wait);
        let permit = enter(pool, hospital, deadline).await?;
        let permit = match pool.borrow_idle(permit) {
            Ok(borrowed) => return Ok(borrowed),
            Err(permit) => permit,
        };
        if let Some(error) = pool.recent_failure() {
            return Err(Error::Connect(shard, error));
        }
        let places = self.places(pool, deadline).await?;
        pool.connect(permit, places).await.map_err(|error| Error::Connect(shard, error))
    }

    /// The places of one more connection of `pool` under the limits across pools.
    async fn places(
        &self,
        pool: &HostPool,
        deadline: Option<tokio::time::Instant>,
    ) -> Result<Vec<gate::Permit>, Error> {
        // Each for itself, in the same order for all: who has one and waits for the other waits for
        // connections, which wait for nobody.
        let mut places = Vec::new();
        for gate in pool.shared() {
            places.push(match gate.enter(None)? {
                gate::Entry::Now(place) => place,
                gate::Entry::Later(place) => {
                    self.make_room(gate);
                    queue(place, None, deadline).await?
                }
            });
        }
        Ok(places)
    }

    /// Closes an idle connection that has a place under `gate`.
    fn make_room(&self, gate: &Arc<Gate>) {
        let is_under = |pool: &Arc<HostPool>| pool.shared().iter().any(|g| Arc::ptr_eq(g, gate));
        self.all().iter().filter(|pool| is_under(pool)).any(|pool| pool.close_idle());
    }

    /// The limits across pools for connections to `target`.
    fn shared_limits(&self, target: &Target, limits: &Limits) -> Vec<Arc<Gate>> {
        let database = SharedKey::Database(target.address.clone(), target.database.clone());
        let user = SharedKey::User(target.user.clone());
        let mut shared = lock(&self.shared);
        let wanted =
            [(database, limits.database_connections_max), (user, limits.user_connections_max)];
        let limited = wanted.into_iter().filter(|(_, most)| *most > 0);
        let gates = limited.map(|(key, most)| {
            let gate =
                shared.entry(key).or_insert_with(|| Gate::new(most, 1.0, limits.waiting_max));
            gate.resize(most, 1.0, limits.waiting_max);
            gate.clone()
        });
        gates.collect()
    }

    fn host_pool(
        &self,
        settings: &Settings,
        pools: &UserPools,
        shard: &ShardPools,
        host: usize,
    ) -> Arc<HostPool> {
        let is_primary = host == 0;
        let limits = if is_primary { &settings.primary } else { &settings.replica };
        let limits = &limits.of(&pools.credentials.limits);
        let address = shard.shard.hosts().nth(host).expect("host index of this shard").clone();
        let database = shard.shard.database.clone();
        let key = (address.clone(), database.clone(), pools.credentials.user.clone(), is_primary);
        let tls = settings.tls.of(shard.shard.id).clone();
        let target = Target::new(address, tls, database, &pools.credentials);
        let mut hosts = lock(&self.hosts);
        if let Some(pool) = hosts.get(&key)
            && pool.limits() == limits
            && *pool.target() == target
        {
            return pool.clone();
        }
        let shared = self.shared_limits(&target, limits);
        let pool = HostPool::new(target, limits.clone(), shared);
        if let Some(old) = hosts.insert(key, pool.clone()) {
            old.reconnect();
        }
        pool
    }

    /// A replica that is fresh as of the last write, by the configured choice.
    fn pick_replica(
        &self,
        settings: &Settings,
        shard: &ShardPools,
        state: &ShardState,
        want: &Want,
    ) -> Option<usize> {
        let as_of = match settings.consistency {
            Consistency::Primary => return None,
            Consistency::Eventual => None,
            Consistency::Bounded => {
                let lag = u64::try_from(settings.max_replica_lag.as_nanos()).unwrap_or(u64::MAX);
                Some(self.fleet.now().saturating_sub(lag))
            }
            Consistency::Session | Consistency::Hospital => Some(want.written_at),
        };
        let fresh = state.fresh_replicas(as_of);
        if fresh == 0 {
            return None;
        }
        let mut hosts = (0..shard.hosts.len()).filter(|host| fresh & (1 << host) != 0);
        match settings.replica_choice {
            ReplicaChoice::RoundRobin => {
                let turn = shard.turn.fetch_add(1, Ordering::Relaxed);
                hosts.nth(turn % fresh.count_ones() as usize)
            }
            ReplicaChoice::LeastConnections => {
                // The turn breaks ties, so that idle replicas share the load.
                let turn = shard.turn.fetch_add(1, Ordering::Relaxed);
                let count = shard.hosts.len();
                hosts.min_by_key(|host| {
                    let borrowed = shard.hosts[*host]
                        .get()
                        .map_or(0, |pool| pool.counters().borrowed.load(Ordering::Relaxed));
                    (borrowed, (host + turn) % count)
                })
            }
            ReplicaChoice::HospitalAffinity => affine_host(want.hospital, hosts.collect()),
        }
    }
}

/// The host that is the shard's primary, as soon as there is one.
async fn primary_of(id: ShardId, state: &ShardState) -> Result<usize, Error> {
    if let Some(host) = state.primary() {
        return Ok(host);
    }
    drop(tokio::time::timeout(PRIMARY_WAIT, state.wait_for_primary()).await);
    state.primary().ok_or(Error::NoPrimary(id))
}

/// A permit of `pool`.
async fn enter(
    pool: &HostPool,
    hospital: Option<HospitalId>,
    deadline: Option<tokio::time::Instant>,
) -> Result<gate::Permit, Error> {
    match pool.gate().enter(hospital)? {
        gate::Entry::Now(permit) => Ok(permit),
        gate::Entry::Later(permit) => {
            let reserve = &pool.limits().reserve_after;
            let has_reserve = pool.limits().reserve > 0 && !reserve.is_zero();
            let reserve_at = tokio::time::Instant::now() + *reserve;
            queue(permit, has_reserve.then_some((reserve_at, pool.gate())), deadline).await
        }
    }
}

/// Waits for a permit until `deadline`; at the time of `reserve` its gate may have one more.
async fn queue(
    mut permit: tokio::sync::oneshot::Receiver<gate::Permit>,
    reserve: Option<(tokio::time::Instant, &Arc<Gate>)>,
    deadline: Option<tokio::time::Instant>,
) -> Result<gate::Permit, Error> {
    if let Some((at, gate)) = reserve
        && deadline.is_none_or(|deadline| at < deadline)
    {
        match tokio::time::timeout_at(at, &mut permit).await {
            Ok(granted) => return granted.map_err(|_| Error::WaitTimeout),
            Err(_) => gate.on_reserve_due(),
        }
    }
    let granted = match deadline {
        None => permit.await,
        Some(deadline) => {
            tokio::time::timeout_at(deadline, permit).await.map_err(|_| Error::WaitTimeout)?
        }
    };
    granted.map_err(|_| Error::WaitTimeout)
}

/// The replica that a hospital's reads stay on: the hash ring of the fit ones (crate hashring).
fn affine_host(hospital: Option<HospitalId>, hosts: Vec<usize>) -> Option<usize> {
    let Some(hospital) = hospital else { return hosts.first().copied() };
    let mut ring = hashring::HashRing::new();
    for host in hosts {
        for replica in 0..40u16 {
            ring.add((host as u16, replica));
        }
    }
    ring.get(hospital.0.as_bytes()).map(|(host, _)| usize::from(*host))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
