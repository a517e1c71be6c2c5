//! Random lives of runs, each a function of its seed: the real node and coordinator over the memory service with paused
//! time, under deaths, departures, partitions, lost and late messages, and a service that is paused, stopped, wiped and
//! compacted. What DESIGN calls invariants is checked of every one.
//!
//! `LATTICE_SIMULATION_SEED=n` runs one seed and prints its trace and every log line; `LATTICE_SIMULATION_SCHEDULES=n`
//! sets how many run.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test ends by a panic, and reports"
)]

mod support {
    pub(crate) mod book;
    pub(crate) mod memory;
    pub(crate) mod nodes;
    pub(crate) mod runs;
    pub(crate) mod schedule;
}

use support::{
    memory::Memory,
    runs::{check, check_repeats},
    schedule::Weather,
};

#[test]
fn every_invariant_holds_in_ten_thousand_schedules() {
    check::<Memory>(10_000, Weather::Stormy);
}

/// The store's loss is not the job's loss, nor is a break that costs every lease.
#[test]
fn while_nobody_dies_no_world_changes_whatever_happens_to_the_service() {
    check::<Memory>(2_000, Weather::ServiceOnly);
}

#[test]
fn one_seed_one_trace() {
    check_repeats::<Memory>(0..20);
}
