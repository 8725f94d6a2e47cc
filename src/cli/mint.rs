//! `pgward mint`: new hospital ids that land in a region.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::shard_map::{HospitalId, ShardMap, UnknownHospital, UuidVersion, mint};

use super::Outcome;

const JSON: &str = "With --json, an array of {\"hospital\", \"bucket\", \"shard\", \"region\"}.";

#[derive(Debug, clap::Args)]
#[command(after_help = JSON)]
pub(super) struct Args {
    /// Shard map file.
    #[arg(long, value_name = "FILE")]
    map: PathBuf,
    /// Region that the hospitals are to be in.
    #[arg(long)]
    region: String,
    /// How many.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    count: u32,
    /// Make random UUIDs (v4) instead of those that rise with time (v7).
    #[arg(long)]
    v4: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Outcome {
    let map = match super::load_map(&args.map) {
        Ok(map) => map,
        Err(outcome) => return outcome,
    };
    let version = if args.v4 { UuidVersion::V4 } else { UuidVersion::V7 };
    let draw = |_| mint(&map, &args.region, version, unix_ms(), rand::random);
    let minted = match (0..args.count).map(draw).collect::<Result<Vec<_>, _>>() {
        Ok(minted) => minted,
        Err(error) => {
            eprintln!("{error}");
            return Outcome::Finding;
        }
    };
    if args.json {
        let facts = minted.iter().map(|hospital| as_json(&map, *hospital, &args.region));
        super::print(format_args!("{:#}", facts.collect::<Value>()));
    } else {
        let lines: Vec<_> = minted.iter().map(HospitalId::to_string).collect();
        super::print(lines.join("\n"));
    }
    if map.unknown_hospital == UnknownHospital::Reject {
        eprintln!(
            "{} refuses hospitals that it does not list: add each as [[hospital]], raise \
             `version`, and reload",
            args.map.display()
        );
    }
    Outcome::Yes
}

fn as_json(map: &ShardMap, hospital: HospitalId, region: &str) -> Value {
    let bucket = map.bucket(hospital);
    json!({
        "hospital": hospital.to_string(),
        "bucket": bucket,
        "shard": map.owner(bucket).map(|shard| shard.0),
        "region": region,
    })
}

/// A clock before 1970 makes ids of 1970: still unique, by their random bits.
fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
