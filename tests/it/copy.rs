//! COPY into sharded tables on real servers: rows of one hospital, in every format, and no others.

use std::fmt::Write as _;
use std::io::Write as _;

use crate::support::raw::{bind, execute, message, parse, query, sync};
use crate::support::*;

/// Copies `data` in, in pieces of `size`: the command tag, or the SQLSTATE.
fn copy_in(raw: &mut Raw, sql: &str, data: &[u8], size: usize) -> String {
    raw.send(&query(sql));
    let first = raw.message().expect("an answer");
    let mut answers = vec![];
    if first.tag == b'G' {
        // Written without reading: an error may come at any time.
        let mut writer = raw.stream.try_clone().expect("the other half");
        let pieces: Vec<u8> = data.chunks(size).flat_map(|piece| message(b'd', &[piece])).collect();
        let writing = std::thread::spawn(move || {
            writer.write_all(&pieces).expect("sent");
            writer.write_all(&message(b'c', &[])).expect("sent");
        });
        answers = raw.until(b'Z').expect("an end");
        writing.join().expect("all was sent");
    } else {
        answers.push(first);
        answers.extend(raw.until(b'Z').expect("an end"));
    }
    let tags: String = answers.iter().map(|message| char::from(message.tag)).collect();
    match (tags.as_str(), &answers[0]) {
        ("EZ", error) => error.sqlstate().to_owned(),
        ("CZ", tag) => String::from_utf8_lossy(&tag.body).trim_end_matches('\0').to_owned(),
        (tags, _) => tags.to_owned(),
    }
}

fn binary(rows: &[(uuid::Uuid, i64)]) -> Vec<u8> {
    let mut out = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0".to_vec();
    for (hospital, id) in rows {
        out.extend(4i16.to_be_bytes());
        for value in [hospital.as_bytes().as_slice(), &id.to_be_bytes(), b"m", b"Binary"] {
            out.extend((value.len() as i32).to_be_bytes());
            out.extend(value);
        }
    }
    out.extend((-1i16).to_be_bytes());
    out
}

#[test]
fn rows_of_one_hospital_and_no_others_come_in() {
    let shards = shards();
    let config = [("auth", "auth_type = \"trust\"")];
    let ward = Ward::start(shards, &WardOptions { config: &config, ..Default::default() });
    let mut raw = Raw::login(&ward);
    let run = |raw: &mut Raw, sql: &str| {
        raw.send(&query(sql));
        let answers = raw.until(b'Z').expect("an answer");
        assert!(answers.iter().all(|message| message.tag != b'E'), "{sql}: {answers:?}");
        answers
    };
    let (mine, other) = (shards.hospital(2, 0), shards.hospital(2, 0));
    run(&mut raw, &format!("SET pgward.hospital_id = '{mine}'"));
    let into = "COPY patients (hospital_id, id, mrn, name) FROM STDIN";
    let csv = "COPY patients (hospital_id, id, mrn, name) FROM STDIN WITH CSV HEADER";
    let all = "COPY patients FROM STDIN (FORMAT csv, DELIMITER ';', NULL 'none')";
    let bin = "COPY patients (hospital_id, id, mrn, name) FROM STDIN BINARY";
    let upper = mine.to_string().to_uppercase();
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        (into, format!("{mine}\t1\tm\tText\\\nof two\n{mine}\t2\tm\t\\\\\n").into(), "COPY 2"),
        (into, format!("{{{upper}}}\t3\tm\tx\n\\.\n").into(), "COPY 1"),
        (into, format!("{mine}\t4\tm\tx\n{other}\t5\tm\tx\n").into(), "PW003"),
        (into, format!("{mine}\t4\tm\tx\n{other}\t5\tm\tx").into(), "PW003"),
        (into, format!("{mine}\t4\tm\tx\n\\N\t5\tm\tx\n").into(), "22P04"),
        (into, format!("{mine}\t4\tm\n").into(), "22P04"),
        (into, format!("{mine}\tfour\tm\tx\n").into(), "22P02"),
        (into, format!("{mine}\t1\tm\tx\n").into(), "23505"),
        (csv, format!("a,b,c,d\n{mine},6,\"m\n,\"\"\",CSV\n\"{mine}\",7,m,\n").into(), "23502"),
        (csv, format!("a,b,c,d\n{mine},6,\"m\n,\"\"\",CSV\n\"{mine}\",7,m,x\n").into(), "COPY 2"),
        (csv, format!("a,b,c,d\n{mine},8,\"m\n{mine},9,m,x\n").into(), "22P04"),
        (all, format!("{mine};10;m;none;none;All").into(), "COPY 1"),
        (all, "none;11;m;none;none;All\n".into(), "PW003"),
        (bin, binary(&[(mine, 12), (mine, 13)]), "COPY 2"),
        (bin, binary(&[(mine, 14), (other, 15)]), "PW003"),
        ("COPY patients (id, mrn, name) FROM STDIN", Vec::new(), "0A000"),
        (
            "COPY patients FROM STDIN (NULL '0123456789012345678901234567890123')",
            Vec::new(),
            "0A000",
        ),
        ("COPY patients FROM STDIN (ENCODING 'SJIS')", Vec::new(), "0A000"),
        ("COPY patients FROM PROGRAM 'cat'", Vec::new(), "0A000"),
        ("COPY regions FROM STDIN", Vec::new(), "0A000"),
    ];
    for (sql, data, want) in &cases {
        for (size, end) in [(1 << 20, "ROLLBACK"), (7, "COMMIT")] {
            run(&mut raw, "BEGIN");
            let got = copy_in(&mut raw, sql, data, size);
            assert_eq!(got, *want, "{sql}: {}", String::from_utf8_lossy(data));
            run(&mut raw, end);
        }
    }
    let count =
        |of| shards.psql(2, &format!("SELECT count(*) FROM patients WHERE hospital_id = '{of}'"));
    assert_eq!((count(mine), count(other)), ("8".into(), "0".into()));
    // Nobody says which hospital.
    run(&mut raw, "RESET pgward.hospital_id");
    assert_eq!(copy_in(&mut raw, into, b"", 1), "PW001");
    let hinted = format!("/* hospital_id='{mine}' */ {into}");
    let row = |n: i32| format!("{mine}\t{n}\tm\tHint\n");
    assert_eq!(copy_in(&mut raw, &hinted, (row(20) + &row(21)).as_bytes(), 99), "COPY 2");
    // A large one that goes wrong in its middle: the client still sends.
    let mut large = String::new();
    for n in 100..100_000 {
        let hospital = if n == 50_000 { other } else { mine };
        let _ = writeln!(large, "{hospital}\t{n}\tm\tLarge");
    }
    assert_eq!(copy_in(&mut raw, &hinted, large.as_bytes(), 8192), "PW003");
    assert_eq!((count(mine), count(other)), ("10".into(), "0".into()));
    let out = format!("COPY (SELECT name FROM patients WHERE hospital_id = '{mine}') TO STDOUT");
    let rows = run(&mut raw, &out);
    assert_eq!(rows.iter().filter(|message| message.tag == b'd').count(), 10);
    raw.send(&query("COPY patients TO STDOUT"));
    assert_eq!(raw.until(b'Z').expect("an answer")[0].sqlstate(), "PW001");
}

/// A COPY into `notes (a, hospital_id, b)`, its data, and whether pgward may find the data unreadable
/// where a server does not: a key that no client writes so, or something behind the end of the data.
fn noisy_copy(dice: &mut Dice, mine: &str, other: &str) -> (String, Vec<u8>, bool) {
    const CSV: [&str; 8] = [
        "",
        "HEADER",
        "QUOTE ''''",
        "ESCAPE '\\'",
        "NULL 'x'",
        "FORCE_NULL (b)",
        "HEADER, NULL '\\N'",
        "FORCE_NOT_NULL (a)",
    ];
    const TEXT: [&str; 5] = ["", "NULL 'x'", "HEADER", "NULL ''", "NULL '\\\\N'"];
    const NOISE: [&str; 24] = [
        "", "x", "\\N", "\\.", "\\", "\\\\", "\"", "\"\"", "'", "''", "\n", "\r", "\r\n", "\\\n",
        "\t", ",", "|", "\\x41", "\\101", "\\x", "é", "\\.\n", "\n\\.\n", "\\\r",
    ];
    let is_csv = dice.one_in(2);
    let delimiter = dice.pick(if is_csv { &[",", "|", "\t"] } else { &["\t", ",", "|"] });
    let option = dice.pick(if is_csv { &CSV[..] } else { &TEXT[..] });
    let format = if is_csv { "csv" } else { "text" };
    let comma = if option.is_empty() { "" } else { ", " };
    let sql = format!(
        "COPY notes (a, hospital_id, b) FROM STDIN
         (FORMAT {format}, DELIMITER E'{}'{comma}{option})",
        delimiter.replace('\t', "\\t")
    );
    let end = dice.pick(&["\n", "\n", "\n", "\r\n", "\r"]);
    let (mut text, mut is_odd) = (String::new(), false);
    for _ in 0..dice.below(5) + 1 {
        let field = |dice: &mut Dice| {
            let mut field: String =
                (0..dice.below(3)).map(|_| dice.pick(&["a", "b", " "])).collect();
            if dice.one_in(4) {
                field += dice.pick(&NOISE);
            }
            let quote = if option.contains("QUOTE") { "'" } else { "\"" };
            if is_csv && dice.one_in(3) { format!("{quote}{field}{quote}") } else { field }
        };
        let mut key = if dice.one_in(8) { other } else { mine }.to_owned();
        let kind = dice.below(16);
        is_odd |= matches!(kind, 2..=4);
        match kind {
            0 => key = format!("{{{key}}}"),
            1 => key = key.to_uppercase().replace('-', ""),
            2 if is_csv => key = format!("\"{key}\""),
            2 => key = key.replacen('f', "\\x66", 1).replacen('0', "\\060", 1),
            3 => key.insert_str(dice.below(key.len()), dice.pick(&NOISE)),
            4 => key = field(dice),
            _ => {}
        }
        let (a, b) = (field(dice), field(dice));
        text += &[&a, delimiter, &key, delimiter, &b].concat();
        text += if dice.one_in(12) { dice.pick(&NOISE) } else { end };
    }
    is_odd |= text.contains("\\.");
    (sql, text.into_bytes(), is_odd)
}

#[test]
fn noisy_rows_are_read_as_the_server_reads_them() {
    let shards = shards();
    let psql = |database, sql: &str| shards.primary.psql(database, sql).expect("set up");
    psql("postgres", "CREATE DATABASE copies OWNER app");
    psql("copies", "SET ROLE app; CREATE TABLE notes (a text, hospital_id uuid, b text)");
    let ward = |config: &[(&str, &str)]| {
        let config = [&[("auth", "auth_type = \"trust\"")], config].concat();
        let map = Some(one_shard_map(shards.primary.port(), "copies"));
        Ward::start(shards, &WardOptions { map, config: &config })
    };
    // One that looks at the rows, and one that has nothing to guard.
    let (guarded, open) = (ward(&[]), ward(&[("guard", "mode = \"route\"")]));
    let (mut raw, mut plain) = (Raw::login(&guarded), Raw::login(&open));
    let (mine, other) = (hospital_on(1).to_string(), hospital_on(2).to_string());
    raw.send(&query(&format!("SET pgward.hospital_id = '{mine}'")));
    raw.until(b'Z').expect("an answer");
    // How many rows came in, of the hospital and of all; they are gone then.
    let count = |plain: &mut Raw| {
        plain.send(&query(&format!(
            "SELECT count(*) FILTER (WHERE hospital_id = '{mine}'), count(*) FROM notes;
             TRUNCATE notes"
        )));
        let answers = plain.until(b'Z').expect("an answer");
        let row = String::from_utf8_lossy(&answers[1].body).into_owned();
        let mut counts = row.split(|c: char| !c.is_ascii_digit()).filter(|word| !word.is_empty());
        [(); 2].map(|()| counts.next().expect("a count").parse::<u64>().expect("a number"))
    };
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().expect("a number"));
    let (seed, rounds) = (number("COPY_SEED").unwrap_or(1), number("COPY_ROUNDS").unwrap_or(200));
    let (mut taken, mut foreign) = (0, 0);
    for round in seed..seed + rounds {
        let mut dice = Dice::new(round);
        let (sql, data, is_odd) = noisy_copy(&mut dice, &mine, &other);
        let tell = || format!("round {round}: {sql}: {:?}", String::from_utf8_lossy(&data));
        let want = copy_in(&mut plain, &sql, &data, 1 << 20);
        let [of_mine, all] = count(&mut plain);
        let got = copy_in(&mut raw, &sql, &data, dice.below(40) + 1);
        let [kept, kept_of_all] = count(&mut plain);
        assert_eq!(kept, kept_of_all, "a foreign row came in, {}", tell());
        if !want.starts_with("COPY") || (is_odd && !got.starts_with("COPY")) {
            assert_eq!(got.len(), 5, "{want} became {got}, {}", tell());
        } else if of_mine == all {
            assert_eq!((&got, kept), (&want, all), "{}", tell());
            taken += 1;
        } else {
            assert_eq!(got, "PW003", "{}", tell());
            foreign += 1;
        }
    }
    assert!(taken * 5 > rounds && foreign * 20 > rounds, "{taken} taken, {foreign} foreign");
}
/// Tags of `messages`, and the SQLSTATE of an error among them.
fn told(messages: &[Message]) -> String {
    let tags: String = messages.iter().map(|message| char::from(message.tag)).collect();
    tags + messages.iter().map(Message::sqlstate).find(|code| !code.is_empty()).unwrap_or("")
}

#[test]
fn a_copy_in_the_extended_protocol_ends_and_is_watched() {
    let shards = shards();
    let (mine, other) = (shards.hospital(2, 0), shards.hospital(2, 0));
    let into =
        format!("/* hospital_id='{mine}' */ COPY patients (hospital_id, id, mrn, name) FROM STDIN");
    let bin = into.clone() + " BINARY";
    let long = format!("{into} /* {} */", "long ".repeat(40_000));
    let row = |of, n: i64| format!("{of}\t{n}\tm\tExtended\n").into_bytes();
    let data = |bytes: &[u8]| message(b'd', &[bytes]);
    let begun = |sql: &str| [parse(sql), bind(&[]), execute()].concat();
    let done = message(b'c', &[]);
    // The long one goes out when it is whole, with no Sync or Flush behind it.
    let bound = format!("batch_bytes_max = {}", begun(&long).len());
    let config = [("auth", "auth_type = \"trust\""), ("routing", bound.as_str())];
    let ward = Ward::start(shards, &WardOptions { config: &config, ..Default::default() });
    let mut raw = Raw::login(&ward);
    // As libpq does it: Sync behind Execute, which the server reads over, and behind CopyDone.
    for (sql, bytes, want) in [
        (&into, row(mine, 1), "CZ"),
        (&into, row(other, 2), "EZPW003"),
        (&bin, binary(&[(mine, 3), (mine, 4)]), "CZ"),
        (&bin, binary(&[(mine, 5), (other, 6)]), "EZPW003"),
        (&long, row(mine, 7), "CZ"),
        (&long, [row(mine, 8), row(other, 9)].concat(), "EZPW003"),
    ] {
        raw.send(&[begun(sql), sync()].concat());
        assert_eq!(told(&raw.until(b'G').expect("a COPY")), "12G");
        raw.send(&[data(&bytes), done.clone(), sync()].concat());
        assert_eq!(told(&raw.until(b'Z').expect("its end")), want, "{}", &sql[..80]);
    }
    // No Sync ahead of the data: it comes in pieces, at once or when the server asks for it.
    for (n, (sql, is_told)) in
        [(&into, false), (&long, false), (&long, true), (&long, false)].into_iter().enumerate()
    {
        for (of, want) in [(mine, "12GCZ"), (other, "12GEZPW003")] {
            let rest = [data(&row(of, 20 + n as i64)), done.clone(), sync()].concat();
            let mut heard = Vec::new();
            if is_told {
                raw.send(&begun(sql));
                heard = raw.until(b'G').expect("a COPY");
                raw.send(&rest);
            } else {
                raw.send(&[begun(sql), rest].concat());
            }
            heard.extend(raw.until(b'Z').expect("its end"));
            assert_eq!(told(&heard), want, "case {n}");
        }
    }
    let count =
        |of| shards.psql(2, &format!("SELECT count(*) FROM patients WHERE hospital_id = '{of}'"));
    assert_eq!((count(mine), count(other)), ("8".into(), "0".into()));
}
