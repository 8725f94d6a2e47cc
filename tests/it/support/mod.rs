//! Shared by the integration tests: real Postgres shards, and `pgward serve` in front of them.
//!
//! [`shards`] is one primary with one streaming replica whose four databases are four shards; it is
//! started once per run and ends with this process. A test that breaks servers starts its own. Rows
//! are told apart by hospital: each test makes its own hospitals.

pub mod certs;
mod client;
mod dice;
pub mod fake;
pub mod messages;
pub mod notation;
pub mod raw;
pub mod script;
mod shards;
mod ward;

pub use client::{Id, refusal, simple, sqlstate, tell, value};
pub use dice::Dice;
pub use raw::{Cancellable, Login, Message, Raw, batch, code_of, send_cancel, words_of};
pub use shards::{REFERENCE_ROWS, SCHEMA, Shards, hospital_on, one_shard_map, shards};
pub use ward::{Extra, USERS, Ward, WardOptions, http_get};

use std::time::{Duration, Instant};

/// How long a test waits for what must happen.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Runs `check` until it holds.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut check: impl FnMut() -> F) {
    let deadline = Instant::now() + PATIENCE;
    while !check().await {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
