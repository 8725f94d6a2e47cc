//! What the tests send and read: uuid parameters, rows of the simple protocol.

use bytes::{BufMut, BytesMut};
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};
use tokio_postgres::{Client, Error, SimpleQueryMessage};
use uuid::Uuid;

/// A uuid as a binary parameter.
#[derive(Debug, Clone, Copy)]
pub struct Id(pub Uuid);

impl ToSql for Id {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.put_slice(self.0.as_bytes());
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::UUID
    }

    to_sql_checked!();
}

/// Runs `sql` in the simple protocol; its rows as `a|b`.
pub async fn simple(client: &Client, sql: &str) -> Result<Vec<String>, Error> {
    let messages = client.simple_query(sql).await?;
    Ok(messages
        .iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => {
                let cells = (0..row.len()).map(|at| row.get(at).unwrap_or(""));
                Some(cells.collect::<Vec<_>>().join("|"))
            }
            _ => None,
        })
        .collect())
}

/// The one value of `sql`.
pub async fn value(client: &Client, sql: &str) -> String {
    let rows = simple(client, sql).await.unwrap_or_else(|error| panic!("{sql}: {}", tell(&error)));
    assert_eq!(rows.len(), 1, "{sql}: {rows:?}");
    rows.into_iter().next().expect("one")
}

/// Runs `sql`, which must be refused: SQLSTATE, and message with hint.
pub async fn refusal(client: &Client, sql: &str) -> (String, String) {
    match simple(client, sql).await {
        Ok(rows) => panic!("{sql}: was not refused, but answered {rows:?}"),
        Err(error) => (sqlstate(&error), tell(&error)),
    }
}

/// The SQLSTATE of an error, or what else it was.
pub fn sqlstate(error: &Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), |db| db.code().code().to_owned())
}

/// Message and hint of an error.
pub fn tell(error: &Error) -> String {
    match error.as_db_error() {
        Some(db) => {
            let more = [db.detail(), db.hint()].into_iter().flatten();
            std::iter::once(db.message()).chain(more).collect::<Vec<_>>().join("\n")
        }
        None => error.to_string(),
    }
}
