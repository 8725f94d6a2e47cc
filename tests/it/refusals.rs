//! Every refusal's words, as one golden file. `UPDATE_GOLDEN=1` rewrites it.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use pgward::auth::{Asked, Refused};
use pgward::net::Origin;
use pgward::route::Refusal;
use pgward::route::refusals::*;
use pgward::shard_map::ShardId;
use pgward::wire;

use crate::route_golden::{check_file, reply_lines};

/// Its name, when it comes, and an example.
type Row = (&'static str, &'static str, Refusal);

const SHARD: ShardId = ShardId(12);

/// The constructors' files, in the order of [`rows`].
const SOURCES: [&str; 8] = [
    include_str!("../../src/route/refusals/hospital.rs"),
    include_str!("../../src/route/refusals/statements.rs"),
    include_str!("../../src/route/refusals/settings.rs"),
    include_str!("../../src/route/refusals/login.rs"),
    include_str!("../../src/route/refusals/servers.rs"),
    include_str!("../../src/route/refusals/transactions.rs"),
    include_str!("../../src/route/refusals/protocol.rs"),
    include_str!("../../src/route/refusals/console.rs"),
];

#[test]
fn every_refusal_has_its_words() {
    let mut text = String::from(
        "# Every error, warning and notice that pgward itself sends: its name, when it comes, its words.\n\
         # Errors of the shards pass through unchanged.\n",
    );
    for (name, when, reply) in &rows() {
        write!(text, "\n{name}\nwhen: {when}\n----\n{}\n", reply_lines(reply)).unwrap();
    }
    check_file("refusals.txt", &text);
}

#[test]
fn every_refusal_has_a_row() {
    let names: Vec<&str> = rows().iter().map(|row| row.0).collect();
    let constructors: Vec<&str> = SOURCES
        .iter()
        .flat_map(|source| source.lines())
        .filter_map(|line| line.strip_prefix("pub fn ")?.split_once('('))
        .map(|(name, _)| name)
        .collect();
    assert_eq!(names, constructors, "the rows are of every constructor, in their order");
}

/// Codes of the README's table, each in backquotes or plain, several of them in a cell.
#[test]
fn the_readme_explains_codes_that_exist() {
    let readme = include_str!("../../README.md");
    let (_, table) = readme.split_once("| code | it says | do |").expect("the table");
    let codes = table.lines().skip(2).map_while(|line| line.strip_prefix("| ")?.split_once(" |"));
    let explained: Vec<&str> = codes.flat_map(|(cell, _)| cell.split(", ")).collect();
    let sent: BTreeSet<&str> = rows().iter().map(|row| row.2.sqlstate).collect();
    assert!(explained.len() > 15, "{explained:?}");
    for code in explained {
        assert!(sent.contains(code), "no refusal is {code}");
    }
}

fn words(refused: Refused) -> String {
    let origin = Origin { peer: Some(([192, 0, 2, 7], 50_000).into()), tls: None };
    let asked = Asked { user: "app", database: "hospital", is_physical: false, origin: &origin };
    refused.message(&asked)
}

fn rows() -> Vec<Row> {
    let subjects = [
        of_hospital(),
        of_statements(),
        of_settings(),
        of_login(),
        of_servers(),
        of_transactions(),
        of_protocol(),
        of_console(),
    ];
    subjects.into_iter().flatten().collect()
}

fn of_hospital() -> Vec<Row> {
    vec![
        (
            "missing_hospital",
            "a sharded relation without its key, guard `strict`",
            missing_hospital("visits", "hospital_id"),
        ),
        (
            "missing_hospital_or_session",
            "as before, guard `route`, and the session has no hospital",
            missing_hospital_or_session("visits", "hospital_id"),
        ),
        (
            "null_hospital",
            "one of several keys of a statement that writes is NULL",
            null_hospital("visits", "hospital_id"),
        ),
        (
            "per_shard_needs_hospital",
            "sequences, advisory locks and the like, in a session without a hospital, over \
             several shards",
            per_shard_needs_hospital("function nextval"),
        ),
        (
            "snapshot_needs_hospital",
            "the first statement of a REPEATABLE READ or SERIALIZABLE transaction names no \
             hospital, nor does the session",
            snapshot_needs_hospital(),
        ),
        (
            "effect_needs_hospital",
            "something with an effect comes before a transaction has its hospital",
            effect_needs_hospital("function random"),
        ),
        (
            "copy_needs_hospital",
            "COPY FROM into a sharded table in a session without a hospital",
            copy_needs_hospital("visits"),
        ),
        (
            "unknown_hospital",
            "the hospital is not in the map's directory, and `unknown_hospital = \"reject\"`",
            unknown_hospital(),
        ),
        (
            "two_hospitals",
            "keys of one statement, or of one query text, name more than one hospital",
            two_hospitals(),
        ),
        (
            "hint_differs",
            "the comment names another hospital than the statement, or two comments differ",
            hint_differs(),
        ),
        (
            "other_hospital_in_transaction",
            "the transaction, or the batch before its Sync, began with another hospital",
            other_hospital_in_transaction(),
        ),
        (
            "pinned_elsewhere",
            "the session keeps a server (session mode, LISTEN, ...), and the statement is for a \
             hospital on another shard, or for another than what it keeps there",
            pinned_elsewhere(),
        ),
        ("foreign_row", "COPY FROM: a row of another hospital", foreign_row()),
        (
            "unreadable_row",
            "COPY FROM: a row whose hospital can't be seen, or data that is wrong",
            unreadable_row(),
        ),
        (
            "login_may_not_reach",
            "statement, comment or setting name a hospital that the users file does not give \
             this login",
            login_may_not_reach(),
        ),
        (
            "session_may_not_reach",
            "statement or comment name another hospital than pgward.hospital_id",
            session_may_not_reach(),
        ),
        (
            "not_a_uuid",
            "a key, a comment's hospital_id or pgward.hospital_id is no uuid as Postgres reads \
             it",
            not_a_uuid("parameter $1"),
        ),
        ("no_parameter", "a key is a parameter that the request does not bind", no_parameter(2)),
        (
            "bad_format_code",
            "a key's parameter, or a result in a console, has a format other than text and binary",
            bad_format_code(7),
        ),
    ]
}

fn of_statements() -> Vec<Row> {
    vec![
        (
            "undeclared_table",
            "a table without the key that the map does not declare, over several shards",
            undeclared_table("audit_log"),
        ),
        (
            "unsupported",
            "a statement that is not classified, or not supported yet",
            unsupported("MERGE", "Use INSERT ... ON CONFLICT, or UPDATE and INSERT."),
        ),
        (
            "reads_unkeyed",
            "a catalog or function that reads data with no key: pg_stats, table_to_xml, a user \
             function, ...",
            reads_unkeyed("pg_stats", ""),
        ),
        (
            "scatter_not_yet",
            "a login with `cross_hospital` means more than one hospital, over several shards",
            scatter_not_yet("Its keys name more than one hospital"),
        ),
        (
            "reference_write",
            "a write to a reference table, over several shards",
            reference_write(
                "writing the reference table \"regions\"",
                "Change it on each shard in shard-addressed sessions (options=-c pgward.shard=N).",
            ),
        ),
        (
            "syntax",
            "the grammar rejects the text: its own words and position",
            syntax("syntax error at or near \"SELEC\"", Some(1)),
        ),
        ("too_complex", "the text nests deeper than the limit", too_complex()),
        ("not_utf8", "text that is not valid in client_encoding UTF8", not_utf8()),
        (
            "unreadable_text",
            "text that is not valid in another client_encoding, or that only a server can read",
            unreadable_text(),
        ),
        (
            "stale_statement",
            "Bind of a statement prepared before DDL that changed what it answers",
            stale_statement(),
        ),
        ("duplicate_statement", "Parse with a name that is taken", duplicate_statement("s1")),
        (
            "no_statement",
            "Bind, Describe or DEALLOCATE of a statement that does not exist",
            no_statement("s1"),
        ),
        ("no_portal", "Execute or Describe of a portal that does not exist", no_portal("p1")),
        ("too_many_statements", "max_client_statements is reached", too_many_statements()),
        ("too_large_statements", "client_statement_bytes_max is reached", too_large_statements()),
    ]
}

fn of_settings() -> Vec<Row> {
    vec![
        (
            "unsupported_encoding",
            "a client_encoding that is not analysed",
            unsupported_encoding("SJIS"),
        ),
        ("nonstandard_strings", "standard_conforming_strings = off", nonstandard_strings()),
        (
            "bad_setting",
            "a setting's value can't be used, at login or in SET",
            bad_setting("pgward.shard"),
        ),
        (
            "unknown_setting",
            "a setting of pgward's that does not exist",
            unknown_setting("pgward.tenant_id"),
        ),
        (
            "setting_at_start_only",
            "SET of what only the start of a session may say",
            setting_at_start_only("pgward.shard"),
        ),
        (
            "name_cut",
            "login with an application_name of more than 63 bytes",
            name_cut("a long name", "a long"),
        ),
        (
            "computed_setting",
            "set_config of a setting that pgward must know, to a computed value",
            computed_setting("pgward.hospital_id"),
        ),
    ]
}

fn of_login() -> Vec<Row> {
    vec![
        (
            "unknown_database",
            "login to a database that the map does not shard",
            unknown_database("postgres"),
        ),
        ("login_failed", "wrong password or unknown user", login_failed("app")),
        (
            "no_login",
            "no rule of auth_hba_file fits the login, the rule rejects it, or asks for another \
             certificate (all words: tests/golden/hba/rules.txt)",
            no_login(words(Refused::NoRule)),
        ),
        (
            "no_lookup",
            "a user that the users file lacks, while auth_query can't be asked",
            no_lookup(),
        ),
        ("no_user_name", "login without a user", no_user_name()),
        ("bad_switch", "options that are neither -c name=value nor --name=value", bad_switch("-d")),
        (
            "switch_without_value",
            "options with a switch that has no value",
            switch_without_value("-c timezone"),
        ),
        (
            "bad_replication",
            "replication is neither database nor a boolean",
            bad_replication("data"),
        ),
        ("tls_required", "no TLS where clients must have it", tls_required()),
        (
            "malformed_scram",
            "a message of SCRAM-SHA-256 is none, or not that of this login",
            malformed_scram("nonce"),
        ),
        (
            "start_may_not_reach",
            "pgward.hospital_id of the start names a hospital that the users file does not give this login",
            start_may_not_reach(),
        ),
        (
            "start_not_a_uuid",
            "pgward.hospital_id of the start is no uuid as Postgres reads it",
            start_not_a_uuid(),
        ),
        (
            "shard_and_hospital",
            "the start has both pgward.shard and pgward.hospital_id",
            shard_and_hospital(),
        ),
        (
            "no_shard_access",
            "options=-c pgward.shard=N by a login without `shard_access`",
            no_shard_access(),
        ),
        (
            "shard_not_a_number",
            "options=-c pgward.shard=N with an N that is no number",
            shard_not_a_number(),
        ),
        (
            "unknown_shard",
            "options=-c pgward.shard=N with an N that the map does not have",
            unknown_shard(),
        ),
        (
            "no_replication",
            "replication=true or database by a login without `shard_access`, but on one \
             unguarded shard",
            no_replication(),
        ),
        (
            "replication_of_no_shard",
            "replication=true or database without pgward.shard, but on one unguarded shard",
            replication_of_no_shard(),
        ),
        (
            "replication_of_hospital",
            "replication=true or database with pgward.hospital_id",
            replication_of_hospital(),
        ),
        ("replication_of_console", "replication=database of the console", replication_of_console()),
        ("unsupported_protocol", "a protocol other than 3", unsupported_protocol(2, 0)),
        (
            "too_many_clients",
            "max_client_conn is reached, or no process id is free",
            too_many_clients(),
        ),
        (
            "too_many_clients_of",
            "max_db_client_connections or max_user_client_connections is reached",
            too_many_clients_of("max_user_client_connections"),
        ),
        ("too_many_logins", "max_logins or max_logins_per_address is reached", too_many_logins()),
        ("cancels_only", "a login at peer_address", cancels_only()),
        (
            "login_timeout_no_server",
            "client_login_timeout went by while no server answered",
            login_timeout_no_server(),
        ),
    ]
}

fn of_servers() -> Vec<Row> {
    vec![
        ("no_primary", "no host of the shard accepts writes", no_primary(SHARD)),
        (
            "could_not_connect",
            "no connection to the shard could be made, or login there failed",
            could_not_connect(SHARD, "The connection failed."),
        ),
        (
            "no_replication_there",
            "replication=true or database, and the server's pg_hba.conf has no line for it",
            no_replication_there(SHARD, "It refused pgward's login (28000)."),
        ),
        ("shard_not_in_map", "the shard is no longer in the map", shard_not_in_map(SHARD)),
        (
            "no_server",
            "the shard's own catalog is not known now, or its server failed before a statement went out",
            no_server(SHARD),
        ),
        ("not_ready", "no shard has answered since pgward started", not_ready()),
        ("too_many_waiting", "max_waiting requests wait for the same pool", too_many_waiting()),
        (
            "query_wait_timeout",
            "no server became free within query_wait_timeout; the connection stays",
            query_wait_timeout(),
        ),
        (
            "queued",
            "a client has waited for a server for query_wait_notify, and waits on",
            queued(),
        ),
        (
            "cancelled",
            "the client cancelled a statement that waited for a server; the connection stays",
            cancelled(),
        ),
        (
            "query_timeout",
            "a request ran for longer than query_timeout; the connection stays",
            query_timeout(),
        ),
        (
            "transaction_timeout",
            "a transaction held its server for longer than transaction_timeout",
            transaction_timeout(),
        ),
        (
            "idle_transaction_timeout",
            "a client was idle in a transaction for longer than idle_transaction_timeout",
            idle_transaction_timeout(),
        ),
        (
            "client_idle_timeout",
            "a client was idle outside a transaction for longer than client_idle_timeout",
            client_idle_timeout(),
        ),
        (
            "server_lost_in_transaction",
            "the server was lost in a transaction before COMMIT",
            server_lost_in_transaction(SHARD),
        ),
        ("lost_savepoint", "ROLLBACK TO in a transaction whose server was lost", lost_savepoint()),
        ("lost_chain", "AND CHAIN behind a transaction whose server was lost", lost_chain()),
        (
            "server_lost_reading",
            "the server was lost while it answered a read outside a transaction",
            server_lost_reading(SHARD),
        ),
        (
            "outcome_unknown",
            "the server was lost while it ran COMMIT, or a statement outside a transaction that \
             may write",
            outcome_unknown(SHARD),
        ),
        (
            "pinned_server_lost",
            "the server that held the session's state was lost",
            pinned_server_lost(SHARD),
        ),
    ]
}

fn of_transactions() -> Vec<Row> {
    vec![
        ("no_blocks", "BEGIN where pool_mode is statement", no_blocks()),
        (
            "in_failed_transaction",
            "a statement in a failed transaction that has no server",
            in_failed_transaction(),
        ),
        (
            "already_in_transaction",
            "BEGIN in a transaction that has no server yet",
            already_in_transaction(),
        ),
        ("no_transaction", "COMMIT or ROLLBACK outside a transaction", no_transaction()),
        (
            "no_transaction_for",
            "SET LOCAL, SET TRANSACTION or SET CONSTRAINTS outside a transaction",
            no_transaction_for("SET LOCAL"),
        ),
        (
            "transaction_required",
            "SAVEPOINT, RELEASE, ROLLBACK TO or AND CHAIN outside a transaction",
            transaction_required("SAVEPOINT"),
        ),
        (
            "no_savepoint",
            "a savepoint that does not exist, in a transaction that has no server yet",
            no_savepoint("s1"),
        ),
        (
            "too_many_before_hospital",
            "too many of SET LOCAL, SAVEPOINT and the like before a transaction has its hospital",
            too_many_before_hospital(1_000),
        ),
        (
            "discard_in_transaction",
            "DISCARD ALL in a block, or beside other statements in one query string",
            discard_in_transaction(),
        ),
    ]
}

fn of_protocol() -> Vec<Row> {
    vec![
        ("drained", "pgward shuts down, or the console killed the client", drained()),
        (
            "session_violation",
            "the client broke the protocol; the connection is closed",
            session_violation(&wire::Error::UnknownTag { tag: b'*' }),
        ),
        (
            "protocol_violation",
            "the client broke the protocol at its login or in a console; the connection is closed",
            protocol_violation("message 'Q' is malformed: string has no NUL"),
        ),
        ("internal", "a bug of pgward", internal()),
    ]
}

fn of_console() -> Vec<Row> {
    vec![
        (
            "console_denied",
            "login to the console by a user who is in neither list",
            console_denied(),
        ),
        (
            "console_needs_admin",
            "a command that changes something, of a user who may only look",
            console_needs_admin(),
        ),
        (
            "unknown_console_command",
            "a console command that does not exist",
            unknown_console_command(),
        ),
        (
            "console_not_yet",
            "a command of PgBouncer's console that is not there yet",
            console_not_yet("PAUSE"),
        ),
        (
            "console_bad_arguments",
            "SHOW ROUTE without a statement, or with half a literal",
            console_bad_arguments(),
        ),
        ("console_not_utf8", "a console command that is not UTF-8", console_not_utf8()),
        (
            "console_takes_no",
            "parameters, or a function call, in a console",
            console_takes_no("parameters"),
        ),
        (
            "console_has_too_many",
            "more prepared statements, or portals, than a console keeps",
            console_has_too_many("portals"),
        ),
        (
            "console_duplicate_statement",
            "Parse in a console with a name that is taken",
            console_duplicate_statement(),
        ),
        (
            "console_no_statement",
            "Bind or Describe in a console of a statement that does not exist",
            console_no_statement(),
        ),
        (
            "console_no_portal",
            "Execute or Describe in a console of a portal that does not exist",
            console_no_portal(),
        ),
        (
            "console_bad_formats",
            "Bind in a console with as many result formats as no answer has columns",
            console_bad_formats(),
        ),
        (
            "reload_failed",
            "RELOAD of files with problems: all of them, with their places",
            reload_failed("map.toml:3:1: ...".to_owned()),
        ),
        (
            "reload_said",
            "RELOAD of files of which something holds only later",
            reload_said("...".to_owned()),
        ),
        ("set_ignored", "SET in a console", set_ignored()),
        ("console_usage", "SHOW HELP", console_usage("SHOW ...".to_owned())),
    ]
}
