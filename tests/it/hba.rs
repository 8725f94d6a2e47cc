//! Rules for logins against their golden table: `tests/golden/hba/rules.txt`, which says its own form.

use pgward::auth::hba::Rules;
use pgward::auth::ident::Maps;
use pgward::auth::{Asked, Method, Methods, Refused};
use pgward::net::{CertificateNames, Origin, TlsFacts};
use proptest::prelude::*;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/hba/rules.txt");
const MAPS: &str = "staff Anna app\nmail /^(.*)@hospital\\.example$ \\1\n";

#[test]
fn rules_decide_as_the_table_says() {
    let golden = std::fs::read_to_string(FILE).unwrap();
    let (head, cases) = golden.split_once("\n\n## ").unwrap();
    let mut out = head.to_owned();
    for case in cases.trim_end().split("\n\n## ") {
        let (rules, logins) = case.split_once("\n----").unwrap();
        let (title, rules) = rules.split_once('\n').unwrap();
        out += &format!("\n\n## {title}\n{rules}\n----");
        let logins = logins.lines().filter(|line| !line.is_empty() && !line.starts_with(' '));
        match parse(rules) {
            Ok(rules) => {
                for login in logins {
                    out += &format!("\n{login}\n    {}", decide(&rules, login));
                }
            }
            Err(problems) => {
                for problem in problems.lines() {
                    out += &format!("\n    {problem}");
                }
            }
        }
    }
    out += "\n";
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(FILE, out).unwrap();
    } else {
        for (got, want) in out.lines().zip(golden.lines()) {
            assert_eq!(got, want);
        }
        assert_eq!(out, golden);
    }
}

fn parse(text: &str) -> Result<Rules, String> {
    let include = |name: &str| match name {
        "databases" => Ok("listed, \"more\"\n".to_owned()),
        "users" => Ok("# who\nanna\n".to_owned()),
        "nested" => Ok("@users".to_owned()),
        _ => Err("no such file".to_owned()),
    };
    let maps = Maps::parse("ident", MAPS).unwrap();
    Rules::parse("hba", text, &maps, &include).map_err(|problems| problems.to_string())
}

fn decide(rules: &Rules, login: &str) -> String {
    let mut words = login.split(' ');
    let user = words.next().unwrap().replace('+', " ");
    let database = words.next().unwrap();
    let mut origin = Origin::default();
    match words.next().unwrap() {
        "local" => {}
        address => origin.peer = Some((address.parse::<std::net::IpAddr>().unwrap(), 1).into()),
    }
    for word in words {
        let tls = origin.tls.get_or_insert_with(TlsFacts::default);
        let Some((name, value)) = word.split_once('=') else { continue };
        let names = tls.client_certificate.get_or_insert_with(CertificateNames::default);
        match name {
            "CN" => names.common_name = Some(value.to_owned()),
            _ => names.distinguished_name = value.to_owned(),
        }
    }
    // As Postgres's own clients name it.
    let is_physical = database == "replication";
    let asked = Asked { user: &user, database, is_physical, origin: &origin };
    let methods = Methods::rules(rules.clone(), Maps::parse("ident", MAPS).unwrap());
    let line = rules.line(&asked).map(|line| format!("line {line}: ")).unwrap_or_default();
    match methods.demand(&asked) {
        Ok(method) => format!("{line}{method:?}"),
        Err(refused) => format!("{line}28000 {}", refused.message(&asked)),
    }
}

#[test]
fn the_examples_are_fine() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/config");
    let text = r#"auth = { auth_type = "hba", auth_hba_file = "hba.conf", auth_ident_file = "ident.conf" }"#;
    let mut auth = pgward::config::Config::parse("pgward.toml", text).unwrap().auth;
    for file in [&mut auth.auth_hba_file, &mut auth.auth_ident_file] {
        *file = std::path::Path::new(folder).join(&*file);
    }
    let methods = Methods::load(&auth).unwrap();
    for (user, database, from, tls, want) in [
        ("admin", "pgbouncer", "127.0.0.1", None, Ok(Method::ScramSha256)),
        ("admin", "pgbouncer", "10.1.2.3", None, Err(Refused::Rejected)),
        ("migrate", "hospital", "10.1.2.3", Some("Anna Berg"), Ok(Method::Cert)),
        ("migrate", "hospital", "10.1.2.3", Some("migrate"), Err(Refused::OtherCertificate)),
        ("app", "hospital", "10.1.2.3", Some("x"), Ok(Method::ScramSha256)),
        ("app", "hospital", "10.1.2.3", None, Err(Refused::NoRule)),
    ] {
        let peer = Some((from.parse::<std::net::IpAddr>().unwrap(), 1).into());
        let names = |name: &str| CertificateNames {
            common_name: Some(name.to_owned()),
            ..CertificateNames::default()
        };
        let tls = tls
            .map(|name| TlsFacts { client_certificate: Some(names(name)), ..TlsFacts::default() });
        let origin = Origin { peer, tls };
        assert_eq!(
            methods.demand(&Asked { user, database, is_physical: false, origin: &origin }),
            want,
            "{user} {from}"
        );
    }
}

proptest! {
    #[test]
    fn any_text_is_rules_or_has_a_problem(
        text in "((host|local|hostssl|\\PC{0,5}) (all|[a-z\",@+/]{0,6}) (all|\\PC{0,5}) (all|[0-9a-f:./ ]{0,14}) (trust|cert|[a-z]{0,4})[ a-z=\\\\\n\"#]{0,9}\n){0,4}",
    ) {
        match parse(&text) {
            Ok(rules) => drop(decide(&rules, "app hospital 127.0.0.1")),
            Err(problems) => prop_assert!(!problems.is_empty()),
        }
    }

    /// A rule of one network lets in exactly the addresses that share its leading bits.
    #[test]
    fn networks_are_their_leading_bits(net: u32, address: u32, bits in 0..=32u32) {
        let (net_ip, ip) = (std::net::Ipv4Addr::from(net), std::net::Ipv4Addr::from(address));
        let rules = parse(&format!("host all all {net_ip}/{bits} trust")).unwrap();
        let shares = bits == 0 || (net ^ address) >> (32 - bits) == 0;
        let got = decide(&rules, &format!("app hospital {ip}"));
        prop_assert_eq!(got == "line 1: Trust", shares, "{} in {}/{}: {}", ip, net_ip, bits, got);
    }
}
