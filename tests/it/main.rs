//! All integration tests, one binary: one module per topic.

mod support;

mod attacks;
mod auth;
mod cancel;
mod catalog;
mod cli_offline;
mod demo;
mod differential;
mod drivers;
mod failures;
mod fleet;
mod functions;
mod hba;
mod hostile;
mod keys_hold;
mod kills;
mod leaks;
mod limits;
mod local;
mod login_transcripts;
mod operations;
mod pins;
mod protocol;
mod refusals;
mod route_command;
mod route_golden;
mod routing;
mod server_login;
mod soak;
mod tidy;
mod timeouts;
mod tls;
mod transcripts;
mod unix_sockets;
