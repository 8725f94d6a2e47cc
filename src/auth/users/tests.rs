//! Users files: what they say, what is wrong with them, and who logs in by them.

use proptest::prelude::*;

use super::*;
use crate::auth::scram::{ClientExchange, ServerExchange};
use crate::route::{CrossHospital, Hospitals};
use crate::shard_map::HospitalId;

const SEED: [u8; 32] = [7; 32];

fn auth(auth_type: AuthType) -> Auth {
    Auth { auth_type, scram_iterations: 64, ..Auth::default() }
}

fn secret(source: Source<'_>) -> Result<String, String> {
    match source {
        Source::Env("GOOD") => Ok("from env".into()),
        Source::File("good.secret") => Ok("from file\r\n".into()),
        Source::File("empty.secret") => Ok("\n".into()),
        Source::Env(name) | Source::File(name) => Err(format!("{name} is not there")),
    }
}

fn parse(text: &str) -> Result<Users, Problems> {
    Users::parse("users.toml", text, &auth(AuthType::ScramSha256), SEED, &secret)
}

fn verifier(users: &Users, name: &str) -> Verifier {
    users.verifier(name, users.get(name).map(Arc::as_ref))
}

fn log_in(users: &Users, name: &str, with: &str) -> Result<(), Error> {
    let (first, client) = ClientExchange::start(&Secret::new(with));
    let (reply, server) = ServerExchange::start(&first, &verifier(users, name))?;
    let (last, _) = client.on_server_first(reply.as_bytes())?;
    server.finish(&last).map(|_| ())
}

#[test]
fn users_log_in_with_what_the_file_says() {
    let stored = postgres_protocol::password::scram_sha_256(b"kept");
    let text = format!(
        r#"
        [[user]]
        name = "plain"
        secret = "a secret"
        [[user]]
        name = "env"
        secret_env = "GOOD"
        cross_hospital = "read"
        shard_access = true
        [[user]]
        name = "file"
        secret_file = "good.secret"
        server_user = "app"
        server_secret_env = "GOOD"
        [[user]]
        name = "stored"
        secret = "{stored}"
        server_user = "app"
        server_secret_env = "GOOD"
        "#
    );
    let users = parse(&text).unwrap();
    for warm in [false, true] {
        if warm {
            users.warm();
        }
        for (name, good) in
            [("plain", "a secret"), ("env", "from env"), ("file", "from file"), ("stored", "kept")]
        {
            assert_eq!(log_in(&users, name, good), Ok(()), "{name}");
            assert_eq!(log_in(&users, name, "bad"), Err(Error::Denied));
            assert_eq!(log_in(&users, name, name), Err(Error::Denied));
        }
        assert_eq!(log_in(&users, "nobody", "bad"), Err(Error::Denied));
    }

    let server = |name: &str| {
        let server = &users.get(name).unwrap().server;
        (server.user.clone(), server.secret.clone())
    };
    assert_eq!(server("plain"), ("plain".into(), Some(ServerSecret::plain("a secret"))));
    assert_eq!(server("stored"), ("app".into(), Some(ServerSecret::plain("from env"))));
    let rights = &users.get("env").unwrap().rights;
    assert_eq!((rights.shard_access, rights.cross_hospital), (true, CrossHospital::Read));
    assert_eq!(users.get("plain").unwrap().rights, Rights::default());
    assert!(users.get("nobody").is_none());
}

#[test]
fn hospitals_bind_a_user() {
    let id = "f47ac10b-58cc-4372-a567-0e02b2c3d479";
    let other = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";
    let text = format!(
        "[[user]]\nname = 'a'\nsecret = 's'\nhospital = '{id}'\n\
         [[user]]\nname = 'b'\nsecret = 't'\nhospitals = ['{id}', '{other}']\n"
    );
    let users = parse(&text).unwrap();
    let ids = |ids: &[&str]| {
        Hospitals::Only(ids.iter().map(|id| HospitalId::parse(id).unwrap()).collect())
    };
    assert_eq!(users.get("a").unwrap().rights.hospitals, ids(&[id]));
    assert_eq!(users.get("b").unwrap().rights.hospitals, ids(&[id, other]));
}

#[test]
fn two_secrets_are_valid_during_a_rotation() {
    let stored = postgres_protocol::password::scram_sha_256(b"old");
    let text = format!(
        r#"
        [[user]]
        name = "plain"
        secret = "new"
        previous_secret = "old"
        [[user]]
        name = "mixed"
        secret = "new"
        previous_secret = "{stored}"
        [[user]]
        name = "files"
        secret_env = "GOOD"
        previous_secret_file = "good.secret"
        "#
    );
    let users = parse(&text).unwrap();
    for warm in [false, true] {
        if warm {
            users.warm();
        }
        for (name, secrets) in [
            ("plain", ["new", "old"]),
            ("mixed", ["new", "old"]),
            ("files", ["from env", "from file"]),
        ] {
            for secret in secrets {
                assert_eq!(log_in(&users, name, secret), Ok(()), "{name} {secret}");
                let password = Secret::new(secret);
                let check = users.password_check(name, users.get(name).cloned(), password);
                assert!(check().is_ok(), "{name} {secret}");
            }
            assert_eq!(log_in(&users, name, "other"), Err(Error::Denied));
        }
    }
    // pgward logs in with the present one.
    let server = &users.get("plain").unwrap().server;
    assert_eq!(server.secret, Some(ServerSecret::plain("new")));

    let other = postgres_protocol::password::scram_sha_256(b"new");
    for (secrets, want) in [
        (format!("secret = '{other}'\nprevious_secret = '{stored}'"), "two SCRAM verifiers"),
        (format!("previous_secret = '{stored}'"), "a previous secret needs a present one"),
    ] {
        let told = parse(&format!("[[user]]\nname = 'a'\n{secrets}\n")).unwrap_err().to_string();
        assert!(told.contains(want), "{told}");
        assert!(!told.contains("SCRAM-SHA-256$"), "{told}");
    }
}

#[test]
fn a_user_is_valid_until_its_time() {
    let until = |value: &str| {
        parse(&format!("[[user]]\nname = 'a'\nsecret = 's'\nvalid_until = {value}\n"))
    };
    let at = |seconds| SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
    for value in ["2026-11-24T14:00:00Z", "'2026-11-24 14:00:00+00'", "'2026-11-24 15:00:00+01'"] {
        let users = until(value).unwrap();
        let user = users.get("a").unwrap();
        assert!(
            !user.is_expired(at(1_795_528_799)) && user.is_expired(at(1_795_528_800)),
            "{value}"
        );
    }
    for value in ["'tomorrow'", "2026-11-24", "2026-11-24T14:00:00", "14:00:00", "7"] {
        let told = until(value).unwrap_err().to_string();
        assert!(told.starts_with("users.toml:4:15: `valid_until` must be a date"), "{told}");
    }
}

#[test]
fn hashes_pass_through_where_there_is_no_server_user() {
    let stored = postgres_protocol::password::scram_sha_256(b"kept");
    let hash = postgres_protocol::password::md5(b"kept", "hashed");
    let text = format!(
        "[[user]]\nname = 'stored'\nsecret = '{stored}'\n\
         [[user]]\nname = 'hashed'\nsecret = '{hash}'\n"
    );
    let users = Users::parse("users.toml", &text, &auth(AuthType::Md5), SEED, &secret).unwrap();
    let stored = users.get("stored").unwrap();
    assert_eq!(stored.server.secret, Some(ServerSecret::FromClient));
    let password = Secret::new("kept");
    let keys = users.password_check("stored", Some(stored.clone()), password.clone())().unwrap();
    let proven = stored.proven_with(keys.unwrap());
    assert!(matches!(proven.server.secret, Some(ServerSecret::Keys(_))));
    assert_eq!(proven.server.user, "stored");
    let hashed = users.get("hashed").unwrap();
    assert_eq!(hashed.server.secret, Some(ServerSecret::Md5(Secret::new(&hash))));
    assert_eq!(users.password_check("hashed", Some(hashed.clone()), password)(), Ok(None));
    assert!(users.is_asked_for_scram(Some(stored)) && !users.is_asked_for_scram(Some(hashed)));
    assert!(!users.is_asked_for_scram(None), "as most are; here as many");
}

#[test]
fn who_is_looked_up_has_the_least_rights() {
    let user = User::looked_up("app", "secret", None);
    assert_eq!(user.rights, Rights::default());
    assert!(!user.is_listed);
    assert_eq!(user.server.secret, Some(ServerSecret::plain("secret")));
    // What can't be read is no secret, and nobody has it.
    let user = Arc::new(User::looked_up("app", "SCRAM-SHA-256$broken", None));
    assert_eq!(user.server.secret, None);
    let users = parse("").unwrap();
    let check =
        |password: &str| users.password_check("app", Some(user.clone()), Secret::new(password))();
    for password in ["", "app", "SCRAM-SHA-256$broken"] {
        assert_eq!(check(password), Err(Error::Denied), "{password}");
    }
}

#[test]
fn userlists_of_pgbouncer_are_read() {
    let stored = postgres_protocol::password::scram_sha_256(b"kept");
    let text = format!(
        "; users\n\"app\" \"sec\"\"ret\"\n\n\"stored\" \"{stored}\" \"ignored\"\n\"none\" \"\"\r\n"
    );
    let read = |text: &str| {
        Users::parse_userlist("userlist.txt", text, &auth(AuthType::ScramSha256), SEED)
    };
    let users = read(&text).unwrap();
    assert_eq!(users.iter().count(), 3);
    assert_eq!(log_in(&users, "app", "sec\"ret"), Ok(()));
    assert_eq!(log_in(&users, "stored", "kept"), Ok(()));
    for secret in ["", "none", "x"] {
        assert_eq!(log_in(&users, "none", secret), Err(Error::Denied));
    }
    assert_eq!(users.get("app").unwrap().rights, Rights::default());
    let bad = "app secret\n\"a\" \"b\n\"\" \"x\"\n\"a\" \"hunter2\"x\n\"a\" \"b\"\n\"a\" \"b\"\n\
               \"m\" \"md50123456789abcdef0123456789abcdef\"\n\"s\" \"SCRAM-SHA-256$x\"\n";
    let want = [
        "1:1: a line is \"name\" \"secret\"",
        "2:1: a line is \"name\" \"secret\"",
        "3:1: a name has 1 to 1024 bytes, no NUL",
        "4:1: a line is \"name\" \"secret\"",
        "6:1: user \"a\" is listed twice",
        "7:1: an md5 secret can't do SCRAM: give the plain secret or a SCRAM verifier",
        "8:1: not a SCRAM-SHA-256 verifier",
    ];
    let want = want.map(|line| format!("userlist.txt:{line}")).join("\n");
    assert_eq!(read(bad).unwrap_err().to_string(), want);
}

#[test]
fn trust_needs_no_secret() {
    let text = "[[user]]\nname = 'app'\n";
    let users = Users::parse("users.toml", text, &auth(AuthType::Trust), SEED, &secret).unwrap();
    assert!(users.get("app").unwrap().server.secret.is_none());
    assert_eq!(log_in(&users, "app", "app"), Err(Error::Denied));
}

#[test]
fn limits_of_a_server_user_hold_for_all_who_are_it() {
    let user = |name: &str, server: &str, lines: &str| {
        format!("[[user]]\nname = '{name}'\nsecret = 'x'\nserver_user = '{server}'\n{lines}\n")
    };
    let text = [
        user("a", "app", ""),
        user("b", "app", "pool_size = 7"),
        user("c", "app", "max_user_connections = 9\npool_size = 7\nreserve_pool_size = 0"),
        user("d", "other", ""),
    ];
    let users = parse(&text.concat()).expect("fine");
    let limits = |name: &str| users.get(name).expect(name).server.limits;
    let want = ServerLimits {
        pool_size: Some(7),
        reserve_pool_size: Some(0),
        max_user_connections: Some(9),
    };
    assert_eq!([limits("a"), limits("b"), limits("c")], [want; 3]);
    assert_eq!(limits("d"), ServerLimits::default());
    let clash = user("e", "app", "pool_size = 8");
    let problems = parse(&(text.concat() + &clash)).unwrap_err().to_string();
    assert!(problems.contains("server user \"app\" has another `pool_size` here than above"));
    assert!(parse(&user("f", "app", "pool_size = 0")).is_err(), "a pool of none");
}

#[test]
fn limits_of_a_user_are_read() {
    let text = "
        [[user]]
        name = 'a'
        secret = 'x'
        pool_mode = 'statement'
        max_user_client_connections = 7
        query_timeout = 0
        query_wait_timeout = 1.5
        transaction_timeout = 0x10
        [[user]]
        name = 'b'
        secret = 'x'
    ";
    let users = parse(text).expect("fine");
    let limits = &users.get("a").expect("a").limits;
    let want = UserLimits {
        pool_mode: Some(PoolMode::Statement),
        max_user_client_connections: Some(7),
        query_timeout: Some(0.0),
        query_wait_timeout: Some(1.5),
        transaction_timeout: Some(16.0),
        ..UserLimits::default()
    };
    assert_eq!(*limits, want);
    assert_eq!(users.get("b").expect("b").limits, UserLimits::default());
    for (line, words) in [
        ("pool_mode = 'row'", "`pool_mode` must be session, transaction or statement"),
        ("query_timeout = -1", "`query_timeout` must be seconds from 0 to 1000000000, not -1"),
        ("query_timeout = nan", "`query_timeout` must be seconds"),
        ("client_idle_timeout = '1 s'", "`client_idle_timeout` must be seconds"),
    ] {
        let text = format!("[[user]]\nname = 'a'\nsecret = 'x'\n{line}");
        let problems = parse(&text).expect_err(line).to_string();
        assert!(problems.contains(words), "{line}: {problems}");
    }
}

#[test]
fn salts_outlive_a_reload_for_known_and_unknown_names() {
    let text = "[[user]]\nname = 'a'\nsecret = 'b'\n";
    let server_first = |users: &Users, name: &str| {
        let (first, _) = ClientExchange::start(&Secret::new("x"));
        let (reply, _) = ServerExchange::start(&first, &verifier(users, name)).unwrap();
        reply.split_once(',').unwrap().1.to_owned()
    };
    let (before, after) = (parse(text).unwrap(), parse(text).unwrap());
    for name in ["a", "nobody"] {
        assert_eq!(server_first(&before, name), server_first(&after, name));
    }
    assert_ne!(server_first(&before, "a"), server_first(&before, "nobody"));
}

#[test]
fn all_problems_come_at_once_with_line_and_column() {
    let text = r#"colour = "red"
[[user]]
secret = "s"
nmae = "typo"
[[user]]
name = ""
secret = "s"
[[user]]
name = "two"
secret = "s"
secret_env = "GOOD"
[[user]]
name = "missing"
secret_env = "NOT_SET"
[[user]]
name = "empty"
secret_file = "empty.secret"
[[user]]
name = "old"
secret = "md50123456789abcdef0123456789abcdef"
[[user]]
name = "broken"
secret = "SCRAM-SHA-256$4096:x"
[[user]]
name = "verifier"
secret = "SCRAM-SHA-256$1:c2FsdA==$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
[[user]]
name = "hashed"
secret = "s"
server_user = "app"
server_secret = "SCRAM-SHA-256$x"
[[user]]
name = "lonely"
secret = "s"
server_secret = "t"
[[user]]
name = "none"
[[user]]
name = "rights"
secret = "s"
hospitals = []
shard_access = "yes"
cross_hospital = "all"
[[user]]
name = "rights"
secret = "other"
[[user]]
name = "unquoted"
secret = 123456
"#;
    let keys = "`name`, `secret`, `secret_env`, `secret_file`, `previous_secret`, \
                `previous_secret_env`, `previous_secret_file`, `valid_until`, `server_user`, `server_secret`, \
                `server_secret_env`, `server_secret_file`, `pool_size`, `reserve_pool_size`, \
                `max_user_connections`, `hospital`, `hospitals`, \
                `shard_access`, `cross_hospital`, `pool_mode`, `max_user_client_connections`, \
                `query_timeout`, `query_wait_timeout`, `transaction_timeout`, \
                `idle_transaction_timeout`, `client_idle_timeout`";
    let want = [
        "1:1: unknown key `colour`; known: `user`",
        "2:1: `name` is missing in [[user]]",
        &format!("4:1: unknown key `nmae` in [[user]]; known: {keys}"),
        "6:8: `name` must have 1 to 1024 bytes and no NUL",
        "11:14: only one of secret, secret_env, secret_file may be given",
        "14:14: `secret_env`: NOT_SET is not there",
        "17:15: `secret_file`: a secret has 1 to 1024 bytes, no NUL",
        "20:10: an md5 secret can't do SCRAM: give the plain secret or a SCRAM verifier",
        "23:10: not SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>",
        "31:17: a server's secret must be plain: pgward logs in with it",
        "32:1: a server secret needs its `server_user`",
        "36:1: a user needs `secret`, `secret_env` or `secret_file`",
        "41:13: `hospitals` must have at least one uuid",
        "42:16: `shard_access` must be true or false, not a string",
        "43:18: `cross_hospital` must be none, read or write",
        "44:1: server user \"rights\" has another secret here than above",
        "44:1: user \"rights\" is listed twice",
        "49:10: `secret` must be a string",
    ];
    let got = parse(text).unwrap_err().to_string();
    let want = want.map(|line| format!("users.toml:{line}")).join("\n");
    assert_eq!(got, want);
}

#[test]
fn a_bound_user_gets_no_right_that_unbinds_it() {
    let id = "f47ac10b-58cc-4372-a567-0e02b2c3d479";
    let user = format!("[[user]]\nname = 'a'\nsecret = 's'\nhospital = '{id}'\n");
    for (right, want) in [
        ("shard_access = true", "`shard_access` reaches every hospital of a shard"),
        ("cross_hospital = 'read'", "`cross_hospital` reaches every hospital"),
        ("hospitals = []", "`hospital` and `hospitals` exclude each other"),
    ] {
        let problems = parse(&format!("{user}{right}\n")).unwrap_err();
        let told = problems.to_string();
        assert!(told.starts_with("users.toml:5:") && told.contains(want), "{told}");
        assert_eq!(problems.list.len(), 1);
    }
    assert!(parse(&format!("{user}shard_access = false\ncross_hospital = 'none'\n")).is_ok());
    let problems = parse("[[user]]\nname = 'a'\nsecret = 's'\nhospital = 'x'\n").unwrap_err();
    assert_eq!(problems.to_string(), "users.toml:4:12: a hospital is a uuid");
}

#[test]
fn no_problem_and_no_debug_shows_a_secret() {
    let problems = parse("[[user]]\nname = 'a'\nsecret = 'hunter2' x\n").unwrap_err();
    let error = LoadError::from(problems);
    assert!(error.to_string().starts_with("users.toml:3:20: "), "{error}");
    assert!(!format!("{error} {error:?}").contains("hunter2"));
    let users = parse("[[user]]\nname = 'a'\nsecret = 'hunter2'\n").unwrap();
    users.warm();
    assert!(!format!("{users:?}").contains("hunter2"));
}

proptest! {
    #[test]
    fn any_text_is_a_userlist_or_has_a_problem(text in "([\";a-z\\\\ ]{0,12}\n){0,4}\\PC{0,9}") {
        let auth = auth(AuthType::ScramSha256);
        if let Err(problems) = Users::parse_userlist("userlist.txt", &text, &auth, SEED) {
            prop_assert!(!problems.list.is_empty());
        }
    }

    #[test]
    fn any_text_is_a_file_or_has_a_problem(text in "(\\[\\[user\\]\\]\n)?([a-z_]{0,9} ?= ?['\"0-9\\[\\]{}a-z]{0,9}\n){0,4}\\PC{0,9}") {
        if let Err(problems) = parse(&text) {
            prop_assert!(!problems.list.is_empty());
        }
    }
}
