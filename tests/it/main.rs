//! All integration tests, one binary: one module per topic.

mod support;

mod demo;
mod drivers;
mod failures;
mod local;
mod operations;
mod refusals;
mod route_command;
mod route_golden;
mod routing;
mod tidy;
