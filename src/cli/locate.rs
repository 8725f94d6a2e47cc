//! `pgward locate`: which shard each hospital is on, read from a map file.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::shard_map::{HospitalId, Shard, ShardMap};

use super::Outcome;

const JSON: &str = "With --json, an array with an object for each ID, in their order: {\"hospital\", \
                    \"bucket\", \"shard\", \"region\", \"override\", \"primary\", \"database\"} or \
                    {\"input\", \"error\"}. Exit code 1 if one of them has no shard.";

#[derive(Debug, clap::Args)]
#[command(after_help = JSON)]
pub(super) struct Args {
    /// Shard map file.
    #[arg(long, value_name = "FILE")]
    map: PathBuf,
    /// Hospital ids, in any spelling of Postgres's uuid type.
    #[arg(value_name = "ID", required = true)]
    ids: Vec<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Where a hospital is.
struct Located<'a> {
    hospital: HospitalId,
    bucket: u32,
    shard: &'a Shard,
    is_override: bool,
}

pub(super) fn run(args: &Args) -> Outcome {
    let map = match super::load_map(&args.map) {
        Ok(map) => map,
        Err(outcome) => return outcome,
    };
    let results: Vec<_> = args.ids.iter().map(|text| (text, locate(&map, text))).collect();
    if args.json {
        let facts = results.iter().map(|(input, result)| match result {
            Ok(located) => as_json(located),
            Err(error) => json!({ "input": input, "error": error }),
        });
        super::print(format_args!("{:#}", facts.collect::<Value>()));
    } else {
        for (input, result) in &results {
            match result {
                Ok(located) => super::print(located),
                Err(error) => eprintln!("{input}: {error}"),
            }
        }
    }
    match results.iter().all(|(_, result)| result.is_ok()) {
        true => Outcome::Yes,
        false => Outcome::Finding,
    }
}

fn locate<'a>(map: &'a ShardMap, text: &str) -> Result<Located<'a>, String> {
    let hospital = HospitalId::parse(text)
        .ok_or("not a UUID, such as f47ac10b-58cc-4372-a567-0e02b2c3d479")?;
    let shard = map.locate(hospital).map_err(|error| error.to_string())?;
    let shard = map.shard(shard).ok_or("its shard is not in the map")?;
    let (bucket, is_override) = (map.bucket(hospital), map.is_override(hospital));
    Ok(Located { hospital, bucket, shard, is_override })
}

impl std::fmt::Display for Located<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { hospital, bucket, shard, is_override } = self;
        let Shard { id, region, primary, database, .. } = shard;
        write!(f, "{hospital}  bucket {bucket}  shard {id}  {region}  {primary}/{database}")?;
        if *is_override { f.write_str("  (override)") } else { Ok(()) }
    }
}

fn as_json(located: &Located<'_>) -> Value {
    let Located { hospital, bucket, shard, is_override } = located;
    json!({
        "hospital": hospital.to_string(),
        "bucket": bucket,
        "shard": shard.id.0,
        "region": shard.region,
        "override": is_override,
        "primary": shard.primary.to_string(),
        "database": shard.database,
    })
}
