//! All integration tests, one binary: one module per topic.

mod support;

mod local;
mod tidy;
