//! Conversations of clients, pgward and servers, word by word: `tests/golden/transcript/*.txt`.
//!
//! A file has cases, split by blank lines: `# title`, an `@` line of settings, the lines to play,
//! `----`, and the whole talk. `UPDATE_GOLDEN=1` rewrites the talks. Lines to play:
//!
//! ```text
//! C> Query("SELECT 1")            client C sends this; it logs in first. C> (close), C> (cancel),
//!                                 C> (cancel 50): given up on after 50 ms
//! C login user=ward1              client C logs in with these parameters, and the talk shows it
//! S0 on Execute "INSERT": ErrorResponse(23505)     shard 0's primary will answer so, once
//! S0 says NoticeResponse(01000)   it says that unasked; S0 close: it ends that connection
//! S0 go                           it goes on where an answer of its had `hold`
//! ```
//! The talk has `S0>` for what that server heard, `S0<` for what it said, `C<` for what the client
//! heard. R0 is shard 0's replica, S0b its primary's second connection. `H42` is the hospital of
//! bucket 42. The last line says how many connections are left in the pools.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::script::Scene;

/// Cases played at a time: most of each is waiting.
const THREADS: usize = 4;

#[test]
fn transcripts() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/transcript");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&directory)
        .expect("the transcripts")
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort();
    let only = std::env::var("TRANSCRIPT").unwrap_or_default();
    let mut cases = Vec::new();
    for file in &files {
        let text = std::fs::read_to_string(file).expect("a transcript");
        cases.extend(text.trim_end().split("\n\n").map(|case| (file.clone(), case.to_owned())));
    }
    let results = Mutex::new(vec![String::new(); cases.len()]);
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    let Some((_, case)) = cases.get(n) else { return };
                    let played = if case.contains(&only) { play(case) } else { case.clone() };
                    results.lock().expect("sound")[n] = played;
                }
            });
        }
    });
    let results = results.into_inner().expect("sound");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        for file in &files {
            let of_file = cases.iter().zip(&results).filter(|((of, _), _)| of == file);
            let texts: Vec<&str> = of_file.map(|(_, played)| played.as_str()).collect();
            std::fs::write(file, texts.join("\n\n") + "\n").expect("written");
        }
        return;
    }
    let mut differences = String::new();
    for ((_, case), played) in cases.iter().zip(&results).filter(|((_, case), got)| case != *got) {
        let title = case.lines().next().unwrap_or_default();
        differences += &format!("\n{title}\n");
        let (mut want, mut got) = (case.lines(), played.lines());
        loop {
            match (want.next(), got.next()) {
                (None, None) => break,
                (want, got) if want == got => {}
                (want, got) => {
                    differences += &format!("  want {}\n", want.unwrap_or("(the end)"));
                    differences += &format!("  got  {}\n", got.unwrap_or("(the end)"));
                }
            }
        }
    }
    assert!(differences.is_empty(), "{differences}\nUPDATE_GOLDEN=1 rewrites");
}

/// Plays one case: its text as it should be in the file.
fn play(case: &str) -> String {
    let (input, expected) = case.split_once("\n----\n").unwrap_or((case, ""));
    let is_update = std::env::var_os("UPDATE_GOLDEN").is_some();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let talk = runtime.block_on(async {
        let setting = input.lines().find_map(|line| line.strip_prefix("@ ")).unwrap_or("");
        let mut scene = Scene::new(setting).await;
        let mut talk = Vec::new();
        let mut expected = expected.lines().map(str::to_owned).peekable();
        let is_played = |line: &&str| !line.starts_with(['#', '@']);
        for line in input.lines().filter(is_played) {
            expected.next();
            let mut wanted = Vec::new();
            while let Some(line) = expected.next_if(|line| is_told(line)) {
                wanted.push(expand(&line));
            }
            talk.push(line.to_owned());
            scene.play(&expand(line)).await;
            scene.settle((!is_update).then_some(&wanted)).await;
            talk.extend(scene.tell().iter().map(|line| contract(line)));
            scene.mark();
        }
        let left = scene.end().await;
        let wanted: Vec<String> =
            expected.take_while(|line| is_told(line)).map(|line| expand(&line)).collect();
        scene.settle((!is_update).then_some(&wanted)).await;
        talk.extend(scene.tell().iter().map(|line| contract(line)));
        talk.push(left);
        talk
    });
    format!("{input}\n----\n{}", talk.join("\n"))
}

/// A line that nobody played.
fn is_told(line: &str) -> bool {
    let who = line.split(' ').next().unwrap_or_default();
    who.ends_with('<') || (who.ends_with('>') && who.starts_with(['S', 'R']))
}

/// `H42` becomes the id of the hospital of bucket 42.
fn expand(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('H') {
        let digits = rest[at + 1..].bytes().take_while(u8::is_ascii_digit).count();
        let is_word = rest[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let (head, tail) = rest.split_at(at + 1);
        if digits == 0 || is_word {
            out.push_str(head);
            rest = tail;
        } else {
            let number: u32 = tail[..digits].parse().expect("a number");
            out.push_str(&head[..at]);
            out.push_str(&format!("{PREFIX}{number:012x}"));
            rest = &tail[digits..];
        }
    }
    out + rest
}

const PREFIX: &str = "00000000-0000-0000-0000-";

/// The way back.
fn contract(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((head, tail)) = rest.split_once(PREFIX) {
        let number = tail.get(..12).and_then(|digits| u32::from_str_radix(digits, 16).ok());
        out.push_str(head);
        match number {
            Some(number) => {
                out.push_str(&format!("H{number}"));
                rest = &tail[12..];
            }
            None => {
                out.push_str(PREFIX);
                rest = tail;
            }
        }
    }
    out + rest
}
