#![doc = include_str!("ARCHITECTURE.md")]

pub mod document;
pub mod wire;

pub mod shard_map;
pub mod sql;

pub mod route;

pub mod auth;
pub mod config;
pub mod metrics;
pub mod net;

pub mod server;

pub mod catalog;
pub mod fleet;

pub mod pool;

pub mod session;

pub mod admin;

pub mod proxy;

pub mod cli;
