//! The reference file, the files of the repository, and problems (golden).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::*;

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Compares with the golden file, or writes it.
fn golden(path: &Path, got: &str) {
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(path, got).expect("write");
    }
    let want = fs::read_to_string(path).unwrap_or_default();
    let name = path.display();
    assert_eq!(got, want, "{name}: run with UPDATE_GOLDEN=1 if this is right");
}

#[test]
fn problems() {
    let mut cases = 0;
    for file in fs::read_dir(here("tests/golden/config")).expect("golden configs") {
        let path = file.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).expect("a config");
        let got = match Config::parse(&name, &text) {
            Ok(_) => "fine\n".to_owned(),
            Err(problems) => format!("{problems}\n"),
        };
        golden(&path.with_extension("txt"), &got);
        cases += 1;
    }
    assert!(cases >= 4, "{cases} golden configs");
}

#[test]
fn defaults_are_valid_and_an_empty_file_means_them() {
    assert_eq!(Config::parse("empty.toml", ""), Ok(Config::default()));
}

#[test]
fn the_reference_is_the_defaults_with_their_docs() {
    let reference = reference();
    golden(&here("config/reference.toml"), &reference);
    assert_eq!(Config::parse("reference.toml", &reference), Ok(Config::default()));
    // Each key that serde knows is there, also the one that is unset.
    let mut all = Config::default();
    all.metrics.address = Some(([127, 0, 0, 1], 6430).into());
    all.listen.peer_address = all.metrics.address;
    let all = toml::Table::try_from(&all).expect("TOML");
    let uncommented = reference.replace("# address = ", "address = ");
    let uncommented = uncommented.replace("# peer_address = ", "peer_address = ");
    let found: toml::Table = uncommented.parse().expect("TOML");
    assert_eq!(keys(&found), keys(&all));
}

fn keys(table: &toml::Table) -> Vec<String> {
    let keys = table.iter().flat_map(|(name, value)| match value {
        toml::Value::Table(section) => section.keys().map(|key| format!("{name}.{key}")).collect(),
        _ => vec![name.clone()],
    });
    keys.collect()
}

#[test]
fn the_files_of_the_repository_load() {
    for file in ["reference", "minimal", "small", "national"] {
        let config = Config::load(&here(&format!("config/{file}.toml")))
            .unwrap_or_else(|error| panic!("{error}"));
        assert!(config.users.ends_with("users.toml"), "{file}");
        if file != "reference" {
            let map = config.shard_map.canonicalize().expect("its map");
            assert!(map.starts_with(here("shard-maps").canonicalize().expect("maps")), "{file}");
        }
    }
}

#[test]
fn paths_are_relative_to_the_file_and_secrets_must_be_there() {
    let folder = std::env::temp_dir().join(format!("pgward-config-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder");
    let file = folder.join("pgward.toml");
    let secret = folder.join("secret");
    let load = |text: &str| {
        fs::write(&file, text).expect("write");
        Config::load(&file)
    };
    let config = load("shard_map = \"maps/a.toml\"\nusers = \"/etc/users.toml\"").expect("fine");
    assert_eq!(config.shard_map, folder.join("maps/a.toml"));
    assert_eq!(config.users, Path::new("/etc/users.toml"));
    assert_eq!(config.health.probe_secret_file, Path::new(""));
    assert_eq!(config.health.probe_secret().expect("none needed"), None);

    let error = load("[health]\nprobe_secret_env = \"PGWARD_TEST_UNSET\"").expect_err("not set");
    let words = "pgward.toml:2:20: `probe_secret_env` is not usable: the environment has no \
                 secret in PGWARD_TEST_UNSET";
    assert!(error.to_string().ends_with(words), "{error}");

    let by_file = "[health]\nprobe_secret_file = \"secret\"";
    let error = load(by_file).expect_err("no file");
    assert!(error.to_string().contains("pgward.toml:2:21: `probe_secret_file` is not"), "{error}");
    fs::write(&secret, "\n").expect("write");
    assert!(load(by_file).expect_err("empty").to_string().ends_with("secret is empty"));
    fs::write(&secret, "s3cret \r\n").expect("write");
    let config = load(by_file).expect("fine");
    assert_eq!(config.health.probe_secret().expect("a secret").as_deref(), Some("s3cret "));

    fs::remove_dir_all(&folder).expect("remove");
    let error = Config::load(&file).expect_err("gone");
    assert!(error.to_string().starts_with("cannot read "), "{error}");
}

#[test]
fn the_region_is_one_of_the_map() {
    let regions = ["europe".to_owned(), "asia".to_owned()];
    let mut routing = Routing::default();
    assert_eq!(routing.region_problem(&regions), None);
    routing.region = "asia".to_owned();
    assert_eq!(routing.region_problem(&regions), None);
    routing.region = "mars".to_owned();
    let words = "[routing] region `mars` is not in the shard map, which has: europe, asia";
    assert_eq!(routing.region_problem(&regions).as_deref(), Some(words));
}

/// `config/reference.toml`, from the docs of the structs and the defaults.
fn reference() -> String {
    let structs = structs(include_str!("mod.rs"));
    let defaults = toml::Table::try_from(Config::default()).expect("TOML");
    let mut text = "# Every key of pgward.toml, with its default. Made from the docs of src/config/mod.rs; to\n\
                    # change it, change those and run the tests with UPDATE_GOLDEN=1.\n"
        .to_owned();
    let mut sections = String::new();
    for field in &structs["Config"] {
        let Some(keys) = structs.get(&field.kind).filter(|_| field.name != field.kind) else {
            push_key(&mut text, field, defaults.get(&field.name), &structs);
            continue;
        };
        sections += &format!("\n# {}\n[{}]\n", field.doc.join("\n# "), field.name);
        let values = defaults[&field.name].as_table().expect("a section");
        for (number, key) in keys.iter().enumerate() {
            sections += if number == 0 { "" } else { "\n" };
            push_key(&mut sections, key, values.get(&key.name), &structs);
        }
    }
    text + &sections
}

fn push_key(
    text: &mut String,
    field: &Field,
    value: Option<&toml::Value>,
    structs: &BTreeMap<String, Vec<Field>>,
) {
    if !text.ends_with("]\n") && !text.ends_with("\n\n") && !text.is_empty() {
        text.push('\n');
    }
    *text += &format!("# {}\n", field.doc.join("\n# "));
    for variant in structs.get(&field.kind).into_iter().flatten() {
        *text += &format!("#   \"{}\": {}\n", variant.name, variant.doc.join(" "));
    }
    *text += &match value {
        Some(value) => format!("{} = {value}\n", field.name),
        None => format!("# {} = \"127.0.0.1:6430\"\n", field.name),
    };
}

/// A field of a struct, or a variant of an enum by its name in TOML.
struct Field {
    name: String,
    kind: String,
    doc: Vec<String>,
}

/// The structs and enums of the source, each with its fields or variants.
fn structs(source: &str) -> BTreeMap<String, Vec<Field>> {
    let mut all = BTreeMap::new();
    let mut doc = Vec::new();
    let (mut item, mut rename, mut rename_all) = (None::<String>, None, "");
    for line in source.lines() {
        let code = line.trim();
        if let Some(words) = code.strip_prefix("/// ") {
            doc.push(words.to_owned());
        } else if code.starts_with("#[serde(rename_all") {
            rename_all = if code.contains("snake_case") { "snake_case" } else { "lowercase" };
        } else if let Some(name) = code.strip_prefix("#[serde(rename = \"") {
            rename = name.split('"').next().map(str::to_owned);
        } else if code.starts_with("#[") {
            // Other attributes say nothing of names.
        } else if code.starts_with("pub struct ") || code.starts_with("pub enum ") {
            let name = code.split_whitespace().nth(2).expect("a name").to_owned();
            all.insert(name.clone(), Vec::new());
            (item, rename) = (Some(name), None);
            doc.clear();
        } else if code == "}" {
            (item, rename_all) = (None, "");
            doc.clear();
        } else if let Some(item) = &item {
            let (name, kind) = match code.strip_prefix("pub ").and_then(|f| f.split_once(": ")) {
                Some((name, kind)) => (name.to_owned(), kind.trim_end_matches(',').to_owned()),
                None => {
                    let variant = code.trim_end_matches(',');
                    let name = rename.take().unwrap_or_else(|| serde_name(variant, rename_all));
                    (name, String::new())
                }
            };
            let doc = std::mem::take(&mut doc);
            all.get_mut(item).expect("its item").push(Field { name, kind, doc });
        } else {
            doc.clear();
        }
    }
    all
}

fn serde_name(variant: &str, rename_all: &str) -> String {
    let mut name = String::new();
    for c in variant.chars() {
        if c.is_uppercase() && !name.is_empty() && rename_all == "snake_case" {
            name.push('_');
        }
        name.extend(c.to_lowercase());
    }
    name
}
