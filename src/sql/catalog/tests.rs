use super::*;

fn table(name: &str, columns: &[(&str, &str)]) -> RelationFact {
    let (schema, name) = name.split_once('.').unwrap_or(("public", name));
    RelationFact {
        schema: schema.into(),
        name: name.into(),
        kind: 'r',
        columns: columns.iter().map(|(n, t)| ((*n).into(), (*t).into())).collect(),
        reads: Vec::new(),
        is_rls_forced: false,
    }
}

fn view(name: &str, reads: &[&str]) -> RelationFact {
    let reads = reads
        .iter()
        .map(|read| read.split_once('.').unwrap_or(("public", read)))
        .map(|(schema, name)| (schema.to_owned(), name.to_owned()))
        .collect();
    RelationFact { kind: 'v', reads, ..table(name, &[("x", "text")]) }
}

fn guide() -> Vec<RelationFact> {
    vec![
        table("regions", &[("id", "integer"), ("name", "text")]),
        table("hospitals", &[("id", "uuid"), ("region_id", "integer")]),
        table("patients", &[("hospital_id", "uuid"), ("id", "bigint")]),
        table("misc", &[("id", "integer")]),
        table("odd", &[("hospital_id", "text")]),
    ]
}

fn declared() -> Declared {
    Declared {
        key_column: "hospital_id".into(),
        key_tables: vec![(("public".into(), "hospitals".into()), "id".into())],
        reference: vec![("public".into(), "regions".into())],
        safe_functions: vec!["public.safe".into()],
        is_one_shard: false,
    }
}

fn facts(relations: Vec<RelationFact>) -> ShardFacts {
    ShardFacts { relations, ..ShardFacts::default() }
}

fn sharded(key: &str) -> RelationKind {
    RelationKind::Sharded { key: key.into() }
}

fn kind_of(catalog: &Catalog, name: &str) -> Option<RelationKind> {
    let (schema, name) = name.split_once('.').map_or((None, name), |(s, n)| (Some(s), n));
    catalog.resolve(schema, name, &["app", "public"]).map(|relation| relation.kind.clone())
}

#[test]
fn relations_are_what_they_hold() {
    use RelationKind::*;
    let mut relations = guide();
    relations.extend([
        view("v_ref", &["regions", "pg_catalog.pg_class"]),
        view("v_patients", &["regions", "patients"]),
        view("v_nested", &["v_ref", "v_patients"]),
        view("v_misc", &["misc"]),
        view("v_stats", &["pg_catalog.pg_stats"]),
        view("v_func", &["regions", "public.leak()"]),
        view("v_safe", &["regions", "public.safe()"]),
        view("v_none", &[]),
        view("v_over_none", &["v_none"]),
        view("v_loop", &["v_loop", "regions"]),
        RelationFact { kind: 'm', ..view("mv", &["hospitals"]) },
        RelationFact { kind: 'S', ..table("seq", &[]) },
        RelationFact { kind: 'f', ..table("far", &[("hospital_id", "uuid")]) },
        RelationFact { kind: 'p', ..table("parts", &[("hospital_id", "uuid")]) },
    ]);
    let catalog = Catalog::build(3, &[facts(relations)], &declared());
    assert_eq!(catalog.version, 3);
    let not_uuid = Unsupported("a table whose key column is not of type uuid");
    let over_sharded = Unsupported("a view over a sharded table");
    for (name, want) in [
        ("regions", Some(Reference)),
        ("hospitals", Some(sharded("id"))),
        ("public.patients", Some(sharded("hospital_id"))),
        ("app.patients", None),
        ("misc", Some(Undeclared)),
        ("odd", Some(not_uuid)),
        ("nobody", None),
        ("v_ref", Some(Reference)),
        ("v_patients", Some(over_sharded.clone())),
        ("v_nested", Some(over_sharded.clone())),
        ("v_misc", Some(Undeclared)),
        ("v_stats", Some(SystemUnkeyed)),
        ("v_func", Some(Unsupported("a view over a user function"))),
        ("v_safe", Some(Reference)),
        ("v_none", Some(Unsupported("a view that reads no table"))),
        ("v_over_none", Some(Unsupported("a view that reads no table"))),
        ("v_loop", Some(Reference)),
        ("mv", Some(over_sharded)),
        ("seq", Some(Unsupported("a sequence"))),
        ("far", Some(sharded("hospital_id"))),
        ("parts", Some(sharded("hospital_id"))),
        ("pg_class", Some(SystemAllowed)),
        ("pg_catalog.pg_class", Some(SystemAllowed)),
        ("pg_stats", Some(SystemUnkeyed)),
        ("pg_catalog.pg_new_in_19", Some(SystemUnkeyed)),
        ("pg_catalog.patients", None),
    ] {
        assert_eq!(kind_of(&catalog, name), want, "{name}");
    }
}

#[test]
fn shards_that_differ_count_as_the_stricter() {
    use RelationKind::*;
    let differ = Unsupported("defined differently on some shards");
    for (name, one, other, want) in [
        ("t", table("t", &[("hospital_id", "uuid")]), table("t", &[("id", "integer")]), &differ),
        (
            "t",
            table("t", &[("hospital_id", "uuid")]),
            table("t", &[("hospital_id", "text")]),
            &differ,
        ),
        ("regions", table("regions", &[]), table("regions", &[("hospital_id", "uuid")]), &differ),
        ("v", view("v", &["regions"]), view("v", &["misc"]), &Undeclared),
        ("v", view("v", &["regions"]), view("v", &["patients"]), &differ),
        (
            "t",
            table("t", &[("hospital_id", "uuid")]),
            table("t", &[("hospital_id", "uuid")]),
            &sharded("hospital_id"),
        ),
    ] {
        for pair in [[one.clone(), other.clone()], [other, one]] {
            let shards = pair.map(|relation| {
                let mut relations: Vec<_> = guide();
                relations.retain(|known| known.name != relation.name);
                relations.push(relation);
                facts(relations)
            });
            let catalog = Catalog::build(1, &shards, &declared());
            assert_eq!(kind_of(&catalog, name).as_ref(), Some(want), "{name}");
        }
    }
}

#[test]
fn columns_in_another_order_are_unknown() {
    let one = table("t", &[("hospital_id", "uuid"), ("x", "text")]);
    let other = table("t", &[("x", "text"), ("hospital_id", "uuid")]);
    let shards = [facts(vec![one.clone()]), facts(vec![other]), facts(vec![one])];
    let catalog = Catalog::build(1, &shards, &declared());
    let relation = catalog.resolve(None, "t", &["public"]).unwrap();
    assert_eq!(relation.kind, sharded("hospital_id"));
    assert_eq!(relation.columns, Vec::<String>::new());
    let catalog = Catalog::build(1, &shards[..1], &declared());
    assert_eq!(catalog.resolve(None, "t", &["public"]).unwrap().columns, ["hospital_id", "x"]);
}

#[test]
fn a_name_of_two_schemas_means_both() {
    let relations = vec![
        table("public.t", &[("hospital_id", "uuid")]),
        table("app.t", &[("id", "integer")]),
        table("other.u", &[("hospital_id", "uuid")]),
        table("app.u", &[("hospital_id", "uuid")]),
    ];
    let catalog = Catalog::build(1, &[facts(relations)], &declared());
    let kind = |name, path: &[&str]| catalog.resolve(None, name, path).map(|r| r.kind.clone());
    assert!(matches!(kind("t", &["app", "public"]), Some(RelationKind::Unsupported(_))));
    assert_eq!(kind("t", &["public"]), Some(sharded("hospital_id")));
    assert_eq!(kind("t", &["app"]), Some(RelationKind::Undeclared));
    assert_eq!(kind("u", &["app", "other"]), Some(sharded("hospital_id")));
    assert_eq!(kind("t", &[]), None);
}

#[test]
fn one_shard_has_no_undeclared_tables() {
    let declared = Declared { is_one_shard: true, ..declared() };
    let mut relations = guide();
    relations.push(view("v_misc", &["misc"]));
    let catalog = Catalog::build(1, &[facts(relations)], &declared);
    for (name, want) in [
        ("misc", RelationKind::Reference),
        ("v_misc", RelationKind::Reference),
        ("patients", sharded("hospital_id")),
    ] {
        assert_eq!(kind_of(&catalog, name), Some(want), "{name}");
    }
}

#[test]
fn user_functions_shadow_builtin_ones() {
    let function =
        |schema: &str, name: &str| FunctionFact { schema: schema.into(), name: name.into() };
    let facts = ShardFacts {
        functions: vec![
            function("public", "safe"),
            function("public", "leak"),
            function("public", "lower"),
        ],
        ..ShardFacts::default()
    };
    let catalog = Catalog::build(1, &[facts], &declared());
    assert_eq!(catalog.function(None, "safe"), FunctionKind::DeclaredSafe);
    assert_eq!(catalog.function(Some("public"), "safe"), FunctionKind::DeclaredSafe);
    assert_eq!(catalog.function(Some("app"), "safe"), FunctionKind::User);
    assert_eq!(catalog.function(None, "leak"), FunctionKind::User);
    assert_eq!(catalog.function(None, "lower"), FunctionKind::User);
    assert_eq!(catalog.function(None, "nobody"), FunctionKind::User);
    assert_eq!(catalog.function(Some("pg_catalog"), "nobody"), FunctionKind::User);
}

#[test]
fn a_schema_before_pg_catalog_needs_the_one_equality() {
    let with = |has_foreign_uuid_equality| {
        let facts = ShardFacts { has_foreign_uuid_equality, ..ShardFacts::default() };
        Catalog::build(1, &[ShardFacts::default(), facts], &declared())
    };
    for (path, with_foreign) in [
        (&["public"][..], true),
        (&["pg_catalog", "public"], true),
        (&["public", "pg_catalog"], false),
        (&[], true),
    ] {
        assert!(with(false).is_search_path_safe(path), "{path:?}");
        assert_eq!(with(true).is_search_path_safe(path), with_foreign, "{path:?}");
    }
}

#[test]
fn search_paths_as_postgres_reads_them() {
    for (path, want) in [
        (r#""$user", public"#, Some(&["app", "public"][..])),
        ("", Some(&[])),
        (r#""$user""#, Some(&["app"])),
        ("$user,Public", Some(&["app", "public"])),
        (r#" "A ""b""" , c "#, Some(&[r#"A "b""#, "c"])),
        ("a,", None),
        (",a", None),
        ("a b", None),
        (r#""a"#, None),
        (r#""""#, Some(&[""])),
        ("caf\u{e9}", Some(&["caf\u{e9}"])),
        ("CAF\u{c9}", None),
        (&"a".repeat(64), None),
        (r#"a"b""#, None),
    ] {
        let parsed = parse_search_path(path, "app");
        let parsed =
            parsed.as_ref().map(|schemas| schemas.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(parsed.as_deref(), want, "{path}");
    }
}
