//! Rules of `decide` over analyses made by hand; statements in SQL are in `tests/golden/route`.

use std::borrow::Cow;

use proptest::prelude::*;

use super::keys::read;
use super::*;
use crate::shard_map::{Address, Shard, ShardMap};
use crate::sql::{
    Access, Analysis, Effect, KeySource, ParamKind, Problem, ProblemKind, ShardedUse, Statement,
};

/// Parameters and literals of one execution.
#[derive(Default)]
struct Given<'a> {
    params: Vec<(i16, Option<Vec<u8>>)>,
    literals: Vec<&'a str>,
    hint: Option<&'a str>,
}

impl Values for Given<'_> {
    fn param(&self, n: u16) -> Option<(i16, Option<&[u8]>)> {
        let (format, value) = self.params.get(usize::from(n).checked_sub(1)?)?;
        Some((*format, value.as_deref()))
    }

    fn literal(&self, slot: u16) -> Option<Cow<'_, str>> {
        self.literals.get(usize::from(slot)).map(|text| Cow::Borrowed(*text))
    }

    fn hint(&self) -> Result<Option<&str>, ()> {
        Ok(self.hint)
    }
}

/// Hospital `n` is in bucket `n`: on shard `n` of a map of 100.
fn hospital(n: u128) -> HospitalId {
    HospitalId(uuid::Uuid::from_u128(n))
}

fn map_of(shards: u16) -> ShardMap {
    let shard = |id| Shard {
        id: ShardId(id),
        region: "europe".into(),
        primary: Address { host: "pg".into(), port: 5432 + id },
        replicas: Vec::new(),
        database: "hospital".into(),
        tls: Default::default(),
    };
    ShardMap::even(100, "hospital", (0..shards).map(shard).collect())
}

fn used(keys: &[KeySource]) -> ShardedUse {
    ShardedUse { relation: "visits".into(), column: "hospital_id".into(), keys: keys.to_vec() }
}

fn select(sharded: Vec<ShardedUse>) -> Statement {
    Statement {
        command: "SELECT",
        access: Access::Read,
        sharded,
        per_shard: None,
        problems: Vec::new(),
        effect: Effect::None,
        unknown_names: false,
        executes: None,
        copy_in: None,
        temporary: None,
    }
}

fn update(sharded: Vec<ShardedUse>) -> Statement {
    Statement { command: "UPDATE", access: Access::Write("UPDATE".into()), ..select(sharded) }
}

fn problem(kind: ProblemKind) -> Statement {
    let problem = Problem { kind, subject: "the thing".into(), hint: "" };
    Statement { problems: vec![problem], ..select(Vec::new()) }
}

fn session(rights: &Rights, guard: GuardMode) -> SessionView<'_> {
    SessionView {
        rights,
        hospital: None,
        transaction: None,
        pinned: None,
        temporary: None,
        block: Block::None,
        guard,
    }
}

fn run(
    statements: &[Statement],
    values: &Given<'_>,
    session: &SessionView<'_>,
    shards: u16,
) -> String {
    let analysis = Analysis { statements: statements.to_vec() };
    match decide(&analysis, values, session, &map_of(shards)) {
        Ok(Route::One { hospital, shard, role }) => {
            let hospital = hospital.map_or("-".into(), |h| h.0.as_u128().to_string());
            format!("{hospital} {shard} {role:?}")
        }
        Ok(Route::Any { role }) => format!("any {role:?}"),
        Err(refusal) => refusal.sqlstate.to_owned(),
    }
}

fn param(n: u128) -> Given<'static> {
    Given { params: vec![(1, Some(hospital(n).0.as_bytes().to_vec()))], ..Given::default() }
}

const KEYED: &[KeySource] = &[KeySource::Param(1, ParamKind::Uuid)];

/// All hospitals that `key` names, NULL as 0; `None` where it is refused.
fn read_all(key: KeySource, values: &Given<'_>) -> Option<Vec<u128>> {
    let mut found = Vec::new();
    read(key, values, |value| found.push(value.map_or(0, |h| h.0.as_u128()))).ok()?;
    Some(found)
}

#[test]
fn parameters_are_read_by_kind_and_format() {
    let text = "00000000-0000-0000-0000-00000000002a".as_bytes();
    let id = hospital(42);
    let binary = id.0.as_bytes().as_slice();
    for (kind, format, bytes, want) in [
        (ParamKind::Uuid, 0, Some(text), Some(42)),
        (ParamKind::Uuid, 1, Some(binary), Some(42)),
        (ParamKind::Uuid, 0, Some(binary), None),
        (ParamKind::Uuid, 1, Some(text), None),
        (ParamKind::Uuid, 1, Some(&binary[..15]), None),
        (ParamKind::Uuid, 2, Some(binary), None),
        (ParamKind::Uuid, -1, Some(text), None),
        (ParamKind::Uuid, 0, None, Some(0)),
        (ParamKind::Text, 0, Some(text), Some(42)),
        (ParamKind::Text, 1, Some(text), Some(42)),
        (ParamKind::Text, 1, Some(binary), None),
        (ParamKind::Text, 0, Some(b"nonsense"), None),
        (ParamKind::Text, 0, Some(b""), None),
        (ParamKind::Text, 0, Some(b"\xff\xfe"), None),
    ] {
        let values =
            Given { params: vec![(format, bytes.map(<[u8]>::to_vec))], ..Given::default() };
        let got = read_all(KeySource::Param(1, kind), &values);
        assert_eq!(got, want.map(|n| vec![n]), "{kind:?} {format} {bytes:?}");
    }
    assert_eq!(read_all(KeySource::Param(2, ParamKind::Uuid), &Given::default()), None);
}

#[test]
fn text_arrays_as_postgres_reads_them() {
    let one = "00000000-0000-0000-0000-000000000001";
    let two = "00000000000000000000000000000002";
    for (text, want) in [
        (format!("{{{one},{two}}}"), Some(vec![1, 2])),
        (format!(" {{ {one} , \"{two}\" , NULL , null }} "), Some(vec![1, 2, 0, 0])),
        (format!("{{\"{{{one}}}\"}}"), Some(vec![1])),
        ("{}".to_owned(), Some(vec![])),
        (" { } ".to_owned(), Some(vec![])),
        ("{\"NULL\"}".to_owned(), None),
        (format!("{{{one}"), None),
        (format!("{{{one}}}x"), None),
        (format!("{{{one},}}"), None),
        (format!("{{,{one}}}"), None),
        (format!("{{{{{one}}}}}"), None),
        (format!("[0:0]={{{one}}}"), None),
        (format!("{{\"{one}}}"), None),
        (format!("{{\"{one}\"x}}"), None),
        (format!("{{\\{one}}}"), None),
        ("".to_owned(), None),
        ("{".to_owned(), None),
    ] {
        let values = Given { literals: vec![&text], ..Given::default() };
        assert_eq!(read_all(KeySource::SlotArray(0), &values), want, "{text}");
        let params = vec![(0, Some(text.clone().into_bytes()))];
        let values = Given { params, ..Given::default() };
        assert_eq!(read_all(KeySource::ParamArray(1, ParamKind::Uuid), &values), want, "{text}");
    }
}

fn binary_array(of: i32, elements: &[Option<&[u8]>]) -> Vec<u8> {
    let count = i32::try_from(elements.len()).unwrap();
    let mut bytes = Vec::new();
    for field in [1, 1, of, count, 1] {
        bytes.extend_from_slice(&i32::to_be_bytes(field));
    }
    for element in elements {
        let length = element.map_or(-1, |bytes| i32::try_from(bytes.len()).unwrap());
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(element.unwrap_or_default());
    }
    bytes
}

#[test]
fn binary_arrays_as_postgres_sends_them() {
    let (one, two) = (hospital(1), hospital(2));
    let good = binary_array(2950, &[Some(one.0.as_bytes()), None, Some(two.0.as_bytes())]);
    let read = |bytes: &[u8], kind| {
        let params = vec![(1, Some(bytes.to_vec()))];
        read_all(KeySource::ParamArray(1, kind), &Given { params, ..Given::default() })
    };
    assert_eq!(read(&good, ParamKind::Uuid), Some(vec![1, 0, 2]));
    assert_eq!(read(&good, ParamKind::Text), None);
    let text = binary_array(25, &[Some(one.to_string().as_bytes())]);
    assert_eq!(read(&text, ParamKind::Text), Some(vec![1]));
    assert_eq!(read(&text, ParamKind::Uuid), None);
    let empty: Vec<u8> = [0, 0, 2950].iter().flat_map(|n| i32::to_be_bytes(*n)).collect();
    assert_eq!(read(&empty, ParamKind::Uuid), Some(vec![]));
    for end in 0..good.len() {
        assert_eq!(read(&good[..end], ParamKind::Uuid), None, "cut at {end}");
    }
    let mut longer = good.clone();
    longer.push(0);
    assert_eq!(read(&longer, ParamKind::Uuid), None);
    for (at, bytes) in [(0, 2_i32), (0, -1), (12, -1), (12, i32::MAX), (20, -2)] {
        let mut bad = good.clone();
        bad[at..at + 4].copy_from_slice(&bytes.to_be_bytes());
        assert_eq!(read(&bad, ParamKind::Uuid), None, "{bytes} at {at}");
    }
}

#[test]
fn an_open_transaction_keeps_its_shard_and_role() {
    let rights = Rights::default();
    let bound = |role| Some(Bound { hospital: Some(hospital(42)), shard: ShardId(42), role });
    let (read, write) = (select(vec![used(KEYED)]), update(vec![used(KEYED)]));
    let plain = select(vec![]);
    for (statement, n, block, role, want) in [
        (&read, 42, Block::ReadWrite, Role::Primary, "42 42 Primary"),
        (&read, 42, Block::ReadOnly, Role::Replica, "42 42 Replica"),
        // The replica's own 25006 is the truth.
        (&write, 42, Block::ReadOnly, Role::Replica, "42 42 Replica"),
        (&plain, 42, Block::ReadWrite, Role::Primary, "42 42 Primary"),
        (&read, 7, Block::ReadWrite, Role::Primary, "PW003"),
        // A batch before its Sync that read first.
        (&read, 42, Block::None, Role::Replica, "42 42 Replica"),
        (&write, 42, Block::None, Role::Replica, "42 42 Primary"),
        (&read, 42, Block::None, Role::Primary, "42 42 Replica"),
    ] {
        let session =
            SessionView { transaction: bound(role), block, ..session(&rights, GuardMode::Strict) };
        // A held primary is never given up for a replica.
        let want =
            if role == Role::Primary { want.replace("Replica", "Primary") } else { want.into() };
        let got = run(std::slice::from_ref(statement), &param(n), &session, 100);
        assert_eq!(got, want, "{} {n} {block:?} {role:?}", statement.command);
    }
}

#[test]
fn before_it_has_a_hospital_a_block_runs_only_what_has_no_effect() {
    let rights = Rights::default();
    let plain = select(vec![]);
    let volatile = Statement { access: Access::Write("function random".into()), ..plain.clone() };
    let show = Statement { command: "SHOW", effect: Effect::Show("x".into()), ..plain.clone() };
    let snapshot = Block::Snapshot { read_only: true, serializable: false };
    for (statement, block, want) in [
        (&plain, Block::None, "any Replica"),
        (&plain, Block::ReadWrite, "any Primary"),
        (&plain, Block::ReadOnly, "any Replica"),
        (&plain, snapshot, "PW001"),
        (&show, snapshot, "any Primary"),
        (&show, Block::None, "any Primary"),
        (&volatile, Block::None, "any Primary"),
        (&volatile, Block::ReadWrite, "PW001"),
        (&volatile, Block::ReadOnly, "PW001"),
    ] {
        let mut view = SessionView { block, ..session(&rights, GuardMode::Strict) };
        let statement = std::slice::from_ref(statement);
        assert_eq!(run(statement, &Given::default(), &view, 100), want, "{statement:?} {block:?}");
        view.hospital = Some(hospital(42));
        assert!(run(statement, &Given::default(), &view, 100).starts_with("42 42"));
    }
}

#[test]
fn serializable_needs_the_primary() {
    let rights = Rights::default();
    for (read_only, serializable, want) in [
        (true, false, "42 42 Replica"),
        (true, true, "42 42 Primary"),
        (false, false, "42 42 Primary"),
    ] {
        let block = Block::Snapshot { read_only, serializable };
        let view = SessionView { block, ..session(&rights, GuardMode::Strict) };
        assert_eq!(run(&[select(vec![used(KEYED)])], &param(42), &view, 100), want);
    }
}

#[test]
fn one_shard_with_guard_route_has_nothing_to_guard() {
    let any = Rights::default();
    let only = Rights { hospitals: Hospitals::Only(vec![hospital(1), hospital(2)]), ..any.clone() };
    let keyless = select(vec![used(&[])]);
    let two = select(vec![used(&[KeySource::Slot(0), KeySource::Slot(1)])]);
    let text = [hospital(1).to_string(), hospital(2).to_string()];
    let values = Given { literals: vec![&text[0], &text[1]], ..Given::default() };
    for (statements, open, strict, restricted) in [
        (vec![keyless], "- 0 Replica", "PW001", "PW001"),
        (vec![two], "- 0 Replica", "PW003", "PW003"),
        (vec![problem(ProblemKind::Unsupported)], "- 0 Primary", "0A000", "0A000"),
        (vec![problem(ProblemKind::Undeclared)], "- 0 Primary", "PW004", "PW004"),
        (vec![problem(ProblemKind::ReadsUnkeyed)], "- 0 Primary", "42501", "- 0 Primary"),
        (vec![update(vec![])], "- 0 Primary", "- 0 Primary", "- 0 Primary"),
    ] {
        let got =
            |rights, guard, shards| run(&statements, &values, &session(rights, guard), shards);
        assert_eq!(got(&any, GuardMode::Route, 1), open, "{statements:?}");
        assert_eq!(got(&any, GuardMode::Strict, 1), strict, "{statements:?}");
        assert_eq!(got(&only, GuardMode::Route, 1), restricted, "{statements:?}");
        // A session that named its hospital asked for the guard.
        let mut bound = session(&any, GuardMode::Route);
        bound.hospital = Some(hospital(3));
        let want = match open {
            "- 0 Replica" if statements[0].sharded[0].keys.is_empty() => "3 0 Replica",
            "- 0 Replica" => "PW003",
            _ => "3 0 Primary",
        };
        assert_eq!(run(&statements, &values, &bound, 1), want, "{statements:?}");
    }
}

#[test]
fn crossing_logins_hear_what_is_missing_yet() {
    let rights = |cross_hospital| Rights { cross_hospital, ..Rights::default() };
    let (read, write) = (rights(CrossHospital::Read), rights(CrossHospital::Write));
    for (statement, with_read, with_write, one_shard) in [
        (select(vec![used(&[])]), "0A000", "0A000", "- 0 Replica"),
        (update(vec![used(&[])]), "PW001", "0A000", "PW001"),
    ] {
        let statement = [statement];
        let values = Given::default();
        let got =
            |rights, shards| run(&statement, &values, &session(rights, GuardMode::Strict), shards);
        assert_eq!(got(&read, 100), with_read);
        assert_eq!(got(&write, 100), with_write);
        assert_eq!(got(&read, 1), one_shard);
        let tied =
            SessionView { hospital: Some(hospital(1)), ..session(&write, GuardMode::Strict) };
        assert_eq!(run(&statement, &values, &tied, 100), "PW001");
    }
}

#[test]
fn null_is_no_key() {
    let rights = Rights::default();
    let view = session(&rights, GuardMode::Strict);
    let keys = [KeySource::Param(1, ParamKind::Uuid), KeySource::Param(2, ParamKind::Uuid)];
    let values = Given { params: vec![param(1).params[0].clone(), (0, None)], ..Given::default() };
    let null = Given { params: vec![(0, None)], ..Given::default() };
    assert_eq!(run(&[select(vec![used(&keys)])], &values, &view, 100), "1 1 Replica");
    assert_eq!(run(&[update(vec![used(&keys)])], &values, &view, 100), "PW001");
    assert_eq!(run(&[select(vec![used(KEYED)])], &null, &view, 100), "PW001");
}

/// A statement whose sharded uses have the given hospitals as literals.
fn arbitrary_uses() -> impl Strategy<Value = Vec<Vec<u8>>> {
    prop::collection::vec(prop::collection::vec(1..6_u8, 0..3), 0..4)
}

proptest! {
    /// Invariant: a routed request touches one hospital, that the login may reach, on its shard.
    #[test]
    fn ok_means_one_reachable_hospital(
        uses in arbitrary_uses(),
        split in 0..4_usize,
        allowed in prop::option::of(prop::collection::vec(1..6_u8, 0..3)),
        chosen in prop::option::of(1..6_u8),
        hint in prop::option::of(1..6_u8),
        bound in prop::option::of(1..6_u8),
        is_strict: bool,
        is_write: bool,
        shards in prop::sample::select(vec![1_u16, 2, 100]),
    ) {
        let rights = Rights {
            hospitals: match &allowed {
                Some(list) => Hospitals::Only(list.iter().map(|n| hospital((*n).into())).collect()),
                None => Hospitals::Any,
            },
            ..Rights::default()
        };
        let texts: Vec<String> =
            uses.iter().flatten().map(|n| hospital((*n).into()).to_string()).collect();
        let hint_text = hint.map(|n| hospital(n.into()).to_string());
        let values = Given {
            literals: texts.iter().map(String::as_str).collect(),
            hint: hint_text.as_deref(),
            ..Given::default()
        };
        let mut slot = 0;
        let all: Vec<ShardedUse> = uses
            .iter()
            .map(|keys| {
                let slots = slot..slot + keys.len() as u16;
                slot = slots.end;
                used(&slots.map(KeySource::Slot).collect::<Vec<_>>())
            })
            .collect();
        let (first, second) = all.split_at(split.min(all.len()));
        let make = if is_write { update } else { select };
        // A keyless statement beside: it must follow, not lead.
        let statements = vec![make(first.to_vec()), select(second.to_vec())];
        let map = map_of(shards);
        let view = SessionView {
            rights: &rights,
            hospital: chosen.map(|n| hospital(n.into())),
            transaction: bound.map(|n| Bound {
                hospital: Some(hospital(n.into())),
                shard: map.locate(hospital(n.into())).unwrap(),
                role: Role::Primary,
            }),
            pinned: None,
            temporary: None,
            block: if bound.is_some() { Block::ReadWrite } else { Block::None },
            guard: if is_strict { GuardMode::Strict } else { GuardMode::Route },
        };
        let Ok(route) = decide(&Analysis { statements }, &values, &view, &map) else {
            return Ok(());
        };
        let is_open = shards == 1
            && !is_strict && allowed.is_none() && chosen.is_none() && hint.is_none();
        let mut touched: Vec<u8> =
            uses.iter().flatten().copied().chain(chosen).chain(hint).chain(bound).collect();
        touched.sort_unstable();
        touched.dedup();
        if is_open {
            return Ok(());
        }
        prop_assert!(touched.len() <= 1, "several hospitals: {touched:?}");
        let is_keyless = uses.iter().any(Vec::is_empty);
        prop_assert!(!(is_strict && is_keyless), "keyless in strict mode");
        match route {
            Route::Any { .. } => {
                prop_assert!(uses.is_empty() && touched.is_empty());
            }
            Route::One { hospital: None, .. } => {
                prop_assert!(uses.is_empty() && shards == 1);
            }
            Route::One { hospital: Some(to), shard, role } => {
                prop_assert_eq!(map.locate(to).unwrap(), shard);
                prop_assert!(touched.iter().all(|n| hospital((*n).into()) == to));
                prop_assert!(!is_write || role == Role::Primary);
                // A transaction may outlive a change of rights; everything else is checked here.
                if let Some(list) = &allowed && bound.is_none() {
                    prop_assert!(list.iter().any(|n| hospital((*n).into()) == to));
                }
            }
        }
    }

    /// Bytes from outside never panic, whatever they are.
    #[test]
    fn any_bytes_are_read_or_refused(
        bytes: Vec<u8>,
        format in -1..3_i16,
        is_array: bool,
        is_text: bool,
    ) {
        let kind = if is_text { ParamKind::Text } else { ParamKind::Uuid };
        let key = if is_array { KeySource::ParamArray(1, kind) } else { KeySource::Param(1, kind) };
        let params = vec![(format, Some(bytes))];
        let _ = read_all(key, &Given { params, ..Given::default() });
    }

    /// What Postgres would send for an array is read back.
    #[test]
    fn arrays_round_trip(ids in prop::collection::vec(prop::option::of(1_u128..), 0..9)) {
        let elements: Vec<_> = ids.iter().map(|id| id.map(hospital)).collect();
        let bytes: Vec<_> = elements.iter().map(|h| h.as_ref().map(|h| h.0.as_bytes().as_slice())).collect();
        let want: Vec<u128> = ids.iter().map(|id| id.unwrap_or(0)).collect();
        let params = vec![(1, Some(binary_array(2950, &bytes)))];
        let key = KeySource::ParamArray(1, ParamKind::Uuid);
        prop_assert_eq!(read_all(key, &Given { params, ..Given::default() }), Some(want.clone()));
        let text: Vec<_> = elements.iter().map(|h| h.map_or("NULL".into(), |h| h.to_string())).collect();
        let text = format!("{{{}}}", text.join(","));
        let params = vec![(0, Some(text.into_bytes()))];
        prop_assert_eq!(read_all(key, &Given { params, ..Given::default() }), Some(want));
    }
}
