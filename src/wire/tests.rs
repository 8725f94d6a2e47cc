//! Tests of the wire room: shapes by table, robustness by property.

use bytes::BytesMut;
use proptest::prelude::*;

use super::backend::{self, AuthRequest, ErrorFields, ErrorReply};
use super::frontend::{self, Bind, BindParams, Execute, Kind, Named, Parse, Query, SaslInitial};
use super::startup::{self, BadParams, Packet, Replication, Startup, StartupParams};
use super::*;

const LIMIT: usize = 1 << 20;

/// Body of the only message in `out`.
fn body(out: &BytesMut, tag: u8) -> Vec<u8> {
    let (found, body) = peek(out, LIMIT).unwrap().expect("a whole message");
    assert_eq!((found as char, HEADER_BYTES + body.len()), (tag as char, out.len()));
    body.to_vec()
}

fn written(write: impl FnOnce(&mut BytesMut)) -> BytesMut {
    let mut out = BytesMut::new();
    write(&mut out);
    out
}

/// A Bind's body from its parts.
fn bind_body(
    names: (&[u8], &[u8]),
    formats: &[i16],
    params: &[Option<Vec<u8>>],
    results: &[i16],
) -> Vec<u8> {
    let mut out = Vec::new();
    for name in [names.0, names.1] {
        out.extend(name);
        out.push(0);
    }
    let codes = |out: &mut Vec<u8>, codes: &[i16]| {
        out.extend((codes.len() as u16).to_be_bytes());
        codes.iter().for_each(|code| out.extend(code.to_be_bytes()));
    };
    codes(&mut out, formats);
    out.extend((params.len() as u16).to_be_bytes());
    for param in params {
        match param {
            Some(bytes) => {
                out.extend((bytes.len() as i32).to_be_bytes());
                out.extend(bytes);
            }
            None => out.extend((-1i32).to_be_bytes()),
        }
    }
    codes(&mut out, results);
    out
}

#[test]
fn lengths_are_refused_before_anything_is_read() {
    for (length, want) in [
        (i32::MIN, Error::LengthTooSmall { tag: b'Q', length: i32::MIN }),
        (-1, Error::LengthTooSmall { tag: b'Q', length: -1 }),
        (3, Error::LengthTooSmall { tag: b'Q', length: 3 }),
        (i32::MAX, Error::TooLong { tag: b'Q', length: 1 << 31, limit: 100 }),
        (100, Error::TooLong { tag: b'Q', length: 101, limit: 100 }),
    ] {
        let mut bytes = vec![b'Q'];
        bytes.extend(length.to_be_bytes());
        assert_eq!(header(&bytes, 100), Err(want), "length {length}");
    }
    assert_eq!(header(b"Q\0\0\0\x63", 100), Ok(Some(Header { tag: b'Q', total: 100 })));
}

#[test]
fn client_messages_are_written_as_they_are_read() {
    let out = written(|out| frontend::write_query(out, b"SELECT 1"));
    assert_eq!(Query::read(&body(&out, b'Q')), Ok(Query { sql: b"SELECT 1" }));

    let out = written(|out| frontend::write_parse(out, b"s", b"SELECT $1", [2950, 0].into_iter()));
    let bytes = body(&out, b'P');
    let parse = Parse::read(&bytes).unwrap();
    assert_eq!((parse.name, parse.sql), (&b"s"[..], &b"SELECT $1"[..]));
    assert_eq!(parse.param_types().collect::<Vec<_>>(), [2950, 0]);

    let out = written(|out| frontend::write_bind(out, b"", b"s"));
    let bytes = body(&out, b'B');
    let bind = Bind::read(&bytes).unwrap();
    assert_eq!((bind.portal, bind.statement, bind.param_count()), (&b""[..], &b"s"[..], 0));

    let out = written(|out| frontend::write_describe(out, Kind::Portal, b"p"));
    let want = Named { kind: Kind::Portal, name: b"p" };
    assert_eq!(Named::read_describe(&body(&out, b'D')), Ok(want));
    let out = written(|out| frontend::write_close(out, Kind::Statement, b"s"));
    let want = Named { kind: Kind::Statement, name: b"s" };
    assert_eq!(Named::read_close(&body(&out, b'C')), Ok(want));
    let out = written(|out| frontend::write_execute(out, b"p", 7));
    assert_eq!(Execute::read(&body(&out, b'E')), Ok(Execute { portal: b"p", max_rows: 7 }));

    let out = written(|out| frontend::write_sasl_initial(out, "SCRAM-SHA-256", b"n,,"));
    let want = SaslInitial { mechanism: b"SCRAM-SHA-256", data: Some(b"n,,") };
    assert_eq!(SaslInitial::read(&body(&out, b'p')), Ok(want));
    let out = written(|out| frontend::write_password(out, b"pw"));
    assert_eq!(body(&out, b'p'), b"pw\0");
    let out = written(|out| frontend::write_sasl_response(out, b"c=biws"));
    assert_eq!(body(&out, b'p'), b"c=biws");

    for (tag, write) in [
        (b'S', frontend::write_sync as fn(&mut BytesMut)),
        (b'H', frontend::write_flush),
        (b'X', frontend::write_terminate),
    ] {
        assert_eq!(body(&written(write), tag), b"");
    }
}

#[test]
fn a_parameter_has_its_own_format_or_the_common_one() {
    let params = [Some(b"a".to_vec()), None, Some(vec![])];
    for (formats, want) in [(&[][..], [0, 0, 0]), (&[1], [1, 1, 1]), (&[0, 1, 0], [0, 1, 0])] {
        let bytes = bind_body((b"", b""), formats, &params, &[]);
        let bind = Bind::read(&bytes).unwrap();
        for n in 1..=3u16 {
            let value = params[usize::from(n) - 1].as_deref();
            assert_eq!(bind.param(n), Some((want[usize::from(n) - 1], value)));
        }
        assert_eq!((bind.param(0), bind.param(4)), (None, None));
    }
}

#[test]
fn the_longest_bind_is_read_by_number_in_linear_time() {
    let params = vec![Some(b"1".to_vec()); 65_535];
    let bytes = bind_body((b"", b""), &[], &params, &[]);
    let by_number = BindParams::new(Bind::read(&bytes).unwrap());
    // Each walked to, this would be two thousand million steps: not wrong, but never done.
    assert!((1..=65_535).rev().all(|n| by_number.get(n) == Some((0, Some(&b"1"[..])))));
}

#[test]
fn malformed_client_messages_are_errors() {
    type Read = fn(&[u8]) -> Option<Error>;
    let query: Read = |b| Query::read(b).err();
    let parse: Read = |b| Parse::read(b).err();
    let bind: Read = |b| Bind::read(b).err();
    let execute: Read = |b| Execute::read(b).err();
    let close: Read = |b| Named::read_close(b).err();
    for (read, bytes, want) in [
        (query, &b""[..], "string has no NUL"),
        (query, b"a\0b\0", "has bytes left over"),
        (parse, b"s\0q\0\0\x01\0\0\0", "ends too early"),
        (parse, b"s\0q\0\xff\xff", "ends too early"),
        (
            bind,
            b"\0\0\0\x02\0\0\0\0\0\x01\0\0\0\0\0\0",
            "number of formats is not that of parameters",
        ),
        (bind, b"\0\0\0\0\0\x01\xff\xff\xff\xfe\0\0", "negative parameter length"),
        (bind, b"\0\0\0\0\0\x01\x7f\xff\xff\xff\0\0", "ends too early"),
        (bind, b"\0\0\0\0\xff\xff\0\0", "ends too early"),
        (bind, b"\0\0\0\0\0\0\0\0x", "has bytes left over"),
        (execute, b"\0\0\0", "ends too early"),
        (close, b"X\0", "names neither a statement nor a portal"),
    ] {
        match read(bytes) {
            Some(Error::Malformed { what, .. }) => assert_eq!(what, want, "{bytes:?}"),
            other => panic!("{bytes:?}: {other:?}"),
        }
    }
}

#[test]
fn bind_takes_as_many_parameters_as_postgres() {
    let params = vec![None; 65_535];
    let bytes = bind_body((b"", b""), &[], &params, &[]);
    let bind = Bind::read(&bytes).unwrap();
    assert_eq!(bind.params().count(), 65_535);
    assert_eq!(bind.param(65_535), Some((0, None)));
}

#[test]
fn server_messages_are_written_as_they_are_read() {
    let out = written(|out| backend::write_ready_for_query(out, TxnStatus::Failed));
    assert_eq!(backend::read_ready_for_query(&body(&out, b'Z')), Ok(TxnStatus::Failed));
    let out = written(|out| backend::write_parameter_status(out, "TimeZone", "UTC"));
    assert_eq!(backend::read_parameter_status(&body(&out, b'S')), Ok(("TimeZone", &b"UTC"[..])));
    let out = written(|out| backend::write_command_complete(out, "SELECT 1"));
    assert_eq!(backend::read_command_complete(&body(&out, b'C')), Ok(&b"SELECT 1"[..]));
    let out = written(|out| backend::write_backend_key_data(out, -7, &[1, 2, 3, 4]));
    assert_eq!(backend::read_backend_key_data(&body(&out, b'K')), Ok((-7, &[1, 2, 3, 4][..])));

    for (out, want) in [
        (written(backend::write_authentication_ok), AuthRequest::Ok),
        (written(backend::write_authentication_cleartext), AuthRequest::Cleartext),
        (
            written(|out| backend::write_authentication_md5(out, [1, 2, 3, 4])),
            AuthRequest::Md5([1, 2, 3, 4]),
        ),
        (
            written(|out| backend::write_authentication_sasl(out, &["SCRAM-SHA-256"])),
            AuthRequest::Sasl(b"SCRAM-SHA-256\0\0"),
        ),
        (
            written(|out| backend::write_authentication_sasl_continue(out, "r=x")),
            AuthRequest::SaslContinue(b"r=x"),
        ),
        (
            written(|out| backend::write_authentication_sasl_final(out, "v=x")),
            AuthRequest::SaslFinal(b"v=x"),
        ),
    ] {
        assert_eq!(AuthRequest::read(&body(&out, b'R')), Ok(want));
    }

    for (out, tag, want) in [
        (written(backend::write_parse_complete), b'1', &b""[..]),
        (written(backend::write_bind_complete), b'2', b""),
        (written(backend::write_close_complete), b'3', b""),
        (written(backend::write_no_data), b'n', b""),
        (written(backend::write_empty_query), b'I', b""),
        (
            written(|out| backend::write_data_row(out, [Some("a"), None].into_iter())),
            b'D',
            b"\0\x02\0\0\0\x01a\xff\xff\xff\xff",
        ),
        (
            written(|out| backend::write_row_description(out, &[("n", 25)])),
            b'T',
            b"\0\x01n\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0",
        ),
        (
            written(|out| backend::write_parameter_description(out, &[2950])),
            b't',
            b"\0\x01\0\0\x0b\x86",
        ),
        (
            written(|out| {
                backend::write_negotiate_protocol_version(out, 0, &["_pq_.x".to_owned()]);
            }),
            b'v',
            b"\0\x03\0\0\0\0\0\x01_pq_.x\0",
        ),
    ] {
        assert_eq!(body(&out, tag), want, "{}", tag as char);
    }
}

#[test]
fn an_error_reply_has_the_fields_that_drivers_read() {
    let reply = ErrorReply::error(sqlstate::MISSING_HOSPITAL, "no key")
        .with_detail("d")
        .with_hint("h")
        .with_position(9);
    let out = written(|out| reply.encode(out));
    assert_eq!(body(&out, b'E'), b"SERROR\0VERROR\0CPW001\0Mno key\0Dd\0Hh\0P9\0\0");
    let bytes = body(&out, b'E');
    let fields = ErrorFields::read(&bytes).unwrap();
    assert_eq!((fields.sqlstate(), fields.is_fatal()), ("PW001", false));

    let notice = ErrorReply { severity: "WARNING", ..ErrorReply::error("25001", "twice") };
    let out = written(|out| notice.encode(out));
    assert_eq!(body(&out, b'N'), b"SWARNING\0VWARNING\0C25001\0Mtwice\0\0");

    // A NUL in a text can't move what follows.
    let out = written(|out| ErrorReply::fatal("08P01", "a\0Cfake").encode(out));
    assert_eq!(body(&out, b'E'), b"SFATAL\0VFATAL\0C08P01\0Ma\0\0");
}

#[test]
fn what_no_client_could_read_is_not_sent() {
    let out = written(|out| {
        backend::write_parameter_status(out, "search_path", &"x".repeat(30_000));
        backend::write_parse_complete(out);
    });
    assert_eq!(body(&out, b'1'), b"");
    let out = written(|out| ErrorReply::error("XX000", "x".repeat(30_000)).encode(out));
    assert!(out.len() > 30_000);
}

#[test]
fn errors_of_servers_may_lack_any_field() {
    for (bytes, sqlstate, fatal) in [
        (&b"\0"[..], "XX000", false),
        (b"SFATAL\0\0", "XX000", true),
        (b"SFATALE\0VFATAL\0C28P01\0\0", "28P01", true),
        (b"SERROR\0Cx\0\0", "XX000", false),
        (b"C4200\xff\0\0", "XX000", false),
    ] {
        let fields = ErrorFields::read(bytes).unwrap();
        assert_eq!((fields.sqlstate(), fields.is_fatal()), (sqlstate, fatal), "{bytes:?}");
    }
    for bytes in [&b""[..], b"SERROR", b"SERROR\0", b"\0x"] {
        assert!(ErrorFields::read(bytes).is_err(), "{bytes:?}");
    }
}

fn packet(code: i32, rest: &[u8]) -> Vec<u8> {
    let mut out = ((8 + rest.len()) as i32).to_be_bytes().to_vec();
    out.extend(code.to_be_bytes());
    out.extend(rest);
    out
}

#[test]
fn packets_of_the_start() {
    let ssl = written(startup::write_ssl_request);
    assert_eq!(startup::peek(&ssl), Ok(Some((Packet::SslRequest, 8))));
    let gss = written(startup::write_gssenc_request);
    assert_eq!(startup::peek(&gss), Ok(Some((Packet::GssEncRequest, 8))));
    let cancel = written(|out| startup::write_cancel_request(out, 5, b"12345678"));
    let want = Packet::Cancel { pid: 5, key: b"12345678" };
    assert_eq!(startup::peek(&cancel), Ok(Some((want, 20))));
    let hello = written(|out| startup::write_startup(out, [("user", "a")].into_iter()));
    let want = Packet::Startup(Startup { minor: 0, params: vec![("user", "a")] });
    assert_eq!(startup::peek(&hello), Ok(Some((want, hello.len()))));

    let unsupported = |major, minor| Error::UnsupportedProtocol { major, minor };
    let malformed = |what| Error::Malformed { tag: 0, what };
    for (bytes, want) in [
        (7i32.to_be_bytes().to_vec(), Error::LengthTooSmall { tag: 0, length: 7 }),
        ((-1i32).to_be_bytes().to_vec(), Error::LengthTooSmall { tag: 0, length: -1 }),
        (
            10_001i32.to_be_bytes().to_vec(),
            Error::TooLong { tag: 0, length: 10_001, limit: 10_000 },
        ),
        // "GET / HTTP/1.1" and a TLS ClientHello are lengths far beyond the limit.
        (
            b"GET / HTTP/1.1\r\n".to_vec(),
            Error::TooLong { tag: 0, length: 0x4745_5420, limit: 10_000 },
        ),
        (packet(2 << 16, b""), unsupported(2, 0)),
        (packet(4 << 16, b"\0"), unsupported(4, 0)),
        (packet((1234 << 16) | 5681, b""), unsupported(1234, 5681)),
        (packet(80_877_103, b"x"), malformed("has bytes left over")),
        (packet(80_877_102, b"\0\0\0\x01abc"), malformed("cancel key is not 4 to 256 bytes long")),
        (packet(3 << 16, b""), malformed("string has no NUL")),
        (packet(3 << 16, b"user\0a\0"), malformed("string has no NUL")),
        (packet(3 << 16, b"user\0a\0\0x"), malformed("has bytes left over")),
        (packet(3 << 16, b"user\0\xff\0\0"), malformed("parameter is not UTF-8")),
    ] {
        assert_eq!(startup::peek(&bytes), Err(want), "{bytes:?}");
    }
    assert_eq!(startup::peek(&10_000i32.to_be_bytes()), Ok(None));
}

fn params(params: &[(&'static str, &'static str)]) -> Result<StartupParams, BadParams> {
    StartupParams::read(&Startup { minor: 0, params: params.to_vec() })
}

#[test]
fn startup_parameters_are_sorted() {
    let got = params(&[
        ("database", "hospital"),
        ("TimeZone", "UTC"),
        ("options", "-c TimeZone=CET -c pgward.hospital_id=x --PGWARD.shard=12"),
        ("user", "app"),
        ("_pq_.test_protocol_negotiation", ""),
        ("replication", "false"),
    ])
    .unwrap();
    let want = StartupParams {
        user: "app".into(),
        database: "hospital".into(),
        hospital: Some("x".into()),
        shard: Some("12".into()),
        replication: None,
        settings: vec![("timezone".into(), "UTC".into())],
        unsupported: vec!["_pq_.test_protocol_negotiation".into()],
    };
    assert_eq!(got, want);
    assert_eq!(params(&[("user", "app")]).unwrap().database, "app");

    let replication = |value: &str| BadParams::Replication(value.into());
    let switch = |word: &str| BadParams::Switch(word.into());
    let no_value = |switch: &str| BadParams::NoValue(switch.into());
    let unknown = |name: &str| BadParams::Unknown(name.into());
    for (sent, want) in [
        (&[("database", "x")][..], BadParams::NoUser),
        (&[("user", "")], BadParams::NoUser),
        (&[("user", "a"), ("replication", "data")], replication("data")),
        (&[("user", "a"), ("replication", "")], replication("")),
        (&[("user", "a"), ("replication", "o")], replication("o")),
        (&[("user", "a"), ("options", "-d 5")], switch("-d")),
        (&[("user", "a"), ("options", "word")], switch("word")),
        (&[("user", "a"), ("options", "-c")], no_value("-c ")),
        (&[("user", "a"), ("options", "-c name")], no_value("-c name")),
        (&[("user", "a"), ("options", "--name")], no_value("--name")),
        (&[("user", "a"), ("options", "-c user=b")], unknown("user")),
        (&[("user", "a"), ("options", "-c replication=1")], unknown("replication")),
        (&[("user", "a"), ("options", "-c a;b=1")], unknown("a;b")),
        (&[("user", "a"), ("bad name", "1")], unknown("bad name")),
    ] {
        assert_eq!(params(sent), Err(want), "{sent:?}");
    }
}

#[test]
fn replication_is_read_as_postgres_reads_it() {
    for (values, want) in [
        (&["database"][..], Some(Replication::Database)),
        (&["true", "tr", "T", "yes", "Y", "on", "ON", "1"], Some(Replication::Physical)),
        (&["false", "F", "no", "off", "of", "0"], None),
    ] {
        for value in values {
            let got = params(&[("user", "a"), ("replication", value)]).unwrap().replication;
            assert_eq!(got, want, "{value}");
        }
    }
}

#[test]
fn options_are_read_as_postgres_reads_them() {
    for (options, want) in [
        ("", &[][..]),
        ("  \t ", &[]),
        ("-c a=1", &[("a", "1")]),
        ("-ca=1", &[("a", "1")]),
        ("--a=1 -c b=2", &[("a", "1"), ("b", "2")]),
        ("--statement-timeout=5s", &[("statement_timeout", "5s")]),
        ("-c search_path=a,\\ b", &[("search_path", "a, b")]),
        ("-c a=\\\\x", &[("a", "\\x")]),
        ("-c a=x\\", &[("a", "x")]),
        ("-c a=b=c", &[("a", "b=c")]),
        ("-c a=", &[("a", "")]),
        ("-c application_name=a+b", &[("application_name", "a+b")]),
        ("-c A=1 -c a=2", &[("a", "2")]),
        ("-c x.y=1", &[("x.y", "1")]),
    ] {
        let got = params(&[("user", "u"), ("options", options)]).unwrap().settings;
        let got: Vec<_> = got.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(got, want, "{options:?}");
    }
}

/// Frames of `stream` as the sessions cut them, the bytes coming in `pieces`.
fn frames<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (Vec<(u8, Vec<u8>)>, Option<Error>) {
    let (mut buffer, mut frames) = (Vec::new(), Vec::new());
    for piece in pieces {
        buffer.extend(piece);
        loop {
            match peek(&buffer, LIMIT) {
                Ok(Some((tag, body))) => {
                    let total = HEADER_BYTES + body.len();
                    frames.push((tag, body.to_vec()));
                    buffer.drain(..total);
                }
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
    }
    (frames, None)
}

/// Bytes of a message or of nonsense.
fn any_stream() -> impl Strategy<Value = Vec<u8>> {
    let frame = (any::<u8>(), prop::collection::vec(any::<u8>(), 0..40)).prop_map(|(tag, body)| {
        let mut out = vec![tag];
        out.extend((body.len() as i32 + 4).to_be_bytes());
        out.extend(body);
        out
    });
    let noise = prop::collection::vec(any::<u8>(), 0..12);
    let piece = prop_oneof![5 => frame, 1 => noise];
    prop::collection::vec(piece, 0..6).prop_map(|pieces| pieces.concat())
}

/// Bodies that are nearly right: C strings, small integers and noise.
fn any_body() -> impl Strategy<Value = Vec<u8>> {
    let cstr = "[a-z]{0,4}".prop_map(|s| [s.as_bytes(), b"\0"].concat());
    let small = prop_oneof![
        (-2i16..4).prop_map(|n| n.to_be_bytes().to_vec()),
        (-2i32..4).prop_map(|n| n.to_be_bytes().to_vec()),
    ];
    let noise = prop::collection::vec(any::<u8>(), 0..6);
    prop::collection::vec(prop_oneof![cstr, small, noise], 0..8).prop_map(|p| p.concat())
}

proptest! {
    #[test]
    fn any_split_of_a_stream_gives_the_same_frames(
        stream in any_stream(),
        splits in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let mut at: Vec<usize> = splits.iter().map(|i| i.index(stream.len() + 1)).collect();
        at.extend([0, stream.len()]);
        at.sort_unstable();
        let pieces = at.windows(2).map(|pair| &stream[pair[0]..pair[1]]);
        prop_assert_eq!(frames(pieces), frames(std::iter::once(&stream[..])));
    }

    #[test]
    fn no_bytes_make_a_view_panic(body in any_body()) {
        let _ = Query::read(&body);
        if let Ok(parse) = Parse::read(&body) {
            prop_assert_eq!(parse.param_types().count(), parse.param_types().len());
        }
        if let Ok(bind) = Bind::read(&body) {
            prop_assert_eq!(bind.params().count(), bind.param_count());
            for n in 0..=bind.param_count() as u16 + 1 {
                prop_assert_eq!(bind.param(n).is_some(), (1..=bind.param_count()).contains(&usize::from(n)));
            }
            let out = written(|out| frontend::write_bind_as(out, &bind, bind.statement));
            let copy = peek(&out, LIMIT).unwrap().unwrap().1.to_vec();
            prop_assert_eq!(copy, body.clone());
        }
        let _ = (Named::read_describe(&body), Named::read_close(&body));
        let _ = (Execute::read(&body), SaslInitial::read(&body));
        if let Ok(fields) = ErrorFields::read(&body) {
            prop_assert_eq!(fields.sqlstate().len(), 5);
        }
        let _ = (backend::read_ready_for_query(&body), backend::read_parameter_status(&body));
        let _ = (backend::read_command_complete(&body), backend::read_backend_key_data(&body));
        let _ = AuthRequest::read(&body);
    }

    #[test]
    fn no_bytes_make_the_start_panic(
        code in prop_oneof![Just(3i32 << 16), 80_877_102i32..80_877_105, any::<i32>()],
        rest in any_body(),
    ) {
        let bytes = packet(code, &rest);
        for end in 0..bytes.len() {
            prop_assert!(!matches!(startup::peek(&bytes[..end]), Ok(Some(_))));
        }
        if let Ok(Some((read, total))) = startup::peek(&bytes) {
            prop_assert_eq!(total, bytes.len());
            if let Packet::Startup(startup) = read {
                let _ = StartupParams::read(&startup);
            }
        }
    }

    #[test]
    fn any_options_are_read_or_refused(options in "[-c a=\\\\\t\u{e9}.]{0,24}") {
        let startup = Startup { minor: 0, params: vec![("user", "u"), ("options", &options)] };
        let _ = StartupParams::read(&startup);
    }

    #[test]
    fn a_bind_keeps_its_parameters_under_another_statement(
        formats in prop_oneof![Just(0usize), Just(1), Just(2)],
        params in prop::collection::vec(prop::option::of(prop::collection::vec(any::<u8>(), 0..8)), 0..5),
        codes in prop::collection::vec(0i16..2, 5),
    ) {
        let formats = &codes[..[0, 1, params.len()][formats]];
        let bytes = bind_body((b"portal", b"client"), formats, &params, &codes[..2]);
        let bind = Bind::read(&bytes).unwrap();
        let out = written(|out| frontend::write_bind_as(out, &bind, b"server_7"));
        let copy = body(&out, b'B');
        let copy = Bind::read(&copy).unwrap();
        prop_assert_eq!((copy.portal, copy.statement), (&b"portal"[..], &b"server_7"[..]));
        let values: Vec<_> = params.iter().map(Option::as_deref).collect();
        prop_assert_eq!(copy.params().collect::<Vec<_>>(), values);
        prop_assert!(copy.result_formats().eq(codes[..2].iter().copied()));
        for n in 1..=params.len() as u16 {
            prop_assert_eq!(copy.param(n), bind.param(n));
        }
    }

    #[test]
    fn parameters_by_number_are_those_in_order(
        count in 0usize..80,
        formats in prop_oneof![Just(0usize), Just(1), Just(2)],
        params in prop::collection::vec(prop::option::of(prop::collection::vec(any::<u8>(), 0..4)), 80),
        codes in prop::collection::vec(0i16..2, 80),
    ) {
        let (formats, params) = (&codes[..[0, 1, count][formats]], &params[..count]);
        let bytes = bind_body((b"", b""), formats, params, &[]);
        let bind = Bind::read(&bytes).unwrap();
        let by_number = BindParams::new(bind);
        for n in (0..=81).rev() {
            prop_assert_eq!(by_number.get(n), bind.param(n));
        }
        let is_text = |n| matches!(bind.param(n), Some((0, _) | (_, None)));
        prop_assert_eq!(bind.has_text_only(), (1..=count as u16).all(is_text));
    }
}
