//! All integration tests, one binary.

mod route_golden;
