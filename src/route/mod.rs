//! Where a statement goes: the whole policy as one pure function.
//!
//! [`decide`] takes facts of the statement, values of its keys, what the session is, and the map;
//! it answers with a [`Route`] or a [`Refusal`]. It never sees a host, a socket or health: it says
//! which shard and role, the pool picks the host. Also the words of every refusal ([`refusals`]) and of
//! an explanation ([`explain`]). Called by `session`, the console and `pgward route`.
//!
//! A map of one shard with guard `route` and a login for any hospital has nothing to guard: what is not
//! classified is forwarded to the primary, keyless statements and several hospitals pass. A session
//! that named its hospital, or a login that is bound to some, keeps the guard there too.

mod decide;
pub mod explain;
mod keys;
pub mod refusals;
#[cfg(test)]
mod tests;

pub use decide::{admit, decide};

use std::borrow::Cow;

use crate::shard_map::{HospitalId, ShardId};
use crate::sql;
use crate::wire::backend::ErrorReply;

/// `[guard] mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum GuardMode {
    /// Every sharded relation needs its key in the statement, also in a bound session.
    #[default]
    Strict,
    /// The session's hospital or the hint is the key where the statement has none.
    Route,
    /// As `route`, with row level security on the shards (refused until it exists).
    Rls,
}

/// Which host of a shard may run it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// The one that accepts writes.
    Primary,
    /// A replica that is fresh enough, else the primary.
    Replica,
}

/// Hospitals that a login may reach.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Hospitals {
    /// Any.
    #[default]
    Any,
    /// One of these; a login with exactly one is bound to it.
    Only(Vec<HospitalId>),
}

/// What a login may do across hospitals.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Default,
    PartialOrd,
    Ord,
    serde::Deserialize,
    serde::Serialize,
)]
#[serde(rename_all = "lowercase")]
pub enum CrossHospital {
    /// Nothing.
    #[default]
    None,
    /// Read over all hospitals.
    Read,
    /// Read and write over all hospitals.
    Write,
}

/// Rights of a login, from the users file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rights {
    /// Hospitals it may reach.
    pub hospitals: Hospitals,
    /// May open shard-addressed sessions (`options=-c pgward.shard=N`).
    pub shard_access: bool,
    /// May cross hospitals.
    pub cross_hospital: CrossHospital,
}

/// What `decide` needs to know of the session.
#[derive(Debug, Clone, Copy)]
pub struct SessionView<'a> {
    /// Rights of the login.
    pub rights: &'a Rights,
    /// `pgward.hospital_id` of the session, if set.
    pub hospital: Option<HospitalId>,
    /// The hospital and shard of the open transaction, once known.
    pub transaction: Option<Bound>,
    /// The server that the session keeps between transactions, if it does. Its hospital is the one
    /// that what it keeps there may be of.
    pub pinned: Option<Bound>,
    /// Names of its temporary tables there, or on the server of the open transaction.
    pub temporary: Option<&'a TemporaryTables>,
    /// The transaction block that is open on the client's side.
    pub block: Block,
    /// `[guard] mode`.
    pub guard: GuardMode,
}

/// A session's temporary tables by name; `true`: it ends with its transaction (ON COMMIT DROP).
pub type TemporaryTables = std::collections::BTreeMap<String, bool>;

impl SessionView<'_> {
    /// Whether it has a temporary table called `name`.
    pub(crate) fn has_temporary(&self, name: &str) -> bool {
        self.temporary.is_some_and(|tables| tables.contains_key(name))
    }
}

/// A transaction's tie to its hospital.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// The hospital; `None` where the shard was chosen without one.
    pub hospital: Option<HospitalId>,
    /// Its shard.
    pub shard: ShardId,
    /// The role of the server that is held.
    pub role: Role,
}

/// The client's transaction block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Block {
    /// None: each request commits by itself.
    #[default]
    None,
    /// BEGIN (read-write).
    ReadWrite,
    /// BEGIN READ ONLY.
    ReadOnly,
    /// Either, at REPEATABLE READ or SERIALIZABLE, where a statement without a hospital may not
    /// run by itself. `read_only` as said.
    Snapshot {
        /// READ ONLY was said.
        read_only: bool,
        /// SERIALIZABLE, which needs the primary.
        serializable: bool,
    },
}

/// Where it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// One shard.
    One {
        /// The hospital it is for; `None` where any shard would do.
        hospital: Option<HospitalId>,
        /// The shard.
        shard: ShardId,
        /// Primary, or a replica if one is fresh enough.
        role: Role,
    },
    /// Any shard (no sharded relation, no hospital named). `role` as above.
    Any {
        /// Primary or replica.
        role: Role,
    },
}

/// A decision not to. Its words are in the golden file of refusals.
pub type Refusal = ErrorReply;

/// Values of one execution, asked for only where a key stands.
pub trait Values {
    /// Format code (0 text, 1 binary) and raw bytes (`None` for NULL) of parameter `n` (1-based).
    /// Outer `None`: there is no such parameter, as in a simple Query.
    fn param(&self, n: u16) -> Option<(i16, Option<&[u8]>)>;
    /// The value of string literal `slot` of the text.
    fn literal(&self, slot: u16) -> Option<Cow<'_, str>>;
    /// The text's hint, `/* hospital_id='...' */`; more than one distinct hint is `Err(())`.
    #[expect(clippy::result_unit_err, reason = "there is one way to fail")]
    fn hint(&self) -> Result<Option<&str>, ()>;
}

/// [`Values`] of a text with its parameters, if any.
#[derive(Debug, Clone, Copy)]
pub struct TextValues<'a> {
    /// The text's literals and hint.
    pub lexed: &'a sql::lexer::Lexed<'a>,
    /// Format code and bytes of each parameter.
    pub params: &'a [(i16, Option<&'a [u8]>)],
}

impl Values for TextValues<'_> {
    fn param(&self, n: u16) -> Option<(i16, Option<&[u8]>)> {
        self.params.get(usize::from(n).checked_sub(1)?).copied()
    }

    fn literal(&self, slot: u16) -> Option<Cow<'_, str>> {
        self.lexed.literal(slot)
    }

    fn hint(&self) -> Result<Option<&str>, ()> {
        self.lexed.hint()
    }
}

/// The refusal of a text that has no analysis.
pub fn refuse_text(error: &sql::Error) -> Refusal {
    match error {
        sql::Error::Syntax { message, position } => refusals::syntax(message, *position),
        sql::Error::TooComplex => refusals::too_complex(),
    }
}
