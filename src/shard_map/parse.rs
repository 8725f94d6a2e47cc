//! Reads a map from TOML, and tells all that is wrong with it at once.
//!
//! First what each key says (`read_*`), then what they mean together (`check_*`, `own_buckets`,
//! `place_hospitals`). A later step is left out where an earlier one would make it guess. Shards
//! are in `draft`. The format is design section 3; `shard-maps/example.toml` shows it.

use std::collections::HashMap;

use crate::document::{self, Fields, Problems, Report, Spanned};

use super::draft::{
    MODULUS_MAX, check_hosts, check_ids, check_name, own_buckets, read_shards, shards_by_id,
};
use super::{
    HospitalId, Shard, ShardId, ShardMap, Tables, UnknownHospital, bucket, distinct_regions,
};

/// Databases that lead to the console.
const CONSOLE_DATABASES: [&str; 2] = ["pgward", "pgbouncer"];

/// A `[[hospital]]`.
struct Entry<'a> {
    id: Spanned<HospitalId>,
    shard: Option<Spanned<u64>>,
    home: Option<Spanned<&'a str>>,
}

impl ShardMap {
    /// Reads the map in `text`; `file` is how problems name it.
    pub fn parse(file: &str, text: &str) -> Result<Self, Problems> {
        let (report, document) = document::parse(file, text)?;
        let mut root = Fields::root(&report, &document);
        root.require(&["version", "modulus", "database", "key"]);
        let version = root.integer("version", 1..=i64::MAX as u64);
        let modulus = root.integer("modulus", 1..=u64::from(MODULUS_MAX));
        let modulus_span = root.span_of("modulus");
        let database = root.string("database").and_then(|name| check_name(&report, &name));
        if let Some(name) = database.as_deref().filter(|name| CONSOLE_DATABASES.contains(name)) {
            let message = format!("`{name}` is the console's database: take another name");
            report.at(&root.span_of("database"), message);
        }
        check_placement(&report, &mut root);
        let unknown_hospital = read_unknown_hospital(&report, &mut root);
        let tables = read_tables(&report, &mut root);
        let modulus = modulus.map(|modulus| *modulus.get_ref() as u32);
        let drafts = read_shards(&report, &mut root, modulus, database.as_deref());
        let entries = read_hospitals(&report, &mut root);
        if unknown_hospital == UnknownHospital::Reject && entries.is_empty() {
            let message = "\"reject\" without any [[hospital]] refuses every hospital: list them";
            report.at(&root.span_of("unknown_hospital"), message);
        }
        root.finish();

        let ids_whole = check_ids(&report, &drafts);
        check_hosts(&report, &drafts);
        let owners = modulus
            .map(|modulus| own_buckets(&report, &drafts, ids_whole, modulus, &modulus_span))
            .unwrap_or_default();
        let count = drafts.len();
        let shards = shards_by_id(drafts);
        let whole = shards.len() == count && shards.iter().zip(0..).all(|(s, id)| s.id.0 == id);
        let hospitals = if whole {
            place_hospitals(&report, &entries, &shards, &owners, modulus)
        } else {
            HashMap::default() // what a missing shard would own is a guess
        };
        report.finish(())?;
        let (Some(version), Some(modulus), Some(database)) = (version, modulus, database) else {
            unreachable!("what is missing was reported")
        };
        Ok(Self {
            version: version.into_inner(),
            modulus,
            database,
            tables,
            unknown_hospital,
            owners,
            hospitals,
            regions: distinct_regions(&shards),
            shards,
        })
    }
}

fn check_placement(report: &Report<'_>, root: &mut Fields<'_, '_>) {
    let Some(placement) = root.string("placement") else { return };
    let message = match *placement.get_ref() {
        "modulo" => return,
        "consistent-hash" => {
            "placement \"consistent-hash\" is not available yet: use \"modulo\"".to_owned()
        }
        other => format!("no placement is called \"{other}\": use \"modulo\""),
    };
    report.at(&placement.span(), message);
}

fn read_unknown_hospital(report: &Report<'_>, root: &mut Fields<'_, '_>) -> UnknownHospital {
    let Some(said) = root.string("unknown_hospital") else { return UnknownHospital::default() };
    match *said.get_ref() {
        "route" => UnknownHospital::Route,
        "reject" => UnknownHospital::Reject,
        other => {
            let message = format!("`unknown_hospital` is \"route\" or \"reject\", not \"{other}\"");
            report.at(&said.span(), message);
            UnknownHospital::default()
        }
    }
}

fn read_tables(report: &Report<'_>, root: &mut Fields<'_, '_>) -> Tables {
    let mut tables = Tables::default();
    let mut declared: HashMap<String, usize> = HashMap::new();
    let mut declare = |name: Spanned<&str>| {
        let text = *name.get_ref();
        let parts: Vec<&str> = text.split('.').collect();
        if parts.len() != 2 || parts.iter().any(|part| part.is_empty()) {
            report.at(&name.span(), format!("write the table `{text}` as schema.table"));
            return None;
        }
        let line = report.line(&name.span());
        if let Some(before) = declared.insert(text.to_owned(), line) {
            report.at(&name.span(), format!("table `{text}` is declared already (line {before})"));
        }
        Some(text.to_owned())
    };
    if let Some(mut key) = root.table("key", "`key`") {
        key.require(&["column"]);
        if let Some(column) = key.string("column") {
            if column.get_ref().is_empty() {
                report.at(&column.span(), "the key column needs a name");
            }
            tables.key_column = column.into_inner().to_owned();
        }
        for (table, column) in key.pairs("tables") {
            if column.get_ref().is_empty() {
                report.at(&column.span(), "the key column needs a name");
            }
            let column = column.into_inner().to_owned();
            tables.key_tables.extend(declare(table).map(|table| (table, column)));
        }
        key.finish();
    }
    for table in root.strings("reference") {
        tables.reference.extend(declare(table));
    }
    tables
}

fn read_hospitals<'a>(report: &Report<'_>, root: &mut Fields<'a, '_>) -> Vec<Entry<'a>> {
    let mut lines: HashMap<HospitalId, usize> = HashMap::new();
    let mut entries = Vec::new();
    for mut table in root.tables("hospital", "[[hospital]]") {
        table.require(&["id"]);
        let id = table.string("id");
        let shard = table.integer("shard", 0..=u64::from(u16::MAX));
        let home = table.string("home");
        table.finish();
        let Some(id) = id else { continue };
        let Some(hospital) = HospitalId::parse(id.get_ref()) else {
            report.at(&id.span(), format!("`{}` is not a UUID", id.get_ref()));
            continue;
        };
        if let Some(before) = lines.insert(hospital, report.line(&id.span())) {
            let message = format!("hospital {hospital} is listed already (line {before})");
            report.at(&id.span(), message);
        }
        entries.push(Entry { id: Spanned::new(id.span(), hospital), shard, home });
    }
    entries
}

/// Each listed hospital's shard, in its home region if it has one.
fn place_hospitals(
    report: &Report<'_>,
    entries: &[Entry<'_>],
    shards: &[Shard],
    owners: &[ShardId],
    modulus: Option<u32>,
) -> HashMap<HospitalId, ShardId, foldhash::quality::RandomState> {
    let regions = distinct_regions(shards);
    let buckets_known = modulus == Some(owners.len() as u32);
    let mut hospitals =
        HashMap::with_capacity_and_hasher(entries.len(), foldhash::quality::RandomState::default());
    for Entry { id, shard, home } in entries {
        let hospital = *id.get_ref();
        let bucket = modulus.map(|modulus| bucket(hospital, modulus));
        let owner = bucket.filter(|_| buckets_known).and_then(|b| owners.get(b as usize));
        let owner = owner.map(|owner| u64::from(owner.0));
        let Some(wanted) = shard.as_ref().map(|shard| *shard.get_ref()).or(owner) else { continue };
        let Some(found) = shards.get(wanted as usize) else {
            let span = shard.as_ref().map_or(id.span(), Spanned::span);
            // Where there is none at all, that has been told.
            if let Some(last) = shards.len().checked_sub(1) {
                report.at(&span, format!("there is no shard {wanted}: the last is {last}"));
            }
            continue;
        };
        hospitals.insert(hospital, found.id);
        let Some(home) = home else { continue };
        let name = *home.get_ref();
        if !regions.iter().any(|region| region == name) {
            let message = format!("there is no region `{name}`; there are: {}", regions.join(", "));
            report.at(&home.span(), message);
        } else if found.region != name {
            let message = format!(
                "hospital {hospital} has its home in {name} but lands in {} (shard {}): \
                 give it a `shard` of {name}",
                found.region, found.id
            );
            report.at(&home.span(), message);
        }
    }
    hospitals
}
