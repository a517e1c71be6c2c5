//! Random runs, each a function of its seed: the real node and coordinator over the memory service with paused time,
//! with deaths, departures, partitions, lost and delayed messages, and a service that is paused, stopped, or compacted,
//! loses its data, or is restored from an older backup. The invariants of docs/protocol.md are checked in each of them.
//!
//! `LATTICE_SIMULATION_SEED=n` runs one seed and prints its trace and every log line; `LATTICE_SIMULATION_SCHEDULES=n`
//! sets how many run.

use crate::support::{
    memory::Memory,
    runs::{check, check_repeats},
    schedule::Weather,
};

#[test]
fn every_invariant_holds() {
    check::<Memory>(1_000, Weather::Stormy);
}

/// The loss of the service does not fail the job, nor does an interruption that expires every lease.
#[test]
fn while_no_node_dies_no_world_changes_whatever_happens_to_the_service() {
    check::<Memory>(200, Weather::ServiceOnly);
}

#[test]
fn one_seed_one_trace() {
    check_repeats::<Memory>(0..10);
}
