//! Client encodings other than UTF8, and strings that end elsewhere, in transaction mode.

use pgward::wire::encoding::Encoding;

use crate::support::raw::{Login, code_of, execute, message, sync};
use crate::support::*;

const TRUST: (&str, &str) = ("auth", "auth_type = \"trust\"");
const ROUTE: (&str, &str) = ("guard", "mode = \"route\"");
const ONE_SERVER: (&str, &str) = ("pool", "default_pool_size = 1");

const ENCODINGS: &str = "LATIN1 LATIN2 LATIN3 LATIN4 LATIN5 LATIN6 LATIN7 LATIN8 LATIN9 LATIN10 \
    ISO_8859_5 ISO_8859_6 ISO_8859_7 ISO_8859_8 KOI8R KOI8U WIN866 WIN874 WIN1250 WIN1251 WIN1252 \
    WIN1253 WIN1254 WIN1255 WIN1256 WIN1257 WIN1258";

/// A client whose bytes are its own.
struct Bytes(Raw);

impl Bytes {
    fn login(ward: &Ward, more: &str) -> Self {
        Self(Cancellable::login(ward, Login { more, ..Login::default() }).raw)
    }

    fn query(&mut self, sql: &[u8]) -> Vec<Message> {
        self.0.send(&message(b'Q', &[sql, b"\0"]));
        self.0.until(b'Z').expect("an answer")
    }

    /// A named statement, parsed and run.
    fn extended(&mut self, name: &[u8], sql: &[u8]) -> Vec<Message> {
        let parse = message(b'P', &[name, b"\0", sql, b"\0\0\0"]);
        self.0.send(&[parse, self.bound(name)].concat());
        self.0.until(b'Z').expect("an answer")
    }

    fn bound(&self, name: &[u8]) -> Vec<u8> {
        let bind = message(b'B', &[b"\0", name, b"\0\0\0\0\0\0\0"]);
        [bind, execute(), sync()].concat()
    }

    fn code(&mut self, sql: &[u8]) -> String {
        code_of(&self.query(sql))
    }
}

/// The first value of an answer.
fn value_of(messages: &[Message]) -> &[u8] {
    let row = messages.iter().find(|message| message.tag == b'D');
    &row.unwrap_or_else(|| panic!("no row: {messages:?}")).body[6..]
}

#[test]
fn single_bytes_are_read_as_postgres_reads_them() {
    for name in ENCODINGS.split_whitespace() {
        let encoding = Encoding::named(name);
        assert_ne!(encoding, Encoding::Other, "{name}");
        let texts: String = (128..=255u8)
            .map(|byte| match encoding.decode(&[byte]) {
                Some(text) => format!("convert_to('{text}', '{name}') = '\\x{byte:02x}' AND "),
                None => String::new(),
            })
            .collect();
        assert_eq!(shards().psql(0, &format!("SELECT {texts} true")), "t", "{name}");
        let missing = (128..=255u8).filter(|byte| encoding.decode(&[*byte]).is_none());
        for byte in missing {
            let sql = format!("SELECT convert_from('\\x{byte:02x}', '{name}')");
            assert!(shards().primary.psql("shard0", &sql).is_err(), "{name} {byte:02x}");
        }
    }
}

#[test]
fn single_byte_texts_mean_what_they_say() {
    let shards = shards();
    let config = &[TRUST, ONE_SERVER];
    let ward = Ward::start(shards, &WardOptions { config, ..Default::default() });
    let (id, other) = (shards.hospital(0, 1), shards.hospital(0, 1));
    let (mut latin, mut utf8) = (Bytes::login(&ward, ""), Bytes::login(&ward, ""));
    let mut greek = Bytes::login(&ward, "client_encoding\0WIN1253\0");
    assert_eq!(latin.code(b"SET client_encoding = 'iso-8859-1'"), "");
    for (code, sql) in [
        ("0A000", "SET client_encoding = 'SJIS'"),
        ("0A000", "SET client_encoding = 'EUC_JP'"),
        ("0A000", "SET standard_conforming_strings = off"),
    ] {
        assert_eq!(latin.code(sql.as_bytes()), code, "{sql}");
    }
    let update = format!("UPDATE patients SET name = 'caf\u{e9}' WHERE hospital_id = '{id}'");
    let update: Vec<u8> = update.chars().map(|c| u8::try_from(c).expect("LATIN1")).collect();
    assert_eq!(latin.code(&update), "");
    // An alias that is not ASCII carries the key, and a wrong key is refused under it.
    let read = |id: uuid::Uuid| {
        let before = b"SELECT \xe9.name, '\xe9' FROM patients AS \xe9 WHERE \xe9.hospital_id = '";
        [&before[..], id.to_string().as_bytes(), b"'"].concat()
    };
    let wide = |id: uuid::Uuid| {
        let sql =
            "SELECT \u{e9}.name, '\u{e9}' FROM patients AS \u{e9} WHERE \u{e9}.hospital_id = '";
        format!("{sql}{id}'").into_bytes()
    };
    let keyless = b"SELECT \xe9.name FROM patients AS \xe9";
    for _ in 0..2 {
        assert!(value_of(&latin.query(&read(id))).starts_with(b"caf\xe9\0"));
        assert!(value_of(&utf8.query(&wide(id))).starts_with("caf\u{e9}\0".as_bytes()));
        assert!(value_of(&latin.query(&read(other))).starts_with(b"Patient 1"));
        assert_eq!(latin.code(keyless), "PW001");
        // The same bytes are another text to another client: iota.
        assert!(value_of(&greek.query(b"SELECT '\xe9', 1")).starts_with(b"\xe9\0"));
        let text = greek.query(b"SELECT ascii('\xe9')");
        assert_eq!(value_of(&text), b"953");
        assert_eq!(value_of(&latin.query(b"SELECT ascii('\xe9')")), b"233");
    }
    // One statement, prepared by one client and run for another.
    for _ in 0..2 {
        assert!(value_of(&latin.extended(b"", &read(id))).ends_with(b"\xe9"));
        assert!(value_of(&utf8.extended(b"", &wide(id))).ends_with("\u{e9}".as_bytes()));
        assert_eq!(value_of(&greek.extended(b"", b"SELECT ascii('\xe9')")), b"953");
        assert_eq!(value_of(&latin.extended(b"", b"SELECT ascii('\xe9')")), b"233");
    }
    // PREPARE is rewritten, and written in the client's encoding again.
    assert_eq!(latin.code(b"PREPARE p AS SELECT ascii('\xe9')"), "");
    assert_eq!(latin.code(b"PREPARE q(text) AS SELECT ascii($1)"), "");
    for _ in 0..2 {
        assert_eq!(value_of(&latin.query(b"EXECUTE p")), b"233");
        assert_eq!(value_of(&latin.query(b"EXECUTE q('\xe9')")), b"233");
        assert_eq!(value_of(&utf8.query("SELECT ascii('\u{e9}')".as_bytes())), b"233");
    }
    let wrong = latin.query(b"SELECT '\xe9' x y");
    assert_eq!(code_of(&wrong), "42601");
    assert!(wrong[0].body.windows(4).any(|field| field == b"P14\0"), "{wrong:?}");
    assert_eq!(greek.code(b"SELECT '\xd2'"), "22021", "no character of its");
    // What pgward quotes of it is said in ASCII.
    let gone = latin.query(b"EXECUTE \xe9");
    assert!(code_of(&gone) == "26000" && gone[0].body.is_ascii(), "{gone:?}");
}

#[test]
fn an_encoding_ends_with_its_transaction_and_settings_follow_it() {
    let shards = shards();
    let config = &[TRUST, ONE_SERVER];
    let ward = Ward::start(shards, &WardOptions { config, ..Default::default() });
    let (mut client, mut utf8) = (Bytes::login(&ward, ""), Bytes::login(&ward, ""));
    let ascii = b"SELECT ascii('\xe9')";
    for begin in ["BEGIN", "BEGIN; SELECT 1"] {
        begin.split("; ").for_each(|sql| assert_eq!(client.code(sql.as_bytes()), "", "{sql}"));
        assert_eq!(client.code(b"SET LOCAL client_encoding = 'LATIN1'"), "");
        assert_eq!(client.code(b"SAVEPOINT \"\xe9\""), "");
        assert_eq!(client.code(b"SET LOCAL app.x = '\xe9'"), "");
        assert_eq!(value_of(&client.query(ascii)), b"233");
        assert_eq!(client.code(b"ROLLBACK TO \"\xe9\""), "");
        assert_eq!(client.code(b"ROLLBACK"), "");
        assert_eq!(client.code(ascii), "22021");
    }
    // A setting that is not ASCII is replayed whatever the encoding is.
    assert_eq!(client.code(b"SET client_encoding = 'LATIN1'"), "");
    assert_eq!(client.code(b"SET app.x = '\xe9\\'"), "");
    for _ in 0..3 {
        assert_eq!(value_of(&client.query(b"SELECT current_setting('app.x')")), b"\xe9\\");
        let theirs = utf8.query(b"SELECT coalesce(current_setting('app.x', true), '')");
        assert_eq!(value_of(&theirs), b"");
    }
    // What stands behind the change in one batch would be read as it was before.
    let statement = |sql: &[u8]| {
        let parse = message(b'P', &[b"\0", sql, b"\0\0\0"]);
        [parse, message(b'B', &[b"\0\0\0\0\0\0\0\0"]), execute()].concat()
    };
    let set = statement(b"SET client_encoding = 'UTF8'");
    client.0.send(&[set, statement(ascii), sync()].concat());
    assert_eq!(code_of(&client.0.until(b'Z').expect("an answer")), "0A000");
    assert_eq!(value_of(&client.query(ascii)), b"233", "the batch was rolled back");
    let named = [&b"SELECT length('\xe9')"[..]].concat();
    assert_eq!(value_of(&client.extended(b"s", &named)), b"1");
    assert_eq!(client.code(b"SET client_encoding = 'WIN1251'"), "");
    let bound = client.bound(b"s");
    client.0.send(&bound);
    let answer = client.0.until(b'Z').expect("an answer");
    assert_eq!(code_of(&answer), "22021", "it can't be written in that");
}

#[test]
fn where_nothing_is_guarded_what_is_not_read_goes_on() {
    let map = one_shard_map(shards().primary.port(), "shard0");
    let config = &[TRUST, ROUTE, ONE_SERVER];
    let ward = Ward::start(shards(), &WardOptions { map: Some(map), config });
    let (mut client, mut utf8) = (Bytes::login(&ward, ""), Bytes::login(&ward, ""));
    for _ in 0..2 {
        assert_eq!(client.code(b"SET client_encoding = 'EUC_JP'"), "");
        assert_eq!(value_of(&client.query(b"SELECT '\xa4\xa2'")), b"\xa4\xa2");
        assert_eq!(value_of(&client.query(b"SELECT ascii('\xa4\xa2')")), b"12354");
        assert_eq!(utf8.code(b"SELECT '\xa4\xa2'"), "22021");
        assert_eq!(client.code(b"SET client_encoding = 'UTF8'"), "");
        // Where a literal ends follows the client, and nobody else.
        assert_eq!(client.code(b"SET standard_conforming_strings = off"), "");
        for _ in 0..2 {
            assert_eq!(value_of(&client.query(b"SELECT 'it\\'s'")), b"it's");
            assert_eq!(value_of(&client.extended(b"", b"SELECT 'a\\\\b'")), b"a\\b");
            assert_eq!(value_of(&utf8.extended(b"", b"SELECT 'a\\\\b'")), b"a\\\\b");
            assert_eq!(value_of(&utf8.query(b"SELECT 'it\\'")), b"it\\");
            assert_eq!(value_of(&client.query(b"SHOW standard_conforming_strings")), b"off");
        }
        assert_eq!(client.code(b"RESET standard_conforming_strings"), "");
        assert_eq!(value_of(&client.query(b"SELECT 'it\\'")), b"it\\");
    }
}

/// A statement that has been read under another setting than pgward had it is for nobody else.
#[test]
fn settings_that_change_amid_a_batch_leave_no_statement_to_others() {
    let shards = shards();
    let config = &[TRUST, ONE_SERVER];
    let ward = Ward::start(shards, &WardOptions { config, ..Default::default() });
    let id = shards.hospital(0, 1);
    let key = format!("FROM patients WHERE hospital_id = '{id}'");
    let step = |name: &str, sql: &str| {
        let parse = message(b'P', &[name.as_bytes(), b"\0", sql.as_bytes(), b"\0\0\0"]);
        let bind = message(b'B', &[b"\0", name.as_bytes(), b"\0\0\0\0\0\0\0"]);
        [parse, bind, execute()].concat()
    };
    let bytes = |wide: &str| format!("SELECT octet_length('{wide}') {key}");
    let days = |date: &str| format!("SELECT '{date}'::date - date '2020-01-01' {key}");
    let flush = message(b'H', &[]);
    let dmy = "datestyle\0ISO, DMY\0";
    let latin = "client_encoding\0LATIN1\0";
    let long = format!("SET datestyle = 'ISO, DMY' /*{}*/", "x".repeat(1 << 20));
    // (startup, before a Sync, amid a batch and how it goes on, what is parsed then, in what the other
    // client begins, its text, its answer)
    let cases = [
        (
            "",
            "SET LOCAL client_encoding = 'LATIN1'",
            "SET LOCAL client_encoding = 'UTF8'",
            true,
            bytes("\u{e9}"),
            "",
            bytes("\u{c3}\u{a9}"),
            "4",
        ),
        (
            "",
            "SET LOCAL client_encoding = 'LATIN1'",
            "ROLLBACK TO s",
            true,
            bytes("\u{e8}"),
            "",
            bytes("\u{c3}\u{a8}"),
            "4",
        ),
        (
            latin,
            "SELECT",
            "RESET client_encoding",
            true,
            bytes("\u{ea}"),
            "",
            bytes("\u{c3}\u{aa}"),
            "4",
        ),
        (dmy, "SELECT", "RESET datestyle", true, days("01/02/2020"), dmy, days("01/02/2020"), "31"),
        (
            "",
            "SET LOCAL datestyle = 'ISO, DMY'",
            "ROLLBACK TO s",
            false,
            days("02/03/2020"),
            dmy,
            days("02/03/2020"),
            "61",
        ),
        ("", "SELECT", &long, false, days("03/04/2020"), "", days("03/04/2020"), "63"),
    ];
    for (startup, before, amid, has_flush, sql, others, same, want) in cases {
        let mut client = Bytes::login(&ward, startup);
        for sql in ["BEGIN", &format!("SELECT 1 {key}"), "SAVEPOINT s", before] {
            assert_eq!(client.code(sql.as_bytes()), "", "{sql}");
        }
        client.0.send(&step("", amid));
        if has_flush {
            client.0.send(&flush);
            client.0.until(b'C').expect("done");
        } else if amid.len() > 1000 {
            std::thread::sleep(std::time::Duration::from_millis(500));
        }
        client.0.send(&[step("x", &sql), sync()].concat());
        client.0.until(b'Z').expect("an answer");
        client.code(b"COMMIT");
        let answer = Bytes::login(&ward, others).extended(b"y", same.as_bytes());
        assert_eq!(value_of(&answer), want.as_bytes(), "{before}; {}", &amid[..20.min(amid.len())]);
    }
}
