//! Very deep pipelines and very wide rows: neither blocks, and neither is kept in memory.

use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::support::raw::{batch, bind, execute, flush, message, parse, query, sync};
use crate::support::*;

/// Members of a pipeline.
const DEEP: usize = 100_000;
/// What pgward may grow by while megabytes pass: its buffers, and what the allocator keeps.
const GROWTH_BYTES: u64 = 48 << 20;

fn ward(config: &[(&str, &str)]) -> Ward {
    let trust = ("auth", "auth_type = \"trust\"");
    let config = [&[trust][..], config].concat();
    Ward::start(shards(), &WardOptions { config: &config, ..Default::default() })
}

/// Does `work` and says by how much pgward's memory grew at the most meanwhile.
fn growth_of(ward: &Ward, work: impl FnOnce()) -> u64 {
    let (before, most, is_done) = (ward.memory_bytes(), AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_done.load(Ordering::Relaxed) {
                most.fetch_max(ward.memory_bytes(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        work();
        is_done.store(true, Ordering::Relaxed);
    });
    most.into_inner().saturating_sub(before)
}

/// Counts the messages of each answer up to the ReadyForQuery number `ends`; errors fail.
fn read_answers(raw: &mut Raw, ends: usize) -> [usize; 128] {
    let mut seen = [0; 128];
    while seen[usize::from(b'Z')] < ends {
        let message = raw.message().expect("more answers");
        assert_ne!(message.tag, b'E', "{message:?}");
        seen[usize::from(message.tag)] += 1;
    }
    seen
}

/// Sends `bytes`, made in pieces, from a thread of its own while `read` runs.
fn send_and_read<T>(
    raw: &mut Raw,
    pieces: impl Iterator<Item = Vec<u8>> + Send,
    read: impl FnOnce(&mut Raw) -> T,
) -> T {
    let mut writer = std::io::BufWriter::new(raw.stream.try_clone().expect("the other half"));
    std::thread::scope(|scope| {
        scope.spawn(move || {
            pieces.for_each(|piece| writer.write_all(&piece).expect("sent"));
            writer.flush().expect("sent");
        });
        read(raw)
    })
}

#[test]
fn a_batch_of_a_hundred_thousand_is_one_transaction_and_is_not_kept() {
    let ward = ward(&[]);
    let id = shards().hospital(1, 1).to_string();
    let mut raw = Raw::login(&ward);
    let grown = growth_of(&ward, || {
        let first = parse("SELECT name, $2::text FROM patients WHERE hospital_id = $1");
        let member = [bind(&[&id, &"x".repeat(200)]), execute()].concat();
        let pieces = std::iter::once(first)
            .chain((0..DEEP).map(|_| member.clone()))
            .chain(std::iter::once(sync()));
        let seen = send_and_read(&mut raw, pieces, |raw| read_answers(raw, 1));
        let [bound, rows, done] = [b'2', b'D', b'C'].map(|tag| seen[usize::from(tag)]);
        assert_eq!([bound, rows, done], [DEEP; 3]);
    });
    assert!(grown < GROWTH_BYTES, "grew by {grown} bytes");
}

#[test]
fn a_hundred_thousand_batches_of_several_hospitals_answer_in_order() {
    let ward = ward(&[]);
    let ids = [0, 1, 2, 3].map(|shard| shards().hospital(shard, 1).to_string());
    let mut raw = Raw::login(&ward);
    let requests = DEEP / 5;
    let grown = growth_of(&ward, || {
        let sql = "SELECT hospital_id FROM patients WHERE hospital_id = $1";
        let pieces = (0..requests).map(|n| [batch(sql, &[&ids[n % 4]]), sync()].concat());
        send_and_read(&mut raw, pieces, |raw| {
            for n in 0..requests {
                let messages = raw.until(b'Z').expect("an answer");
                assert_eq!(messages[2].body[6..], *ids[n % 4].as_bytes(), "request {n}");
            }
        });
    });
    assert!(grown < GROWTH_BYTES, "grew by {grown} bytes");
}

#[test]
fn a_client_that_writes_and_never_reads_is_not_kept_in_memory() {
    let ward = ward(&[]);
    let id = shards().hospital(2, 1).to_string();
    let mut raw = Raw::login(&ward);
    let member = batch("SELECT repeat(name, 500) FROM patients WHERE hospital_id = $1", &[&id]);
    // More than all sockets on the way hold, so the writing stops somewhere.
    let requests = 20_000;
    let grown = growth_of(&ward, || {
        let pieces = (0..requests).map(|_| [&member[..], &sync()].concat());
        send_and_read(&mut raw, pieces, |raw| {
            std::thread::sleep(Duration::from_secs(1));
            let seen = read_answers(raw, requests);
            assert_eq!(seen[usize::from(b'D')], requests);
        });
    });
    assert!(grown < GROWTH_BYTES, "grew by {grown} bytes");
}

#[test]
fn wide_rows_pass_and_are_not_kept() {
    let ward = ward(&[]);
    let id = shards().hospital(3, 1).to_string();
    let mut raw = Raw::login(&ward);
    let wide = 200 << 20;
    let columns = (1..=1_600).map(|n| format!("repeat('y', 10000) AS c{n}")).collect::<Vec<_>>();
    let grown = growth_of(&ward, || {
        let sql = format!("SELECT repeat('x', {wide}) FROM patients WHERE hospital_id = $1");
        raw.send(&[batch(&sql, &[&id]), sync()].concat());
        let mut head = [0; 5];
        for _ in 0..2 {
            assert!(raw.message().is_some());
        }
        std::io::Read::read_exact(&mut raw.stream, &mut head).expect("a DataRow");
        assert_eq!((head[0], &head[1..]), (b'D', &(wide as u32 + 10).to_be_bytes()[..]));
        let mut rest = std::io::Read::take(&raw.stream, wide as u64 + 6);
        assert_eq!(std::io::copy(&mut rest, &mut std::io::sink()).expect("a row"), wide as u64 + 6);
        assert!(raw.until(b'Z').is_some());

        let columns = columns.join(", ");
        raw.send(&query(&format!("SELECT {columns} FROM patients WHERE hospital_id = '{id}'")));
        let messages = raw.until(b'Z').expect("an answer");
        let row = messages.iter().find(|message| message.tag == b'D').expect("a row");
        assert_eq!(row.body.len(), 2 + 1_600 * 10_004);
    });
    assert!(grown < GROWTH_BYTES, "grew by {grown} bytes");
}

#[test]
fn wide_values_pass_both_ways() {
    let ward = ward(&[]);
    let id = shards().hospital(0, 1).to_string();
    let mut raw = Raw::login(&ward);
    let name = "z".repeat(64 << 20);
    let sql = "UPDATE patients SET name = $2 WHERE hospital_id = $1";
    raw.send(&parse(sql));
    send_and_read(&mut raw, [bind(&[&id, &name]), execute(), sync()].into_iter(), |raw| {
        let seen = read_answers(raw, 1);
        assert_eq!(seen[usize::from(b'C')], 1);
    });
    let sql = format!("SELECT md5(name), length(name) FROM patients WHERE hospital_id = '{id}'");
    raw.send(&query(&sql));
    let messages = raw.until(b'Z').expect("an answer");
    let row = String::from_utf8_lossy(&messages[1].body).into_owned();
    assert!(row.ends_with(&name.len().to_string()), "{row:?}");
    // A text as long, as nobody writes it.
    let long = format!("UPDATE patients SET name = '{name}' WHERE hospital_id = '{id}'");
    send_and_read(&mut raw, [message(b'Q', &[long.as_bytes(), b"\0"])].into_iter(), |raw| {
        assert_eq!(read_answers(raw, 1)[usize::from(b'C')], 1);
    });
}

#[test]
fn a_write_behind_a_flushed_read_finds_a_server_that_writes() {
    let ward = ward(&[]);
    // The shard whose reads have a replica.
    let id = shards().hospital(0, 1).to_string();
    let mut raw = Raw::login(&ward);
    let read = batch("SELECT name FROM patients WHERE hospital_id = $1", &[&id]);
    let write = batch("UPDATE patients SET name = 'w' WHERE hospital_id = $1", &[&id]);
    for before_write in [&[&read[..], &flush()].concat(), &read] {
        raw.send(&[&before_write[..], &write, &sync()].concat());
        let seen = read_answers(&mut raw, 1);
        assert_eq!(seen[usize::from(b'C')], 2);
    }
    // Cut where the bound is, far ahead of the write.
    let pieces = (0..20_000).map(|_| read.clone()).chain([write, sync()]);
    let seen = send_and_read(&mut raw, pieces, |raw| read_answers(raw, 1));
    assert_eq!(seen[usize::from(b'C')], 20_001);
}
