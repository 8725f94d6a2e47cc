//! Users that the users file does not have, looked up on a shard: the answers of `auth_query`, kept
//! for a bounded time.
//!
//! Fails closed: where the question can't be asked, nobody is who it says. Names that exist and
//! names that don't are kept apart, so that made-up names push nobody out. Many logins of one name
//! ask once. What is asked, and how, is a [`Source`]'s: see `auth_query`.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quick_cache::sync::Cache;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use crate::auth::{ServerCredentials, User};

/// Users whose answers are kept, and as many names that are nobody's.
const KEPT_MAX: usize = 10_000;
/// How long it is remembered that the question could not be asked.
const FAILURE_KEPT: Duration = Duration::from_secs(1);
/// A proof that fails has its user looked up again if the answer is older: guessing passwords asks
/// the shards no more often.
const RECHECK_AFTER: Duration = Duration::from_secs(1);
/// Longest name, in bytes: Postgres would cut it, and so take it for another (NAMEDATALEN).
const NAME_BYTES_MAX: usize = 63;

/// What `auth_query` says of a name: the secret of a user. `None`: nobody of that name can log in.
pub type Row = Option<String>;

/// The question could not be asked, or its answer is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the user can't be looked up now")]
pub struct Failed;

/// Asks for a name.
pub trait Source: Send + Sync {
    /// The answer; the secret in it goes no further than a [`User`].
    fn ask<'a>(
        &'a self,
        name: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<Row, Failed>> + Send + 'a>>;
}

/// Looks users up.
pub struct Lookup {
    source: Box<dyn Source>,
    /// Whom they are on the servers; `None`: themselves.
    server: Option<Arc<ServerCredentials>>,
    kept_for: Duration,
    users: Cache<String, Answer>,
    nobody: Cache<String, Answer>,
    under_way: Mutex<HashMap<String, Arc<OnceCell<Answer>>>>,
}

impl std::fmt::Debug for Lookup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Lookup(...)")
    }
}

#[derive(Clone)]
struct Answer {
    at: Instant,
    outcome: Result<Option<Arc<User>>, Failed>,
}

impl Lookup {
    /// Asks `source`, and keeps answers for `kept_for`.
    pub fn new(
        source: Box<dyn Source>,
        server: Option<Arc<ServerCredentials>>,
        kept_for: Duration,
    ) -> Self {
        Self {
            source,
            server,
            kept_for,
            users: Cache::new(KEPT_MAX),
            nobody: Cache::new(KEPT_MAX),
            under_way: Mutex::default(),
        }
    }

    /// The user of that name. Cancel safety: the question is then asked for the next who waits.
    pub async fn find(&self, name: &str) -> Result<Option<Arc<User>>, Failed> {
        if name.len() > NAME_BYTES_MAX || name.contains('\0') {
            return Ok(None);
        }
        if let Some(answer) = self.kept(name) {
            return answer.outcome;
        }
        let flight = Flight::board(&self.under_way, name);
        flight.cell.get_or_init(|| self.ask(name)).await.outcome.clone()
    }

    /// Forgets what was said of `name`, unless it is quite new. Whether it did.
    pub fn forget(&self, name: &str) -> bool {
        let is_old = |answer: &Answer| answer.at.elapsed() >= RECHECK_AFTER;
        let forget = |cache: &Cache<String, Answer>| {
            cache.peek(name).is_some_and(|answer| is_old(&answer)) && cache.remove(name).is_some()
        };
        forget(&self.users) | forget(&self.nobody)
    }

    fn kept(&self, name: &str) -> Option<Answer> {
        let answer = self.users.get(name).or_else(|| self.nobody.get(name))?;
        let kept_for = match answer.outcome {
            Ok(_) => self.kept_for,
            Err(Failed) => FAILURE_KEPT.min(self.kept_for),
        };
        (answer.at.elapsed() < kept_for).then_some(answer)
    }

    async fn ask(&self, name: &str) -> Answer {
        let asked = self.source.ask(name).await;
        let server = self.server.clone();
        let outcome =
            asked.map(|row| row.map(|secret| Arc::new(User::looked_up(name, &secret, server))));
        let answer = Answer { at: Instant::now(), outcome };
        let (cache, other) = match answer.outcome {
            Ok(Some(_)) => (&self.users, &self.nobody),
            _ => (&self.nobody, &self.users),
        };
        other.remove(name);
        cache.insert(name.to_owned(), answer.clone());
        answer
    }
}

/// A question that several wait for; gone when the last of them has its answer or has left.
struct Flight<'a> {
    all: &'a Mutex<HashMap<String, Arc<OnceCell<Answer>>>>,
    name: &'a str,
    cell: Arc<OnceCell<Answer>>,
}

impl<'a> Flight<'a> {
    fn board(all: &'a Mutex<HashMap<String, Arc<OnceCell<Answer>>>>, name: &'a str) -> Self {
        let mut flights = all.lock().unwrap_or_else(|p| p.into_inner());
        // One that has landed is an old answer.
        flights.retain(|_, cell| !cell.initialized());
        let cell = flights.entry(name.to_owned()).or_default().clone();
        Self { all, name, cell }
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        let mut flights = self.all.lock().unwrap_or_else(|p| p.into_inner());
        let is_last = flights
            .get(self.name)
            .is_some_and(|cell| Arc::ptr_eq(cell, &self.cell) && Arc::strong_count(cell) == 2);
        if is_last {
            flights.remove(self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Knows `app`; fails while it is told to; answers after a while.
    #[derive(Default)]
    struct Fake {
        asked: AtomicUsize,
        is_failing: std::sync::atomic::AtomicBool,
    }

    impl Source for Arc<Fake> {
        fn ask<'a>(
            &'a self,
            name: &'a str,
        ) -> Pin<Box<dyn Future<Output = Result<Row, Failed>> + Send + 'a>> {
            Box::pin(async move {
                let number = self.asked.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(10)).await;
                match name {
                    _ if self.is_failing.load(Ordering::Relaxed) => Err(Failed),
                    "app" => Ok(Some(format!("secret {number}"))),
                    _ => Ok(None),
                }
            })
        }
    }

    fn lookup(kept_for: u64) -> (Arc<Fake>, Arc<Lookup>) {
        let fake = Arc::<Fake>::default();
        let kept_for = Duration::from_secs(kept_for);
        (fake.clone(), Arc::new(Lookup::new(Box::new(fake), None, kept_for)))
    }

    fn asked(fake: &Fake) -> usize {
        fake.asked.load(Ordering::Relaxed)
    }

    #[tokio::test(start_paused = true)]
    async fn answers_are_kept_for_their_time_only() {
        let (fake, lookup) = lookup(5);
        for (name, exists, total) in [("app", true, 1), ("nobody", false, 2)] {
            for _ in 0..3 {
                assert_eq!(lookup.find(name).await.unwrap().is_some(), exists);
            }
            assert_eq!(asked(&fake), total);
        }
        tokio::time::advance(Duration::from_secs(5)).await;
        lookup.find("app").await.unwrap();
        lookup.find("nobody").await.unwrap();
        assert_eq!(asked(&fake), 4);
        // A name that Postgres would cut is nobody's, and nobody asks for it.
        assert!(lookup.find(&"a".repeat(64)).await.unwrap().is_none());
        assert_eq!(asked(&fake), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn many_logins_of_a_name_ask_once() {
        let (fake, lookup) = lookup(0);
        let logins: Vec<_> = (0..50)
            .map(|_| {
                let lookup = lookup.clone();
                tokio::spawn(async move { lookup.find("app").await.unwrap().is_some() })
            })
            .collect();
        for login in logins {
            assert!(login.await.unwrap());
        }
        assert_eq!(asked(&fake), 1);
        assert!(lookup.under_way.lock().unwrap().is_empty(), "landed flights stay");
        lookup.find("app").await.unwrap();
        assert_eq!(asked(&fake), 2, "nothing is kept for no time");
    }

    #[tokio::test(start_paused = true)]
    async fn a_login_that_leaves_takes_no_answer_with_it() {
        let (fake, lookup) = lookup(5);
        let short = Duration::from_millis(1);
        assert!(tokio::time::timeout(short, lookup.find("app")).await.is_err());
        assert!(lookup.under_way.lock().unwrap().is_empty());
        assert!(lookup.find("app").await.unwrap().is_some());
        assert_eq!(asked(&fake), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn no_answer_lets_nobody_in() {
        let (fake, lookup) = lookup(5);
        fake.is_failing.store(true, Ordering::Relaxed);
        for _ in 0..3 {
            assert_eq!(lookup.find("app").await.unwrap_err(), Failed);
        }
        assert_eq!(asked(&fake), 1, "asked again and again");
        fake.is_failing.store(false, Ordering::Relaxed);
        tokio::time::advance(FAILURE_KEPT).await;
        assert!(lookup.find("app").await.unwrap().is_some());
        // What was good before does not count once it is too old, whatever happened since.
        fake.is_failing.store(true, Ordering::Relaxed);
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(lookup.find("app").await.unwrap_err(), Failed);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_proof_has_old_answers_forgotten() {
        let (fake, lookup) = lookup(60);
        lookup.find("app").await.unwrap();
        assert!(!lookup.forget("app"), "it is new");
        tokio::time::advance(RECHECK_AFTER).await;
        assert!(lookup.forget("app") && !lookup.forget("app"));
        lookup.find("app").await.unwrap();
        assert_eq!(asked(&fake), 2);
    }
}
