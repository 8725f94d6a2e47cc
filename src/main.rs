//! The pgward binary: all of it is in the library.

fn main() -> std::process::ExitCode {
    pgward::cli::run()
}
