//! `auth_query` itself: asked over a connection of its own, as `auth_user`, on a shard's primary.
//!
//! Nothing of any client but its name gets there, and that as a parameter: the connection is never
//! in a pool, its search_path is pg_catalog alone, it is read-only, and each question has a time
//! limit (CVE-2025-12819: a client's startup settings reached PgBouncer's auth_query). One question
//! at a time; whoever waits is bounded by the logins that may be under way.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

use super::lookup::{Failed, Row, Source};
use crate::config::Config;
use crate::fleet::monitor;
use crate::fleet::{Fleet, FleetSettings};
use crate::net::tls::Connector;
use crate::shard_map::{Address, ShardMap};

/// How long a shard may take to have a primary: in a failover, or when a probe is late.
const PRIMARY_WAIT: Duration = Duration::from_secs(2);
/// Pause after a failure.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How long a connect, and then a question, may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Asks the shards.
pub struct AuthQuery {
    query: String,
    /// Database on the host; empty: the shard's.
    database: String,
    settings: FleetSettings,
    fleet: Arc<Fleet>,
    map: Arc<ShardMap>,
    connection: Mutex<Held>,
}

/// What the last question left.
#[derive(Default)]
struct Held {
    open: Option<Connection>,
    /// When it could not be asked: all who waited meanwhile are told the same.
    failed_at: Option<Instant>,
}

/// A connection, with the place that it is to.
struct Connection {
    client: Client,
    carrier: JoinHandle<()>,
    place: Place,
}

/// Where to ask.
#[derive(PartialEq, Eq)]
struct Place {
    address: Address,
    tls: Arc<Connector>,
    database: String,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.carrier.abort();
    }
}

impl AuthQuery {
    /// As `config` says, on the hosts of `map`; `secret` is that of `auth_user`.
    pub fn new(
        config: &Config,
        secret: Option<String>,
        fleet: Arc<Fleet>,
        map: Arc<ShardMap>,
    ) -> Self {
        let mut settings = FleetSettings::new(&config.health, secret);
        settings.user.clone_from(&config.auth.auth_user);
        settings.probe_timeout = TIMEOUT;
        Self {
            query: config.auth.auth_query.clone(),
            database: config.auth.auth_dbname.clone(),
            settings,
            fleet,
            map,
            connection: Mutex::default(),
        }
    }

    /// The primary of the first shard that has one now.
    async fn place(&self) -> Result<Place, Failed> {
        if let Some(place) = self.place_now() {
            return Ok(place);
        }
        let first = self.map.shards().first().and_then(|shard| self.fleet.shard(shard.id));
        if let Some(first) = first {
            drop(tokio::time::timeout(PRIMARY_WAIT, first.wait_for_primary()).await);
        }
        self.place_now().ok_or_else(|| failed("no shard has a primary"))
    }

    fn place_now(&self) -> Option<Place> {
        self.map.shards().iter().find_map(|shard| {
            let state = self.fleet.shard(shard.id)?;
            let host = state.primary()?;
            let database = match self.database.as_str() {
                "" => shard.database.clone(),
                name => name.to_owned(),
            };
            let address = shard.hosts().nth(host)?.clone();
            Some(Place { address, tls: state.connector(), database })
        })
    }

    async fn connect(&self, place: Place) -> Result<Connection, Failed> {
        let Place { address, tls, database } = &place;
        let connected = monitor::connect(address, tls, database, &self.settings, TIMEOUT).await;
        let (client, carrier) = connected.map_err(|error| failed(&error.to_string()))?;
        let carrier = tokio::spawn(async move { drop(carrier.await) });
        Ok(Connection { client, carrier, place })
    }

    async fn ask_once(&self, name: &str) -> Result<Row, Failed> {
        let mut held = self.connection.lock().await;
        if held.failed_at.is_some_and(|at| at.elapsed() < RETRY_AFTER) {
            return Err(Failed);
        }
        match self.rows(&mut held.open, name).await {
            Ok(rows) => {
                held.failed_at = None;
                read(&rows, name)
            }
            Err(Failed) => {
                held.failed_at = Some(Instant::now());
                Err(Failed)
            }
        }
    }

    async fn rows(
        &self,
        open: &mut Option<Connection>,
        name: &str,
    ) -> Result<Vec<tokio_postgres::Row>, Failed> {
        let place = self.place().await?;
        // Taken, and put back when all went well: whoever leaves in the middle leaves none.
        let connection = match open.take() {
            Some(open) if open.place == place && !open.client.is_closed() => open,
            _ => self.connect(place).await?,
        };
        let parameters: [&(dyn ToSql + Sync); 1] = [&name];
        let asking = connection.client.query(&self.query, &parameters);
        match tokio::time::timeout(TIMEOUT, asking).await {
            Ok(Ok(rows)) => {
                *open = Some(connection);
                Ok(rows)
            }
            // Its words may hold anything; the SQLSTATE doesn't.
            Ok(Err(error)) => Err(failed(error.code().map_or("no SQLSTATE", |code| code.code()))),
            Err(_) => Err(failed("timed out")),
        }
    }
}

/// One row at most, of the name that was asked for and a secret.
fn read(rows: &[tokio_postgres::Row], name: &str) -> Result<Row, Failed> {
    let row = match rows {
        [] => return Ok(None),
        [row] if row.len() == 2 => row,
        _ => return Err(failed("the answer is not one row of two columns")),
    };
    let (Ok(Some(found)), Ok(secret)) =
        (row.try_get::<_, Option<&str>>(0), row.try_get::<_, Option<String>>(1))
    else {
        return Err(failed("the two columns are not a name and a secret"));
    };
    if found != name {
        return Err(failed("the answer is about another name"));
    }
    Ok(secret.filter(|secret| !secret.is_empty()))
}

fn failed(why: &str) -> Failed {
    tracing::warn!(why, "auth_query failed: users that are not in the users file can't log in");
    Failed
}

impl Source for AuthQuery {
    fn ask<'a>(
        &'a self,
        name: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<Row, Failed>> + Send + 'a>> {
        Box::pin(self.ask_once(name))
    }
}
