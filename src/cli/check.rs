//! `pgward check`: a configuration with all the files that it names, before it is served.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::auth::{Methods, Users};
use crate::config::Config;
use crate::document::LoadError;
use crate::net::tls::{self, Acceptor, ServerTls};
use crate::route::Hospitals;
use crate::shard_map::{ShardMap, source};

use super::Outcome;

const JSON: &str = "With --json, {\"ok\", \"config\", \"map\", \"users\", \"problems\"}: map is null or {\"file\", \
                    \"version\", \"modulus\", \"shards\", \"hosts\", \"regions\", \"hospitals\"}; users is null or {\"file\", \
                    \"count\"}; each \
                    problem is {\"file\", \"line\", \"column\", \"message\"}, line and column null \
                    where it is about a whole file. Exit code 1 with any problem.";

#[derive(Debug, clap::Args)]
#[command(after_help = JSON)]
pub(super) struct Args {
    /// Configuration file; the shard map and the users file that it names are checked too.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What was found.
#[derive(Default)]
struct Findings {
    map: Option<(PathBuf, ShardMap)>,
    users: Option<(PathBuf, Users)>,
    problems: Vec<Finding>,
    more: usize,
}

/// A problem, with its place if it has one.
struct Finding {
    file: String,
    place: Option<(usize, usize)>,
    message: String,
}

pub(super) fn run(args: &Args) -> Outcome {
    let mut found = Findings::default();
    match Config::load(&args.config) {
        Ok(config) => found.check_files(&config),
        Err(LoadError::Read { path, source }) => {
            eprintln!("{}: {source}", path.display());
            return Outcome::WrongUse;
        }
        Err(error) => found.add(error),
    }
    if args.json {
        super::print(format_args!("{:#}", found.as_json(&args.config)));
    } else {
        found.say(&args.config);
    }
    if found.problems.is_empty() { Outcome::Yes } else { Outcome::Finding }
}

impl Findings {
    fn check_files(&mut self, config: &Config) {
        match source::load(&config.shard_map) {
            Ok(map) => self.map = Some((config.shard_map.clone(), map)),
            Err(error) => self.add(error),
        }
        match Users::load(&config.users, &config.auth) {
            Ok(users) => self.users = Some((config.users.clone(), users)),
            Err(error) => self.add(error),
        }
        if let Err(error) = Methods::load(&config.auth) {
            self.add(error);
        }
        let shards = self.map.as_ref().map(|(_, map)| map.shards()).unwrap_or_default();
        let loaded =
            [Acceptor::load(&config.tls).err(), ServerTls::load(&config.tls, shards).err()];
        let findings = loaded.into_iter().flatten();
        self.problems.extend(findings.map(|error| tls_finding(&error, &config.shard_map)));
        self.check_together(config);
    }

    /// What each file says of the others.
    fn check_together(&mut self, config: &Config) {
        let mut found = Vec::new();
        if let Some((file, map)) = &self.map {
            let problem = config.routing.region_problem(map.regions());
            found.extend(problem.map(|message| (file, message)));
        }
        if let Some((file, users)) = &self.users {
            found.extend(users.lookup_problem(&config.auth).map(|message| (file, message)));
            for name in config.admin.admin_users.iter().chain(&config.admin.stats_users) {
                if users.get(name).is_none() {
                    let message = format!("[admin] names `{name}`, who is no user here");
                    found.push((file, message));
                }
            }
        }
        if let (Some((_, map)), Some((file, users))) = (&self.map, &self.users) {
            for user in users.iter() {
                let Hospitals::Only(hospitals) = &user.rights.hospitals else { continue };
                let lost = hospitals.iter().filter_map(|hospital| map.locate(*hospital).err());
                let lost = lost.map(|error| (file, format!("user `{}`: {error}", user.name)));
                found.extend(lost);
            }
        }
        // Users come in no order.
        found.sort();
        let findings = found.into_iter().map(|(file, message)| Finding {
            file: file.display().to_string(),
            place: None,
            message,
        });
        let findings: Vec<_> = findings.collect();
        self.problems.extend(findings);
    }

    fn add(&mut self, error: LoadError) {
        match error {
            LoadError::Read { path, source } => self.problems.push(Finding {
                file: path.display().to_string(),
                place: None,
                message: source.to_string(),
            }),
            LoadError::Problems(problems) => {
                self.more += problems.more;
                self.problems.extend(problems.list.into_iter().map(|problem| Finding {
                    file: problem.file,
                    place: Some((problem.line, problem.column)),
                    message: problem.message,
                }));
            }
        }
    }

    /// Problems go to stderr, as compilers write them.
    fn say(&self, config: &Path) {
        for Finding { file, place, message } in &self.problems {
            match place {
                Some((line, column)) => eprintln!("{file}:{line}:{column}: {message}"),
                None => eprintln!("{file}: {message}"),
            }
        }
        match self.problems.len() + self.more {
            0 => super::print(format_args!("{}: ok", config.display())),
            1 => eprintln!("1 problem"),
            count => eprintln!("{count} problems"),
        }
        if let Some((file, map)) = &self.map {
            super::print(format_args!(
                "{}: ok: version {}, {} buckets, shards: {}, hosts: {}, regions: {}, hospitals \
                 listed: {}",
                file.display(),
                map.version,
                map.modulus,
                map.shards().len(),
                hosts(map),
                map.regions().join(" "),
                map.hospitals().len(),
            ));
        }
        if let Some((file, users)) = &self.users {
            super::print(format_args!("{}: ok: users: {}", file.display(), users.iter().count()));
        }
    }

    fn as_json(&self, config: &Path) -> Value {
        let problems = self.problems.iter().map(|Finding { file, place, message }| {
            let (line, column) = place.unzip();
            json!({ "file": file, "line": line, "column": column, "message": message })
        });
        let map = self.map.as_ref().map(|(file, map)| {
            json!({
                "file": file.display().to_string(),
                "version": map.version,
                "modulus": map.modulus,
                "shards": map.shards().len(),
                "hosts": hosts(map),
                "regions": map.regions(),
                "hospitals": map.hospitals().len(),
            })
        });
        json!({
            "ok": self.problems.is_empty(),
            "config": config.display().to_string(),
            "map": map,
            "users": self.users.as_ref().map(|(file, users)| {
                json!({ "file": file.display().to_string(), "count": users.iter().count() })
            }),
            "problems": problems.collect::<Value>(),
        })
    }
}

fn tls_finding(error: &tls::Error, map: &Path) -> Finding {
    let file = error.path().unwrap_or(map).display().to_string();
    let message = match error {
        tls::Error::File { why, .. } => why.clone(),
        tls::Error::Unfit { source, .. } => source.to_string(),
        tls::Error::NoAuthority(_) => error.to_string(),
    };
    Finding { file, place: None, message }
}

fn hosts(map: &ShardMap) -> usize {
    map.shards().iter().map(|shard| shard.hosts().count()).sum()
}
