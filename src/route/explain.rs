//! What `decide` found and why, as rows for people.
//!
//! Serves `pgward route` and the console's `SHOW ROUTE`. Runs the very `decide` that sessions use,
//! then looks up where each key stood. Shows hospitals that the asker's own statement names; only
//! operators ask.

use super::{Block, Hospitals, Refusal, Role, Route, SessionView, Values, decide, keys};
use crate::shard_map::{HospitalId, ShardMap};
use crate::sql::{Access, Analysis, Effect, ShardedUse};

/// One fact of an explanation. A name may come more than once (`key`).
pub type Row = (&'static str, String);

/// A decision and the facts behind it.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    /// What `decide` said.
    pub route: Result<Route, Refusal>,
    /// Its facts, in the order to show them.
    pub rows: Vec<Row>,
}

/// Decides and explains.
pub fn explain(
    analysis: &Analysis,
    values: &dyn Values,
    session: &SessionView<'_>,
    map: &ShardMap,
) -> Explanation {
    let route = decide(analysis, values, session, map);
    let commands: Vec<&str> = analysis.statements.iter().map(|s| s.command).collect();
    let mut rows = vec![("statement", commands.join("; "))];
    for used in analysis.statements.iter().flat_map(|statement| &statement.sharded) {
        rows.extend(key_rows(used, values));
    }
    if let Ok(Some(hint)) = values.hint() {
        rows.push(("hint", hint.to_owned()));
    }
    if let Some(hospital) = session.hospital {
        rows.push(("session", hospital.to_string()));
    }
    if let Hospitals::Only(list) = &session.rights.hospitals {
        rows.push(("login", list.iter().map(HospitalId::to_string).collect::<Vec<_>>().join(", ")));
    }
    match &route {
        Ok(route) => {
            rows.extend(route_rows(*route, map));
            rows.push(("why", why(analysis, session, *route)));
        }
        Err(refusal) => rows.extend(refusal_rows(refusal)),
    }
    Explanation { route, rows }
}

/// The facts of a refusal, also of one that came before `decide`, e.g. a syntax error.
pub fn refusal_rows(refusal: &Refusal) -> Vec<Row> {
    let mut rows = vec![("refused", format!("{}: {}", refusal.sqlstate, refusal.message))];
    rows.extend(refusal.detail.iter().map(|detail| ("detail", detail.clone())));
    rows.extend(refusal.hint.iter().map(|hint| ("hint", hint.clone())));
    rows.extend(refusal.position.map(|position| ("position", position.to_string())));
    rows
}

/// Where the keys of one sharded relation stand, and what they say.
fn key_rows(used: &ShardedUse, values: &dyn Values) -> Vec<Row> {
    let ShardedUse { relation, column, keys } = used;
    if keys.is_empty() {
        return vec![("key", format!("{relation}.{column}: none"))];
    }
    let row = |key| {
        let mut found = Vec::new();
        let read = keys::read(key, values, |value| {
            found.push(value.map_or("NULL".to_owned(), |hospital| hospital.to_string()));
        });
        let value = match read {
            Ok(()) if found.is_empty() => "empty".to_owned(),
            Ok(()) => found.join(", "),
            Err(refusal) => refusal.message,
        };
        ("key", format!("{relation}.{column} = {}: {value}", keys::place(key)))
    };
    keys.iter().map(|key| row(*key)).collect()
}

fn route_rows(route: Route, map: &ShardMap) -> Vec<Row> {
    let role = |role| match role {
        Role::Primary => "primary".to_owned(),
        Role::Replica => "replica, if one is fresh enough".to_owned(),
    };
    match route {
        Route::One { hospital, shard, role: of } => {
            let mut rows = Vec::new();
            if let Some(hospital) = hospital {
                rows.push(("hospital", hospital.to_string()));
                rows.push(("bucket", map.bucket(hospital).to_string()));
            }
            rows.push(("shard", shard.to_string()));
            rows.push(("region", map.region_of(shard).unwrap_or_default().to_owned()));
            rows.push(("role", role(of)));
            rows
        }
        Route::Any { role: of } => vec![("shard", "any".to_owned()), ("role", role(of))],
    }
}

/// Why it has its role.
fn why(analysis: &Analysis, session: &SessionView<'_>, route: Route) -> String {
    let (Route::One { role, .. } | Route::Any { role }) = route;
    if role == Role::Replica {
        return "provably read-only".to_owned();
    }
    for statement in &analysis.statements {
        if let Some(problem) = statement.problems.first() {
            return format!("{} is not classified", problem.subject);
        }
        if let Access::Write(why) = &statement.access {
            return format!("may write: {why}");
        }
        if let Some(what) = &statement.per_shard {
            return format!("{what} is the primary's own");
        }
        if statement.effect != Effect::None {
            return format!("{} asks the primary", statement.command);
        }
    }
    match session.block {
        Block::None => "the server is held already".to_owned(),
        Block::Snapshot { serializable: true, .. } => "SERIALIZABLE".to_owned(),
        _ => "in a read-write transaction".to_owned(),
    }
}
