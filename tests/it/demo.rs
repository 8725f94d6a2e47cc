//! `pgward demo` from start to end, as a newcomer runs it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::PATIENCE;

fn demo(args: &[&str]) -> Child {
    let mut demo = Command::new(env!("CARGO_BIN_EXE_pgward"));
    demo.arg("demo").args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).stdin(Stdio::null());
    demo.spawn().expect("pgward demo")
}

/// Files of the demo with this process id.
fn left_behind(pid: u32) -> Vec<String> {
    let names = std::fs::read_dir(std::env::temp_dir()).expect("temporary files").flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with(&format!("pgward-{pid}-"))).collect()
}

#[test]
fn the_demo_shows_what_it_promises_and_leaves_nothing_behind() {
    let demo = demo(&["--no-wait", "--port", "0"]);
    let pid = demo.id();
    let output = demo.wait_with_output().expect("its end");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    for promised in [
        "200 hospitals, 20000 patients, 60000 visits",
        "served by its primary",
        "region europe",
        "region asia-pacific",
        "ERROR PW001",
        "HINT:",
        "Nothing is left behind",
    ] {
        assert!(text.contains(promised), "`{promised}` is not in:\n{text}");
    }
    assert_eq!(left_behind(pid), Vec::<String>::new());
}

/// Starts the demo and reads until it serves.
fn until_it_serves() -> (Child, impl Iterator<Item = String>) {
    let mut demo = demo(&["--port", "0"]);
    let lines = BufReader::new(demo.stdout.take().expect("its output")).lines();
    let mut lines = lines.map_while(Result::ok);
    assert!(lines.any(|line| line.contains("[3/5]")), "it ended early");
    (demo, lines)
}

#[test]
fn sigkill_leaves_nothing_behind_either() {
    let (mut demo, _lines) = until_it_serves();
    demo.kill().expect("SIGKILL");
    demo.wait().expect("its end");
    let deadline = Instant::now() + PATIENCE;
    while !left_behind(demo.id()).is_empty() {
        assert!(Instant::now() < deadline, "still there: {:?}", left_behind(demo.id()));
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn sigterm_ends_the_demo_and_leaves_nothing_behind() {
    let (mut demo, lines) = until_it_serves();
    let pid = demo.id();
    let status = Command::new("kill").args(["-s", "TERM", &pid.to_string()]).status();
    assert!(status.expect("kill").success());
    // Read on, so that it can write.
    lines.for_each(drop);
    assert!(demo.wait().expect("its end").success());
    assert_eq!(left_behind(pid), Vec::<String>::new());
}
