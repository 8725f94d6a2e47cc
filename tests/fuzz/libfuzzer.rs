//! The targets under libFuzzer: `PGWARD_FUZZ_TARGET` names the one to run, see `make fuzz`.

#![no_main]

#[allow(dead_code)]
#[path = "../it/support"]
mod support {
    pub mod fake;
    pub mod notation;
    pub mod messages;
    pub mod script;
}
#[allow(dead_code)]
#[path = "targets/mod.rs"]
mod targets;

use std::sync::OnceLock;

static TARGET: OnceLock<targets::Target> = OnceLock::new();

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let target = TARGET.get_or_init(|| {
        let name = std::env::var("PGWARD_FUZZ_TARGET").expect("PGWARD_FUZZ_TARGET");
        *targets::ALL.iter().find(|target| target.name == name).expect("a target")
    });
    (target.run)(data);
});
