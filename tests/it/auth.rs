//! Logins by `auth_query`, pass-through and rules: psql, pgward and a Postgres that asks for proofs.

use std::process::Output;
use std::time::{Duration, Instant};

use pgward::cli::local::{HostAuth, Options, Postgres};

use super::support::{PATIENCE, USERS, Ward, one_shard_map, shards};

/// A server that asks every TCP client for md5, or SCRAM where that is what it keeps.
fn postgres(name: &str) -> Postgres {
    let options = Options { auth: HostAuth::Md5, ..Options::default() };
    let postgres = shards().sandbox.primary(name, &options).expect("a primary");
    let psql = |sql: &str| postgres.psql("postgres", sql).expect("set up");
    psql(
        "SET password_encryption = 'scram-sha-256';
         CREATE ROLE pgward LOGIN PASSWORD 'probe-secret';
         CREATE ROLE app LOGIN PASSWORD 'app-secret';
         CREATE ROLE keeper LOGIN SUPERUSER PASSWORD 'keeper-secret';
         CREATE ROLE doctor LOGIN PASSWORD 'doctor-secret';
         CREATE ROLE late LOGIN PASSWORD 'late-secret' VALID UNTIL '2001-01-01';
         CREATE ROLE sleeping NOLOGIN PASSWORD 'sleeping-secret';
         CREATE ROLE bare LOGIN;
         CREATE ROLE boss LOGIN PASSWORD 'boss-secret';
         SET password_encryption = 'md5';
         CREATE ROLE nurse LOGIN PASSWORD 'nurse-secret'",
    );
    psql("CREATE DATABASE hospital OWNER app");
    postgres
}

/// pgward in front of it, which looks users up; with further lines of `[auth]`.
fn ward(postgres: &Postgres, users: &str, auth: &[&str]) -> Ward {
    let secret = shards().directory().join("keeper-secret");
    std::fs::write(&secret, "keeper-secret\n").expect("a file");
    let secret = format!("auth_user_secret_file = {:?}", secret.display().to_string());
    let mut config = vec![
        ("auth", "auth_user = \"keeper\""),
        ("auth", secret.as_str()),
        ("guard", "mode = \"route\""),
    ];
    config.extend(auth.iter().map(|line| ("auth", *line)));
    let map = one_shard_map(postgres.port(), "hospital");
    Ward::start_for(users, &shards().sandbox, &map, &config)
}

fn log_in(ward: &Ward, user: &str, password: &str, env: &[(&str, &str)]) -> Output {
    let mut psql = ward.libpq(shards().sandbox.program("psql"));
    psql.args(["-X", "-qAtc", "SELECT current_user"]).env("PGUSER", user);
    psql.env("PGPASSWORD", password).envs(env.iter().copied());
    let deadline = Instant::now() + PATIENCE;
    loop {
        let output = psql.output().expect("psql");
        // Where much else runs, a host's last answer may be too old for a moment.
        if !told(&output).starts_with("ERROR:  shard 0 can't be reached now") {
            return output;
        }
        assert!(Instant::now() < deadline, "the shard is never reached");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// What psql printed, or libpq's words for why it could not log in.
fn told(output: &Output) -> String {
    let text = if output.status.success() { &output.stdout } else { &output.stderr };
    String::from_utf8_lossy(text).trim().to_owned()
}

fn assert_denied(ward: &Ward, user: &str, password: &str, env: &[(&str, &str)]) {
    let told = told(&log_in(ward, user, password, env));
    let want = format!("FATAL:  password authentication failed for user \"{user}\"");
    assert!(told.ends_with(&want), "{user}: {told}");
}

#[test]
fn roles_of_the_server_log_in_as_themselves() {
    let postgres = postgres("auth-query");
    let sql = |sql: &str| postgres.psql("hospital", sql).expect("SQL on the server itself");
    // What a client would like to be asked in place of pg_authid, also as the role's own default.
    sql("CREATE SCHEMA evil;
         CREATE TABLE evil.pg_authid (rolname name, rolpassword text, rolcanlogin bool,
             rolvaliduntil timestamptz);
         INSERT INTO evil.pg_authid VALUES ('ghost', 'ghost-secret', true);
         GRANT USAGE ON SCHEMA evil TO PUBLIC; GRANT SELECT ON evil.pg_authid TO PUBLIC;
         ALTER ROLE keeper SET search_path = evil, pg_catalog");
    let ward = ward(
        &postgres,
        USERS,
        &[
            "auth_type = \"md5\"",
            "auth_query_cache_time = 3600",
            "auth_query = \"SELECT rolname, CASE WHEN rolvaliduntil < now() THEN NULL \
             ELSE rolpassword END FROM pg_authid WHERE rolname = $1 AND rolcanlogin\"",
        ],
    );
    for (user, password) in [("doctor", "doctor-secret"), ("nurse", "nurse-secret")] {
        assert_eq!(told(&log_in(&ward, user, password, &[])), user);
        assert_denied(&ward, user, "wrong", &[]);
    }
    // The users file comes first: `app` is another there.
    assert_eq!(told(&log_in(&ward, "app", "app-password", &[])), "app");
    assert_denied(&ward, "app", "app-secret", &[]);
    for (user, password) in [
        ("late", "late-secret"),
        ("sleeping", "sleeping-secret"),
        ("bare", "bare"),
        ("nobody", "x"),
    ] {
        assert_denied(&ward, user, password, &[]);
    }

    let evil = [("PGOPTIONS", "-c search_path=evil,pg_catalog")];
    assert_denied(&ward, "ghost", "ghost-secret", &[]);
    assert_denied(&ward, "ghost", "ghost-secret", &evil);
    assert_denied(&ward, "ghost'; DROP TABLE evil.pg_authid; --", "x", &evil);
    assert_eq!(sql("SELECT count(*) FROM evil.pg_authid"), "1");

    // A role that is called like an admin is none.
    let console = told(&log_in(&ward, "boss", "boss-secret", &[("PGDATABASE", "pgward")]));
    assert!(console.contains("FATAL"), "{console}");

    // Rotated: the first login with the new one has the answer asked for again, the next gets in.
    sql("SET password_encryption = 'scram-sha-256'; ALTER ROLE doctor PASSWORD 'rotated'");
    let deadline = Instant::now() + PATIENCE;
    while told(&log_in(&ward, "doctor", "rotated", &[])) != "doctor" {
        assert!(Instant::now() < deadline, "a new password is never seen");
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_denied(&ward, "doctor", "doctor-secret", &[]);

    let log = ward.log();
    for secret in ["-secret", "rotated", "SCRAM-SHA-256$"] {
        assert!(!log.contains(secret), "{secret} in the log:\n{log}");
    }
}

#[test]
fn lookups_that_fail_let_nobody_in() {
    let postgres = postgres("auth-query-fails");
    let one_column = "auth_query = \"SELECT rolname FROM pg_authid WHERE rolname = $1\"";
    let another =
        "auth_query = \"SELECT 'app'::name, rolpassword FROM pg_authid WHERE rolname = $1\"";
    let broken =
        "auth_query = \"SELECT rolname, rolpassword FROM pg_authid WHERE rolname = $1 / 0\"";
    for query in [one_column, another, broken] {
        let ward = ward(&postgres, USERS, &[query]);
        let refused = told(&log_in(&ward, "doctor", "doctor-secret", &[]));
        assert!(refused.contains("FATAL:  the user can't be looked up now"), "{query}: {refused}");
        assert_eq!(told(&log_in(&ward, "app", "app-password", &[])), "app");
    }
}

#[test]
fn verifiers_of_the_users_file_pass_through() {
    let postgres = postgres("pass-through");
    let of = |role: &str| {
        let query = format!("SELECT rolpassword FROM pg_authid WHERE rolname = '{role}'");
        postgres.psql("postgres", &query).expect("its secret")
    };
    let users = format!(
        "[[user]]\nname = \"doctor\"\nsecret = \"{}\"\n\
         [[user]]\nname = \"nurse\"\nsecret = \"{}\"\n\
         [[user]]\nname = \"other\"\nsecret = \"{}\"\n\
         [[user]]\nname = \"shared\"\nsecret = \"shared-password\"\nserver_user = \"app\"\n\
         server_secret = \"app-secret\"\n\
         [[user]]\nname = \"admin\"\nsecret = \"admin-password\"\n",
        of("doctor"),
        of("nurse"),
        // Right for clients, and of a role that the server doesn't have.
        of("doctor"),
    );
    let rules = shards().directory().join("pass-through.conf");
    let text = "host all late,\"boss\" 127.0.0.0/8 reject\nhost hospital all 127.0.0.1 255.255.255.255 md5\n";
    std::fs::write(&rules, text).expect("a file");
    let rules = format!("auth_hba_file = {:?}", rules.display().to_string());
    let ward = ward(
        &postgres,
        &users,
        &["auth_type = \"hba\"", &rules, "auth_query_server_user = \"shared\""],
    );
    for (user, password) in [("doctor", "doctor-secret"), ("nurse", "nurse-secret")] {
        // Twice: the second finds a server that the first has left.
        for _ in 0..2 {
            assert_eq!(told(&log_in(&ward, user, password, &[])), user);
        }
        assert_denied(&ward, user, "wrong", &[]);
    }
    assert_eq!(told(&log_in(&ward, "shared", "shared-password", &[])), "app");
    // Looked up, and on the servers whom the configuration says.
    assert_eq!(told(&log_in(&ward, "keeper", "keeper-secret", &[])), "app");
    let none = told(&log_in(&ward, "other", "doctor-secret", &[]));
    assert!(none.contains("FATAL") && !none.contains("password authentication"), "{none}");
    let rejected = told(&log_in(&ward, "boss", "boss-secret", &[]));
    let want = "pg_hba.conf rejects connection for host \"127.0.0.1\", user \"boss\", \
                database \"hospital\", no encryption";
    assert!(rejected.ends_with(want), "{rejected}");
    let no_rule = told(&log_in(&ward, "admin", "admin-password", &[("PGDATABASE", "pgward")]));
    let want = "no pg_hba.conf entry for host \"127.0.0.1\", user \"admin\", database \"pgward\", \
                no encryption";
    assert!(no_rule.ends_with(want), "{no_rule}");
}
