//! `pgward route`: where a statement would go, decided offline from a map and a schema file.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::route::explain::{Row, explain, refusal_rows};
use crate::route::{Block, GuardMode, Hospitals, Rights, SessionView, TextValues, refuse_text};
use crate::shard_map::{HospitalId, ShardMap};
use crate::sql::{Analyzer, Catalog, Context, Declared, schema_facts};

use super::Outcome;

const HELP: &str = "Prints the hospital, where each key was found, bucket, shard, region, role, and why; \
                    or the refusal. With --json, one object: {\"routed\", \"statement\", \"keys\", ...}. \
                    Exit code 1 if it is refused.";

#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(super) struct Args {
    /// Shard map file.
    #[arg(long, value_name = "FILE")]
    map: PathBuf,
    /// Schema file: its CREATE TABLE statements say which tables have the key.
    #[arg(long, value_name = "FILE")]
    schema: PathBuf,
    /// What a statement must say: strict or route.
    #[arg(long, value_name = "MODE", default_value = "strict", value_parser = parse_guard)]
    guard: GuardMode,
    /// Decide as for a login of this hospital; give it again for a login of several.
    #[arg(long, value_name = "ID", value_parser = parse_hospital)]
    login_hospital: Vec<HospitalId>,
    /// Decide as after SET pgward.hospital_id.
    #[arg(long, value_name = "ID", value_parser = parse_hospital)]
    session_hospital: Option<HospitalId>,
    /// Value of $1, then of $2, ..., as text.
    #[arg(long, value_name = "VALUE")]
    param: Vec<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// The statement.
    #[arg(value_name = "SQL")]
    sql: String,
}

fn parse_guard(text: &str) -> Result<GuardMode, &'static str> {
    match text {
        "strict" => Ok(GuardMode::Strict),
        "route" => Ok(GuardMode::Route),
        _ => Err("strict or route"),
    }
}

fn parse_hospital(text: &str) -> Result<HospitalId, &'static str> {
    HospitalId::parse(text).ok_or("not a UUID, such as f47ac10b-58cc-4372-a567-0e02b2c3d479")
}

pub(super) fn run(args: &Args) -> Outcome {
    let map = match super::load_map(&args.map) {
        Ok(map) => map,
        Err(outcome) => return outcome,
    };
    let catalog = match read_catalog(args, &map) {
        Ok(catalog) => Arc::new(catalog),
        Err(problem) => {
            eprintln!("{}: {problem}", args.schema.display());
            return Outcome::WrongUse;
        }
    };
    let (is_routed, rows) = decide(args, &map, &catalog);
    if args.json {
        super::print(format_args!("{:#}", as_json(is_routed, &rows)));
    } else {
        let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
        for (name, value) in &rows {
            super::print(format_args!("{name:<width$}  {value}"));
        }
    }
    if is_routed { Outcome::Yes } else { Outcome::Finding }
}

fn read_catalog(args: &Args, map: &ShardMap) -> Result<Catalog, String> {
    let text = std::fs::read_to_string(&args.schema).map_err(|error| error.to_string())?;
    let facts = schema_facts(&text).map_err(|error| error.to_string())?;
    let tables = &map.tables;
    let declared = Declared::new(
        &tables.key_column,
        &tables.key_tables,
        &tables.reference,
        &[],
        map.shards().len() == 1,
    );
    Ok(Catalog::build(1, &[facts], &declared))
}

/// Whether it has a route, and the rows that say which and why.
fn decide(args: &Args, map: &ShardMap, catalog: &Arc<Catalog>) -> (bool, Vec<Row>) {
    let analyzer = Analyzer::new(0, 0);
    let context = Context { catalog, search_path: "public", role: "", param_types: &[] };
    let analyzed = match analyzer.analyze(&args.sql, &context) {
        Ok(analyzed) => analyzed,
        Err(error) => return (false, refusal_rows(&refuse_text(&error))),
    };
    let rights = Rights {
        hospitals: match args.login_hospital.as_slice() {
            [] => Hospitals::Any,
            list => Hospitals::Only(list.to_vec()),
        },
        ..Rights::default()
    };
    let session = SessionView {
        rights: &rights,
        hospital: args.session_hospital,
        transaction: None,
        pinned: None,
        temporary: None,
        block: Block::None,
        guard: args.guard,
    };
    let params: Vec<_> = args.param.iter().map(|text| (0, Some(text.as_bytes()))).collect();
    let values = TextValues { lexed: &analyzed.lexed, params: &params };
    let explanation = explain(&analyzed.analysis, &values, &session, map);
    (explanation.route.is_ok(), explanation.rows)
}

/// One object; `keys` is a list, for there may be several.
fn as_json(is_routed: bool, rows: &[Row]) -> Value {
    let mut object = Map::new();
    object.insert("routed".to_owned(), is_routed.into());
    let keys: Vec<&str> =
        rows.iter().filter(|(name, _)| *name == "key").map(|(_, value)| value.as_str()).collect();
    object.insert("keys".to_owned(), keys.into());
    for (name, value) in rows.iter().filter(|(name, _)| *name != "key") {
        let number = value.parse::<u32>().ok().filter(|_| matches!(*name, "bucket" | "shard"));
        object.insert((*name).to_owned(), number.map_or(value.as_str().into(), Value::from));
    }
    Value::Object(object)
}
