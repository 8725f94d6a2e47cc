//! The map as a whole: vectors, defaults, problems (golden), moves, minting, publishing.

use std::fs;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::source::{self, MapStore, ReloadError, ReloadOutcome};
use super::*;

fn id(text: &str) -> HospitalId {
    HospitalId::parse(text).expect(text)
}

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn map(text: &str) -> ShardMap {
    ShardMap::parse("test.toml", text).unwrap_or_else(|problems| panic!("{problems}"))
}

/// `shards` with 100 buckets; `extra` goes in front, `tail` behind.
fn four(version: u64, extra: &str, tail: &str) -> String {
    let mut text = format!(
        "version = {version}\nmodulus = 100\ndatabase = \"hospital\"\n{extra}\n\
         key = {{ column = \"hospital_id\" }}\n"
    );
    for (id, region) in ["north-america", "north-america", "europe", "asia"].iter().enumerate() {
        let (low, high) = (id * 25, id * 25 + 24);
        text += &format!(
            "[[shard]]\nid = {id}\nregion = \"{region}\"\nbuckets = \"{low}-{high}\"\n\
             primary = \"pg-{id}a:5432\"\nreplicas = [\"pg-{id}b:5432\"]\n"
        );
    }
    text + tail
}

#[test]
fn vectors_of_the_design() {
    let vectors = [
        ("00000000-0000-0000-0000-000000000000", 0),
        ("00000000-0000-0000-0000-000000000001", 1),
        ("ffffffff-ffff-ffff-ffff-ffffffffffff", 55),
        ("6ba7b810-9dad-11d1-80b4-00c04fd430c8", 4),
        ("f47ac10b-58cc-4372-a567-0e02b2c3d479", 53),
        ("01890a5d-ac96-774b-bcce-b302099a8057", 35),
    ];
    let national = source::load(&here("shard-maps/national.toml")).expect("the national tier");
    let small = source::load(&here("shard-maps/small.toml")).expect("the small tier");
    for (text, bucket) in vectors {
        let hospital = id(text);
        assert_eq!(national.bucket(hospital), bucket, "{text}");
        assert_eq!(national.locate(hospital), Ok(ShardId(bucket as u16)), "{text}");
        assert_eq!(small.bucket(hospital), bucket, "{text}");
        assert_eq!(small.locate(hospital), Ok(ShardId(0)), "{text}");
    }
}

#[test]
fn the_national_tier() {
    let map = source::load(&here("shard-maps/national.toml")).expect("the national tier");
    assert_eq!(map.shards().len(), 100);
    let regions =
        ["north-america", "europe", "asia-pacific", "middle-east-africa", "latin-america"];
    assert_eq!(map.regions(), regions);
    for shard in map.shards() {
        assert_eq!(shard.region, regions[usize::from(shard.id.0) / 20]);
        assert_eq!(shard.replicas.len(), 2);
        assert_eq!(map.owner(u32::from(shard.id.0)), Some(shard.id));
        assert_eq!(map.shard(shard.id), Some(shard));
    }
    assert_eq!(map.shards()[7].primary.to_string(), "pg-na-07a:5432");
    assert_eq!(map.owner(100), None);
    assert_eq!(map.shard(ShardId(100)), None);
}

#[test]
fn all_maps_of_the_repository_load() {
    let mut names = Vec::new();
    for file in fs::read_dir(here("shard-maps")).expect("shard-maps") {
        let path = file.expect("an entry").path();
        let map = source::load(&path).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(map.modulus, 100, "{}", path.display());
        names.push(path.file_name().expect("a name").to_string_lossy().into_owned());
    }
    names.sort();
    assert_eq!(names, ["example.toml", "national.toml", "small.toml", "two-shards.toml"]);
}

/// `tests/golden/map/x.toml` is a map, `x.txt` what is wrong with it.
#[test]
fn problems() {
    let mut cases = 0;
    for file in fs::read_dir(here("tests/golden/map")).expect("golden maps") {
        let path = file.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).expect("a map");
        let got = match ShardMap::parse(&name, &text) {
            Ok(_) => "fine\n".to_owned(),
            Err(problems) => format!("{problems}\n"),
        };
        let golden = path.with_extension("txt");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&golden, &got).expect("write");
        }
        let want = fs::read_to_string(&golden).unwrap_or_default();
        assert_eq!(got, want, "{name}: run with UPDATE_GOLDEN=1 if this is right");
        cases += 1;
    }
    assert!(cases >= 12, "{cases} golden maps");
}

#[test]
fn many_problems_are_told_within_bounds() {
    let mut text = four(1, "", "");
    for i in 0..1000 {
        text += &format!("[[hospital]]\nid = \"{i}\"\n");
    }
    let problems = ShardMap::parse("test.toml", &text).expect_err("no uuids");
    assert_eq!((problems.list.len(), problems.more), (100, 900));
    assert!(problems.to_string().ends_with("\nand 900 more"), "{problems}");
}

#[test]
fn overrides_and_directory() {
    let listed = "[[hospital]]\nid = \"f47ac10b-58cc-4372-a567-0e02b2c3d479\"\nshard = 0\n\
                  home = \"north-america\"\n\
                  [[hospital]]\nid = \"6ba7b810-9dad-11d1-80b4-00c04fd430c8\"\n";
    let moved = id("f47ac10b-58cc-4372-a567-0e02b2c3d479");
    let ruled = id("6ba7b810-9dad-11d1-80b4-00c04fd430c8");
    let unknown = id("01890a5d-ac96-774b-bcce-b302099a8057");
    for (extra, want) in [
        ("", Ok(ShardId(1))),
        ("unknown_hospital = \"route\"", Ok(ShardId(1))),
        ("unknown_hospital = \"reject\"", Err(LocateError::Unknown(unknown))),
    ] {
        let map = map(&four(1, extra, listed));
        assert_eq!(map.locate(moved), Ok(ShardId(0)));
        assert_eq!(map.locate(ruled), Ok(ShardId(0)));
        assert_eq!(map.locate(unknown), want, "{extra}");
        assert!(map.is_override(moved) && map.lists(moved));
        assert!(!map.is_override(ruled) && map.lists(ruled));
        assert!(!map.is_override(unknown) && !map.lists(unknown));
        assert_eq!(map.hospitals().len(), 2);
    }
}

#[test]
fn fifty_thousand_hospitals() {
    let mut tail = String::new();
    let hospital = |i: u32| HospitalId(Uuid::from_u128(u128::from(i) * 0x9e37_79b9_7f4a_7c15));
    for i in 0..50_000 {
        tail += &format!("[[hospital]]\nid = \"{}\"\n", hospital(i));
    }
    let map = map(&four(1, "unknown_hospital = \"reject\"", &tail));
    assert_eq!(map.hospitals().len(), 50_000);
    for i in 0..50_000 {
        let hospital = hospital(i);
        assert_eq!(map.locate(hospital).ok(), map.owner(map.bucket(hospital)));
    }
    assert!(map.locate(hospital(50_000)).is_err());
}

#[test]
fn even_maps_agree_with_written_ones() {
    let written = map(&four(1, "", ""));
    let even = ShardMap::even(100, "hospital", written.shards().to_vec());
    assert_eq!(even, written);
}

#[test]
fn tables_and_databases() {
    let map = source::load(&here("shard-maps/example.toml")).expect("the example");
    assert_eq!(map.tables.key_column, "hospital_id");
    assert_eq!(map.tables.key_tables, [("public.hospitals".to_owned(), "id".to_owned())]);
    assert_eq!(map.tables.reference, ["public.regions", "public.roles"]);
    let two = source::load(&here("shard-maps/two-shards.toml")).expect("two shards");
    let databases: Vec<_> = two.shards().iter().map(|s| s.database.as_str()).collect();
    assert_eq!(databases, ["shard0", "shard1"]);
}

#[test]
fn moves() {
    let running = map(&four(1, "", ""));
    assert!(running.diff(&running).is_empty());
    assert!(running.diff(&map(&four(2, "reference = [\"public.regions\"]", ""))).is_empty());

    let text =
        four(2, "", "").replace("\"0-24\"", "\"0-9,24\"").replace("\"25-49\"", "\"10-23,25-49\"");
    let moved = running.diff(&map(&text));
    assert_eq!(moved.to_string(), "buckets 10-23: shard 0 -> 1");
    assert_eq!(moved.buckets.len(), 14);

    let listed = "[[hospital]]\nid = \"f47ac10b-58cc-4372-a567-0e02b2c3d479\"\nshard = 0\n";
    let overridden = map(&four(2, "", listed));
    let words = "hospital f47ac10b-58cc-4372-a567-0e02b2c3d479: shard 2 -> 0";
    assert_eq!(running.diff(&overridden).to_string(), words);
    let words = "hospital f47ac10b-58cc-4372-a567-0e02b2c3d479: shard 0 -> 2";
    assert_eq!(overridden.diff(&running).to_string(), words);
    // A directory entry that says what the rule says moves nothing.
    let same = listed.replace("shard = 0", "shard = 2");
    assert!(running.diff(&map(&four(2, "unknown_hospital = \"reject\"", &same))).is_empty());

    let swapped =
        four(2, "", "").replace("pg-0a", "X").replace("pg-1b", "pg-0a").replace('X', "pg-1b");
    assert_eq!(
        running.diff(&map(&swapped)).to_string(),
        "host pg-1b:5432/hospital: shard 1 -> 0\nhost pg-0a:5432/hospital: shard 0 -> 1"
    );
    let replaced = four(2, "", "").replace("pg-0a", "pg-0z");
    assert!(running.diff(&map(&replaced)).is_empty(), "a shard may change its hosts");

    let modulus =
        four(2, "", "").replace("modulus = 100", "modulus = 120").replace("75-99", "75-119");
    let moved = running.diff(&map(&modulus));
    assert_eq!(moved.modulus, Some((100, 120)));
    assert!(moved.buckets.is_empty());
}

#[test]
fn long_lists_of_moves_are_bounded() {
    let mut tail = String::new();
    for i in 0..1000_u128 {
        tail += &format!("[[hospital]]\nid = \"{}\"\nshard = 3\n", HospitalId(Uuid::from_u128(i)));
    }
    let moved = map(&four(1, "", "")).diff(&map(&four(2, "", &tail)));
    assert_eq!((moved.hospitals.len(), moved.more_hospitals), (100, 650));
    assert!(moved.to_string().ends_with("and 650 hospitals more"));
}

#[test]
fn reload_publishes_or_keeps_the_old_map() {
    let folder = std::env::temp_dir().join(format!("pgward-map-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder");
    let file = folder.join("map.toml");
    let write = |text: &str| fs::write(&file, text).expect("write");

    write(&four(3, "", ""));
    let store = MapStore::new(source::load(&file).expect("a map"));
    let held = store.current();
    assert_eq!(store.reload(&file).expect("same"), ReloadOutcome::Unchanged);

    write(&four(3, "reference = [\"public.roles\"]", ""));
    let error = store.reload(&file).expect_err("same version, other text");
    assert!(matches!(error, ReloadError::Version { running: 3, next: 3 }), "{error}");

    write(&four(4, "", "").replace("\"0-24\"", "\"0-23\"").replace("\"25-49\"", "\"24-49\""));
    let error = store.reload(&file).expect_err("moves");
    assert!(error.to_string().ends_with("\nbuckets 24: shard 0 -> 1"), "{error}");

    write(&four(4, "colour = 1", ""));
    let error = store.reload(&file).expect_err("unknown key");
    assert!(error.to_string().contains("map.toml:4:1: unknown key `colour`"), "{error}");

    fs::remove_file(&file).expect("remove");
    let error = store.reload(&file).expect_err("gone");
    assert!(error.to_string().starts_with("cannot read "), "{error}");
    assert_eq!(store.current().version, 3);

    write(&four(5, "reference = [\"public.roles\"]", ""));
    let outcome = store.reload(&file).expect("a good map");
    assert_eq!(outcome, ReloadOutcome::Published { from: 3, to: 5 });
    assert_eq!((held.version, store.current().version), (3, 5));
    write(&four(4, "", ""));
    assert!(store.reload(&file).is_err(), "versions never fall");
    fs::remove_dir_all(&folder).expect("remove");
}

#[test]
fn minted_ids_land_in_their_region() {
    let listed = id("00000000-0000-4000-8000-000000000038"); // bucket 36 of 100 by its v4 form
    let text = four(1, "", &format!("[[hospital]]\nid = \"{listed}\"\n"));
    let map = map(&text);
    // Not random, but evenly spread, and the same in each run.
    let mut state = 0_u128;
    let mut random = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        state.wrapping_mul(0xda94_2042_e4dd_58b5).to_be_bytes()
    };
    let now = 1_800_000_000_000;
    for region in ["north-america", "europe", "asia"] {
        for (version, number) in [(UuidVersion::V4, 4), (UuidVersion::V7, 7)] {
            for _ in 0..100 {
                let hospital = mint(&map, region, version, now, &mut random).expect(region);
                assert_eq!(hospital.0.get_version_num(), number);
                assert_eq!(hospital.0.get_variant(), uuid::Variant::RFC4122);
                let shard = map.locate(hospital).expect("routed");
                assert_eq!(map.region_of(shard), Some(region));
                if version == UuidVersion::V7 {
                    assert_eq!(hospital.0.as_u128() >> 80, u128::from(now));
                }
            }
        }
    }
    let error = mint(&map, "mars", UuidVersion::V4, now, &mut random).expect_err("no region");
    assert_eq!(
        error.to_string(),
        "the shard map has no region `mars`; it has: north-america, europe, asia"
    );
    let zero = || [0; 16];
    let error = mint(&map, "asia", UuidVersion::V4, now, zero).expect_err("always bucket 48");
    assert_eq!(error, MintError::NotRandom(6400));
    let listed_only = || listed.0.into_bytes();
    let region = map.region_of(map.place(listed)).expect("a region");
    assert!(mint(&map, region, UuidVersion::V4, now, listed_only).is_err(), "it is taken");
    let text = text.replace("75-99", "").replace("50-74", "50-99");
    let error = mint(&super::tests::map(&text), "asia", UuidVersion::V4, now, &mut random);
    assert_eq!(error, Err(MintError::NoBucket("asia".to_owned())));
}
