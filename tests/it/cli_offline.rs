//! The subcommands that need no server: check, locate, mint; and what they say to scripts.
//!
//! Also whether hospital ids are read exactly as a real Postgres reads its uuid type.

use std::path::PathBuf;
use std::process::{Command, Output};

use pgward::shard_map::HospitalId;
use serde_json::Value;

use crate::support;

/// Runs the binary in the repository's root: (exit code, stdout, stderr).
fn pgward(args: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_pgward"))
        .args(args)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("the binary runs");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (status.code().expect("an exit code"), text(stdout), text(stderr))
}

fn json(stdout: &str) -> Value {
    serde_json::from_str(stdout).unwrap_or_else(|error| panic!("{error}: {stdout}"))
}

/// A directory that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("pgward-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, text).expect("write");
        path.display().to_string()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const MAP: &str = "version = 1\nmodulus = 100\ndatabase = \"hospital\"\n\
    key = { column = \"hospital_id\" }\n[[shard]]\nid = 0\nregion = \"europe\"\n\
    buckets = \"0-99\"\nprimary = \"127.0.0.1:5432\"\n";
const USERS: &str = "[[user]]\nname = \"app\"\nsecret = \"s\"\n";

#[test]
fn the_configurations_of_the_repository_are_fine() {
    for (tier, shards) in [("minimal", 2), ("small", 1), ("national", 100)] {
        let file = format!("config/{tier}.toml");
        let (code, stdout, stderr) = pgward(&["check", "--config", &file]);
        assert_eq!((code, stderr.as_str()), (0, ""), "{tier}");
        assert!(stdout.starts_with(&format!("{file}: ok\n")), "{stdout}");
        let (code, stdout, _) = pgward(&["check", "--config", &file, "--json"]);
        let facts = json(&stdout);
        assert_eq!(
            (code, &facts["ok"], &facts["map"]["shards"]),
            (0, &true.into(), &shards.into())
        );
    }
}

#[test]
fn check_tells_all_problems_of_all_files() {
    let folder = Folder::new("check");
    folder.write("map.toml", &MAP.replace("0-99", "0-98").replace(":5432", ""));
    folder.write("users.toml", "[[user]]\nname = \"app\"\nsecret = \"hush\"\ncolour = 1\n");
    let config = folder.write("pgward.toml", "shard_map = \"map.toml\"\nusers = \"users.toml\"\n");
    let (code, stdout, stderr) = pgward(&["check", "--config", &config]);
    assert_eq!((code, stdout.as_str()), (1, ""));
    let here = folder.0.display();
    let want = [
        format!("{here}/map.toml:2:11: bucket 99 belongs to no shard"),
        format!("{here}/map.toml:9:11: `127.0.0.1` has no port"),
        format!("{here}/users.toml:4:1: unknown key `colour`"),
        "3 problems".to_owned(),
    ];
    assert_eq!(stderr.lines().count(), want.len(), "{stderr}");
    for (line, want) in stderr.lines().zip(&want) {
        assert!(line.starts_with(want), "{line}\n{want}");
    }
    assert!(!stderr.contains("hush"));

    let (code, stdout, stderr) = pgward(&["check", "--config", &config, "--json"]);
    assert_eq!((code, stderr.as_str()), (1, ""));
    let facts = json(&stdout);
    assert_eq!((&facts["ok"], &facts["map"]), (&false.into(), &Value::Null));
    assert_eq!(facts["problems"].as_array().map(Vec::len), Some(3));
    assert_eq!(facts["problems"][1]["line"], 9);
    assert_eq!(facts["problems"][1]["column"], 11);
}

#[test]
fn check_reads_the_files_of_tls() {
    let folder = Folder::new("check-tls");
    folder.write("users.toml", USERS);
    folder.write("map.toml", &format!("{MAP}tls = {{ sslmode = \"verify-ca\" }}\n"));
    folder.write("pgward.crt", "no certificate");
    let text = "shard_map = \"map.toml\"\n[tls]\nclient_tls_sslmode = \"require\"\n\
                client_tls_cert_file = \"pgward.crt\"\nclient_tls_key_file = \"pgward.key\"\n";
    let config = folder.write("pgward.toml", text);
    let (code, _, stderr) = pgward(&["check", "--config", &config]);
    assert_eq!(code, 1);
    for want in [
        "pgward.crt: has no certificate in PEM\n",
        "map.toml: the shard map wants shard 0's certificate verified, and names no `ca_file`\n",
        "2 problems\n",
    ] {
        assert!(stderr.contains(want), "{want} in {stderr}");
    }
}

#[test]
fn check_compares_the_files() {
    let folder = Folder::new("together");
    let ward7 = "f47ac10b-58cc-4372-a567-0e02b2c3d479";
    let listed = "01890a5d-ac96-774b-bcce-b302099a8057";
    let map = MAP.replace("key =", "unknown_hospital = \"reject\"\nkey =");
    folder.write("map.toml", &format!("{map}[[hospital]]\nid = \"{listed}\"\n"));
    let user = format!("[[user]]\nname = \"ward7\"\nsecret = \"s\"\nhospital = \"{ward7}\"\n");
    folder.write("users.toml", &format!("{USERS}{user}"));
    let text = "shard_map = \"map.toml\"\n[routing]\nregion = \"mars\"\n[admin]\n\
                admin_users = [\"app\", \"dba\"]\n";
    let config = folder.write("pgward.toml", text);
    let (code, _, stderr) = pgward(&["check", "--config", &config]);
    assert_eq!(code, 1);
    for want in [
        "map.toml: [routing] region `mars` is not in the shard map, which has: europe\n",
        "users.toml: [admin] names `dba`, who is no user here\n",
        &format!("users.toml: user `ward7`: hospital {ward7} is not in the shard map\n"),
        "3 problems\n",
    ] {
        assert!(stderr.contains(want), "{want} in {stderr}");
    }

    let text = "shard_map = \"nowhere.toml\"\nusers = \"nobody.toml\"\n";
    let config = folder.write("pgward.toml", text);
    let (code, _, stderr) = pgward(&["check", "--config", &config]);
    assert_eq!(code, 1);
    assert!(
        stderr.contains("nowhere.toml: No such file") && stderr.contains("nobody.toml: No such")
    );
}

#[test]
fn wrong_use_is_2() {
    for args in [
        &["check", "--config", "no/such/file.toml"][..],
        &["locate", "--map", "no/such/file.toml", "f47ac10b-58cc-4372-a567-0e02b2c3d479"],
        &["mint", "--map", "no/such/file.toml", "--region", "europe"],
        &["locate", "--map", "shard-maps/small.toml"],
        &["mint", "--map", "shard-maps/small.toml"],
        &["mint", "--map", "shard-maps/small.toml", "--region", "europe", "--count", "0"],
        &["check"],
        &["fly"],
        &[],
    ] {
        let (code, stdout, stderr) = pgward(args);
        assert_eq!((code, stdout.as_str()), (2, ""), "{args:?}");
        assert!(!stderr.is_empty(), "{args:?}");
    }
    for args in [&["--help"][..], &["--version"], &["mint", "--help"]] {
        let (code, stdout, _) = pgward(args);
        assert!(code == 0 && !stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn locate_says_where_each_hospital_is() {
    let ids = ["{F47AC10B-58CC-4372-A567-0E02B2C3D479}", "00000000-0000-0000-0000-000000000001"];
    let args = ["locate", "--map", "shard-maps/example.toml", ids[0], ids[1]];
    let (code, stdout, stderr) = pgward(&args);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert_eq!(
        stdout,
        "f47ac10b-58cc-4372-a567-0e02b2c3d479  bucket 53  shard 0  north-america  \
         pg-na-00a:5432/hospital  (override)\n\
         00000000-0000-0000-0000-000000000001  bucket 1  shard 0  north-america  \
         pg-na-00a:5432/hospital\n"
    );
    let args = ["locate", "--json", "--map", "shard-maps/national.toml", ids[0], "ward 7"];
    let (code, stdout, _) = pgward(&args);
    assert_eq!(code, 1);
    let facts = json(&stdout);
    assert_eq!(facts[0]["shard"], 53);
    assert_eq!(facts[0]["bucket"], 53);
    assert_eq!(facts[0]["region"], "asia-pacific");
    assert_eq!(facts[0]["override"], false);
    assert_eq!(facts[0]["primary"], "pg-ap-53a:5432");
    assert_eq!(facts[1]["input"], "ward 7");
    assert!(facts[1]["error"].as_str().is_some_and(|words| words.starts_with("not a UUID")));
    // A broken map is a finding.
    let args = ["locate", "--map", "tests/golden/map/empty.toml", ids[0]];
    let (code, _, stderr) = pgward(&args);
    assert!(code == 1 && stderr.contains("empty.toml:1:1: `version` is missing"), "{stderr}");
}

#[test]
fn minted_ids_are_located_in_their_region() {
    for (region, v4) in [("europe", false), ("latin-america", true)] {
        let mut args =
            vec!["mint", "--map", "shard-maps/national.toml", "--region", region, "--count", "50"];
        args.extend(v4.then_some("--v4"));
        let (code, stdout, stderr) = pgward(&args);
        assert_eq!((code, stderr.as_str()), (0, ""));
        let mut ids: Vec<&str> = stdout.lines().collect();
        assert_eq!(ids.len(), 50);
        for id in &ids {
            let id = HospitalId::parse(id).expect("a uuid").0;
            assert_eq!(id.get_version_num(), if v4 { 4 } else { 7 });
        }
        let mut args = vec!["locate", "--json", "--map", "shard-maps/national.toml"];
        args.extend(&ids);
        let (code, stdout, _) = pgward(&args);
        assert_eq!(code, 0);
        let facts = json(&stdout);
        assert!(facts.as_array().expect("a list").iter().all(|fact| fact["region"] == region));
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 50, "all different");
    }
    let (code, stdout, _) =
        pgward(&["mint", "--map", "shard-maps/small.toml", "--region", "north-america", "--json"]);
    let facts = json(&stdout);
    assert_eq!(
        (code, &facts[0]["region"], &facts[0]["shard"]),
        (0, &"north-america".into(), &0.into())
    );
    let (code, _, stderr) = pgward(&["mint", "--map", "shard-maps/small.toml", "--region", "mars"]);
    assert_eq!(code, 1);
    assert_eq!(stderr, "the shard map has no region `mars`; it has: north-america\n");
}

/// Spellings at the edge of what Postgres reads, from a small generator so that each run has the
/// same ones.
fn spellings() -> Vec<String> {
    let mut state = 7_u64;
    let mut draw = move |below: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below
    };
    let make = |_| {
        let mut text = String::new();
        let every = [2, 4, 4, 4, 8, 3][draw(6)];
        for digit in 0..32 {
            if digit > 0 && digit % every == 0 && draw(3) == 0 {
                text.push('-');
            }
            text.push(char::from(b"0123456789abcdefABCDEF"[draw(22)]));
        }
        if draw(3) == 0 {
            text = format!("{{{text}}}");
        }
        if draw(2) == 0 {
            let at = draw(text.len());
            match draw(3) {
                0 => text.insert(at, char::from(b"-{} g0\t:"[draw(8)])),
                1 => drop(text.remove(at)),
                _ => text.push(char::from(b"-} 0"[draw(4)])),
            }
        }
        text
    };
    (0..1000).map(make).collect()
}

#[test]
fn ids_are_read_as_postgres_reads_them() {
    let texts = spellings();
    let values: Vec<_> = texts.iter().map(|text| format!("'{text}'")).collect();
    let sql = format!(
        "CREATE FUNCTION pg_temp.read(t text) RETURNS text LANGUAGE plpgsql AS $$
         BEGIN RETURN t::uuid::text; EXCEPTION WHEN invalid_text_representation THEN RETURN 'no'; END $$;
         SELECT pg_temp.read(t) FROM unnest(ARRAY[{}]) WITH ORDINALITY u(t, n) ORDER BY n",
        values.join(",")
    );
    let answers = support::shards().psql(0, &sql);
    let answers: Vec<&str> = answers.lines().filter(|line| *line != "CREATE FUNCTION").collect();
    assert_eq!(answers.len(), texts.len());
    let mut read = 0;
    for (text, answer) in texts.iter().zip(&answers) {
        let ours = HospitalId::parse(text).map_or("no".to_owned(), |id| id.to_string());
        assert_eq!(ours, **answer, "{text:?}");
        read += usize::from(ours != "no");
    }
    assert!((100..900).contains(&read), "{read} of 1000 are spelled right: not a test");
}
