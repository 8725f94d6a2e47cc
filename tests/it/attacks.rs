//! What names mean must be what pgward thinks they mean: ways to change search_path behind its back.
//!
//! Schema `wide` has a view `regions` over the patients of all hospitals, where `public.regions` is a
//! reference table that anybody may read on any shard. Each attack tries to have `regions` taken for
//! the one and read as the other. Whatever comes back, no patient may.

use crate::support::raw::{bind, flush, message, parse, query, sync};
use crate::support::*;

const READ: &str = "SELECT * FROM regions";
const LEAK: &[u8] = b"Patient ";

/// Parse, Bind and Execute.
fn run(sql: &str) -> Vec<u8> {
    raw::batch(sql, &[])
}

fn bind_portal(portal: &str) -> Vec<u8> {
    message(b'B', &[portal.as_bytes(), b"\0\0\0\0\0\0\0\0"])
}

/// A statement of a name, and a portal of it.
fn parse_as(name: &str, sql: &str) -> Vec<u8> {
    message(b'P', &[name.as_bytes(), b"\0", sql.as_bytes(), b"\0\0\0"])
}

fn bind_to(portal: &str, name: &str) -> Vec<u8> {
    message(b'B', &[portal.as_bytes(), b"\0", name.as_bytes(), b"\0\0\0\0\0\0\0"])
}

/// Binds and executes a statement of a name, and leaves the unnamed portal as it is.
fn run_as(name: &str) -> Vec<u8> {
    [bind_to(name, name), execute_portal(name, 0)].concat()
}

fn close_portal(portal: &str) -> Vec<u8> {
    message(b'C', &[b"P", portal.as_bytes(), b"\0"])
}

fn execute_portal(portal: &str, max_rows: u32) -> Vec<u8> {
    message(b'E', &[portal.as_bytes(), b"\0", &max_rows.to_be_bytes()])
}

/// A login with startup options, e.g. `-c search_path=public`.
fn login(ward: &Ward, options: &str) -> Raw {
    let mut raw = Raw::connect(ward);
    let mut pairs = b"user\0app\0database\0hospital\0".to_vec();
    if !options.is_empty() {
        pairs.extend([b"options\0", options.as_bytes(), b"\0"].concat());
    }
    raw.send(&raw::packet(&[&0x0003_0000_u32.to_be_bytes(), &pairs, b"\0"]));
    let messages = raw.until(b'Z').expect("a login");
    assert!(messages.iter().all(|message| message.tag != b'E'), "{messages:?}");
    raw
}

/// Sends `parts`, each ended by a Query, Sync or Flush, and looks at all that comes back: what went wrong, if
/// anything, where something was to be `refused`.
fn attack(ward: &Ward, options: &str, refused: bool, parts: &[Vec<u8>]) -> Option<&'static str> {
    let mut raw = login(ward, options);
    let mut states = Vec::new();
    for part in parts {
        raw.send(part);
        if part.ends_with(&flush()) {
            // Its replies come with those of the next part; pgward has it by then.
            std::thread::sleep(std::time::Duration::from_millis(100));
            continue;
        }
        let Some(messages) = raw.until(b'Z') else { break };
        for message in &messages {
            let has_leak = message.body.windows(LEAK.len()).any(|bytes| bytes == LEAK);
            if matches!(message.tag, b'D' | b'd') && has_leak {
                return Some("read patients of all hospitals");
            }
        }
        states.extend(messages.iter().filter(|m| m.tag == b'E').map(|m| m.sqlstate().to_owned()));
    }
    if states.iter().any(|state| state.starts_with("XX") || state.starts_with("08")) {
        return Some("something broke");
    }
    (refused && states.is_empty()).then_some("nothing was refused")
}

fn set_up() -> (Shards, Ward, String) {
    let shards = Shards::start(&Default::default());
    let id = shards.hospital(0, 2);
    for shard in 0..4 {
        shards.hospital(shard, 2);
        shards.psql(
            shard,
            "CREATE SCHEMA wide; CREATE VIEW wide.regions AS SELECT * FROM public.patients;
             GRANT USAGE ON SCHEMA wide TO app; GRANT SELECT ON wide.regions TO app",
        );
    }
    let options = WardOptions {
        config: &[("auth", "auth_type = \"trust\""), ("listen", "insecure = true")],
        ..Default::default()
    };
    let ward = Ward::start(&shards, &options);
    let keyed = format!("SELECT count(*) FROM hospitals WHERE id = '{id}'");
    (shards, ward, keyed)
}

#[test]
fn search_path_is_never_another_than_pgward_thinks() {
    let (shards, ward, keyed) = set_up();
    let q = |sql: &str| query(sql);
    let set = "SET search_path = wide";
    let reset = "RESET pgward.hospital_id";
    let set_config = "SELECT set_config('search_path', 'wide', false)";
    let begin = || [q("BEGIN"), q(&keyed)].to_vec();
    let mut wrong: Vec<String> = Vec::new();
    let in_block = |rest: Vec<Vec<u8>>| [begin(), rest].concat();

    let hospital =
        keyed.replace("SELECT count(*) FROM hospitals WHERE id", "SET pgward.hospital_id");

    // Bound under one search_path and run under another.
    let late = |sql: &str| {
        [parse_as("s", sql), bind_to("p", "s"), run(set), execute_portal("p", 0), sync()].concat()
    };

    // A portal that sets, and a savepoint behind it that ROLLBACK TO leaves it alive at.
    let behind_savepoint = |rest: Vec<Vec<u8>>| {
        let names = [
            parse_as("evil", set),
            parse_as("harmless", "SELECT 1"),
            parse_as("fails", "SELECT 1/0"),
            parse_as("save", "SAVEPOINT s"),
            parse_as("back", "ROLLBACK TO s"),
            sync(),
        ];
        let bound = [bind_to("", "evil"), sync()].concat();
        in_block([vec![names.concat(), bound, [run_as("save"), sync()].concat()], rest].concat())
    };

    for (name, parts) in [
        ("in one query", vec![q(&format!("{set}; {READ}"))]),
        ("set_config in one query", vec![q(&format!("{set_config}; {READ}"))]),
        ("in one batch", vec![[run(set), run(READ), sync()].concat()]),
        ("behind a Flush", vec![[run(set), flush(), run(READ), sync()].concat()]),
        (
            "a portal that is not the last",
            vec![
                [parse(set), bind_portal("p"), run("SELECT 1"), execute_portal("p", 0), sync()]
                    .concat(),
                q(READ),
            ],
        ),
        (
            "a portal of an earlier batch",
            in_block(vec![
                [parse(set), bind_portal("p"), sync()].concat(),
                [execute_portal("p", 0), sync()].concat(),
                q(READ),
            ]),
        ),
        (
            "a portal from before a batch that failed late",
            behind_savepoint(vec![
                [run_as("fails"), bind_to("", "harmless"), q("SELECT 1"), sync()].concat(),
                [run_as("back"), sync()].concat(),
                [execute_portal("", 0), sync()].concat(),
                q(READ),
            ]),
        ),
        (
            "a portal whose name was taken away by a batch that failed late",
            behind_savepoint(vec![
                [run_as("fails"), close_portal(""), q("SELECT 1"), sync()].concat(),
                [run_as("back"), sync()].concat(),
                [execute_portal("", 0), sync()].concat(),
                q(READ),
            ]),
        ),
        (
            "a portal that a failed batch did not come to",
            behind_savepoint(vec![
                [run_as("fails"), execute_portal("", 0), sync()].concat(),
                [run_as("back"), sync()].concat(),
                [execute_portal("", 0), sync()].concat(),
                q(READ),
            ]),
        ),
        (
            "a cursor that has the name of a portal that ended",
            behind_savepoint(vec![
                [bind_to("c", "back"), sync()].concat(),
                q("CLOSE c"),
                q("DECLARE c CURSOR FOR SELECT 1"),
                q(set),
                [execute_portal("c", 0), sync()].concat(),
                q(READ),
            ]),
        ),
        (
            "a set_config that is suspended",
            in_block(vec![
                [parse(set_config), bind(&[]), execute_portal("", 1), sync()].concat(),
                q(READ),
            ]),
        ),
        (
            "a set_config that goes on",
            in_block(vec![
                [
                    parse("SELECT set_config('search_path', 'public', false)"),
                    bind_portal("p"),
                    execute_portal("p", 1),
                    sync(),
                ]
                .concat(),
                q(set),
                [execute_portal("p", 1), sync()].concat(),
                q(READ),
            ]),
        ),
        (
            "a portal that FETCH runs",
            in_block(vec![
                [parse(set_config), bind_portal("p"), sync()].concat(),
                q("FETCH ALL FROM p"),
                q(READ),
            ]),
        ),
        (
            "a cursor that FETCH runs",
            in_block(vec![
                q("DECLARE c CURSOR FOR SELECT set_config('search_path', 'wide', false)"),
                q("SET search_path = public"),
                q("FETCH ALL FROM c"),
                q(READ),
            ]),
        ),
        (
            "EXPLAIN of set_config",
            in_block(vec![
                q(set),
                q("EXPLAIN SELECT set_config('search_path', 'public', false)"),
                q(READ),
            ]),
        ),
        (
            "set_config beside what makes no row",
            in_block(vec![
                q(set),
                q("SELECT set_config('search_path', 'public', false), generate_series(1, 0) + 1"),
                q(READ),
            ]),
        ),
        ("COPY in a portal", vec![late("COPY regions TO STDOUT")]),
        (
            "COPY of a query in a portal",
            in_block(vec![late("COPY (SELECT * FROM regions) TO STDOUT")]),
        ),
        (
            "EXECUTE in a portal",
            vec![q("PREPARE e AS SELECT name FROM regions"), late("EXECUTE e")],
        ),
        (
            "committed in a batch that fails, on a server that is kept",
            vec![
                q(&hospital),
                q("LISTEN x"),
                q("BEGIN"),
                q(&keyed),
                q(set),
                [run(&hospital), run("COMMIT"), execute_portal("none", 0), sync()].concat(),
                q(READ),
            ],
        ),
        (
            "a savepoint that was released",
            in_block(vec![
                q(set),
                q("SAVEPOINT a"),
                q("SET search_path = public"),
                q("SAVEPOINT a"),
                q("RELEASE a"),
                q("ROLLBACK TO a"),
                q(READ),
            ]),
        ),
        (
            "a savepoint that was released before any server",
            vec![
                q("BEGIN"),
                q("SET search_path = wide, public"),
                q("SAVEPOINT a"),
                q("SET search_path = public"),
                q("SAVEPOINT a"),
                q("RELEASE a"),
                q("ROLLBACK TO a"),
                q(&keyed.replace("count(*)", "r.*").replace("hospitals", "hospitals h, regions r")),
            ],
        ),
        (
            "a batch that fails behind a savepoint of its own",
            in_block(vec![
                [run(reset), run(set), flush()].concat(),
                [run("SAVEPOINT s"), run("SELECT 1/0"), sync()].concat(),
                q("ROLLBACK TO s"),
                q(READ),
            ]),
        ),
        (
            "a batch that is refused behind a savepoint of its own",
            in_block(vec![
                [run(reset), run(set), flush()].concat(),
                [run("SAVEPOINT s"), flush()].concat(),
                [run("SELEC"), sync()].concat(),
                q("ROLLBACK TO s"),
                q(READ),
            ]),
        ),
        (
            "a batch that fails behind a COMMIT",
            vec![
                q("SET search_path = wide, public"),
                q("BEGIN"),
                q("SET LOCAL search_path = public"),
                q(&keyed),
                [run(reset), run("COMMIT"), flush()].concat(),
                [run("SELECT 1/0"), sync()].concat(),
                q(READ),
            ],
        ),
        (
            "COMMIT ends a SET LOCAL",
            vec![
                q("SET search_path = wide, public"),
                q("BEGIN"),
                q("SET LOCAL search_path = public"),
                q(&keyed),
                [run("COMMIT"), run(READ), sync()].concat(),
            ],
        ),
        (
            "ROLLBACK TO ends a SET LOCAL",
            in_block(vec![
                q("SET search_path = wide, public"),
                q("SAVEPOINT a"),
                q("SET LOCAL search_path = public"),
                [run("ROLLBACK TO a"), run(READ), sync()].concat(),
            ]),
        ),
    ] {
        wrong.extend(attack(&ward, "", true, &parts).map(|what| format!("{name}: {what}")));
    }

    // From here on servers have another default than the session's own.
    drop(ward);
    for shard in 0..4 {
        shards.psql(shard, &format!("ALTER DATABASE shard{shard} SET search_path = wide, public"));
    }
    let options = WardOptions {
        config: &[("auth", "auth_type = \"trust\""), ("listen", "insecure = true")],
        ..Default::default()
    };
    let ward = Ward::start(&shards, &options);
    let startup = "-c search_path=public";
    for (name, options, parts) in [
        ("RESET", startup, in_block(vec![q("RESET search_path"), q(READ)])),
        ("RESET ALL", startup, in_block(vec![q("RESET ALL"), q(READ)])),
        ("TO DEFAULT", startup, in_block(vec![q("SET search_path TO DEFAULT"), q(READ)])),
        ("LOCAL", startup, in_block(vec![q("SET LOCAL search_path TO DEFAULT"), q(READ)])),
        (
            "set_config NULL",
            startup,
            in_block(vec![q("SELECT set_config('search_path', NULL, true)"), q(READ)]),
        ),
        (
            "RESET before any server",
            startup,
            vec![
                q("BEGIN"),
                q("RESET search_path"),
                q(&keyed
                    .replace("count(*)", "r.*")
                    .replace("hospitals", "hospitals h, regions r")
                    .replace("WHERE id", "WHERE h.id")),
            ],
        ),
        (
            "RESET behind a read",
            "",
            vec![
                q("SET search_path = public"),
                [run(READ), run("RESET search_path"), sync()].concat(),
            ],
        ),
        (
            "SET behind a read, and not yet begun",
            "-c search_path=public",
            vec![
                q("BEGIN"),
                [
                    run("SELECT 1"),
                    run(&keyed
                        .replace("count(*)", "r.*")
                        .replace("hospitals", "hospitals h, regions r")
                        .replace("WHERE id", "WHERE h.id")),
                    run("SET LOCAL search_path = wide, public"),
                    sync(),
                ]
                .concat(),
            ],
        ),
        (
            "DISCARD behind a read",
            "",
            vec![q("SET search_path = public"), [run(READ), run("DISCARD ALL"), sync()].concat()],
        ),
    ] {
        wrong.extend(attack(&ward, options, false, &parts).map(|what| format!("{name}: {what}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
