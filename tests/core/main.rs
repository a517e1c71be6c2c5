//! The core's tests, in one crate, so that the library is linked once for all of them.
//!
//! `cargo test --test core rounds` runs those of one module.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test fails by panicking, and reports"
)]

mod backup;
mod bounds;
mod census;
mod cleaning;
mod clients;
mod conformance;
mod credentials;
mod decide;
mod etcd;
mod faults;
mod fence;
mod lifeline;
mod memory;
mod metrics;
mod network;
mod observers;
mod oracle;
mod rounds;
mod server;
mod simulation;
mod status;
mod store;
mod support;
mod traffic;
