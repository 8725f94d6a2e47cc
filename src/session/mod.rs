//! (in the making)

pub mod login;
