//! Random lives of runs, each a function of its seed: the real node and coordinator over the memory service with paused
//! time, under deaths, departures, partitions, lost and late messages, and a service that is paused, stopped, wiped and
//! compacted. What DESIGN calls invariants is checked of every one.
//!
//! `LATTICE_SIMULATION_SEED=n` runs one seed and prints its trace and every log line; `LATTICE_SIMULATION_SCHEDULES=n` sets how many run.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test ends by a panic, and reports"
)]

mod support {
    pub(crate) mod nodes;
    pub(crate) mod schedule;
}

use std::collections::BTreeSet;

use support::schedule::{Report, Weather, simulate};

fn schedules() -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    if let Some(seed) = number("LATTICE_SIMULATION_SEED") {
        return seed..seed + 1;
    }
    0..number("LATTICE_SIMULATION_SCHEDULES").unwrap_or(10_000)
}

fn check(seed: u64, weather: Weather) -> Report {
    let single = schedules().count() == 1;
    if single {
        let _ = tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).without_time().try_init();
    }
    let report = simulate(seed, weather);
    if single || !report.broken.is_empty() {
        for line in &report.trace {
            println!("{line}");
        }
    }
    assert!(report.broken.is_empty(), "seed {seed}, {weather:?}: {}", report.broken.join("; "));
    report
}

#[test]
fn every_invariant_holds_in_ten_thousand_schedules() {
    let (mut rounds, mut worlds, mut wipes) = (0, 0, 0);
    for seed in schedules() {
        let report = check(seed, Weather::Stormy);
        rounds += report.rounds;
        worlds += report.worlds;
        wipes += report.wipes;
    }
    println!("{} schedules: {rounds} rounds, {worlds} places, {wipes} wipes", schedules().count());
}

/// The store's loss is not the job's loss, nor is a break that costs every lease.
#[test]
fn while_nobody_dies_no_world_changes_whatever_happens_to_the_service() {
    let mut resets = 0;
    for seed in schedules().take(2_000) {
        let report = check(seed, Weather::ServiceOnly);
        resets += report.wipes;
    }
    println!("{resets} wipes");
}

#[test]
fn one_seed_one_trace() {
    let mut traces = BTreeSet::new();
    for seed in 0..20 {
        let (once, again) = (simulate(seed, Weather::Stormy), simulate(seed, Weather::Stormy));
        let different = once.trace.iter().zip(&again.trace).find(|(one, other)| one != other);
        assert_eq!(different, None, "seed {seed}");
        assert_eq!(once.trace.len(), again.trace.len(), "seed {seed}");
        traces.insert(once.trace);
    }
    assert!(traces.len() > 15, "seeds make a difference");
}
