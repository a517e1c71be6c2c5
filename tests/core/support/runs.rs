//! Runs many schedules on all cores, or one of them again.

use std::{
    ops::Range,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use tracing_subscriber::{filter::Targets, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use super::schedule::{Ground, Report, Tally, Weather, simulate};

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// This number of seeds, unless the environment specifies others.
fn seeds(count: u64) -> Range<u64> {
    if let Some(seed) = number("LATTICE_SIMULATION_SEED") {
        return seed..seed + 1;
    }
    0..number("LATTICE_SIMULATION_SCHEDULES").unwrap_or(count)
}

/// Runs them, and fails with the first one in which a check failed.
pub(crate) fn check<G: Ground>(count: u64, weather: Weather) -> Tally {
    let seeds = seeds(count);
    let single = seeds.end - seeds.start == 1;
    if single {
        // With the log lines of HTTP/2, there would be ten times as many.
        let ours = Targets::new().with_target("lattice_rdzv", tracing::Level::DEBUG);
        let lines = tracing_subscriber::fmt::layer().without_time();
        let _ = tracing_subscriber::registry().with(lines).with(ours).try_init();
    }
    let next = AtomicU64::new(seeds.start);
    let (tally, failed) = (Mutex::new(Tally::new()), Mutex::new(Vec::new()));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return;
            }
            let report = simulate::<G>(seed, weather);
            let mut tally = tally.lock().unwrap();
            for (what, times) in &report.tally {
                *tally.entry(what).or_default() += times;
            }
            if single || !report.broken.is_empty() {
                failed.lock().unwrap().push((seed, report));
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let mut failed = failed.into_inner().unwrap();
    failed.sort_by_key(|(seed, _)| *seed);
    if let Some((seed, report)) = failed.first() {
        for line in &report.trace {
            println!("{line}");
        }
        println!("seed {seed}: {:016x}", report.fingerprint);
    }
    failed.retain(|(_, report)| !report.broken.is_empty());
    if let Some((seed, Report { broken, .. })) = failed.first() {
        let all: Vec<u64> = failed.iter().map(|(seed, _)| *seed).collect();
        panic!(
            "{weather:?}: {} of {} schedules broke something; to repeat the first: LATTICE_SIMULATION_SEED={seed}: \
             {}; all seeds: {all:?}",
            all.len(),
            seeds.end - seeds.start,
            broken.join("; ")
        );
    }
    let tally = tally.into_inner().unwrap();
    let summary: Vec<_> = tally.iter().map(|(what, times)| format!("{times} {what}")).collect();
    println!("{weather:?}: {}", summary.join(", "));
    tally
}

/// Checks that equal seeds produce equal traces, and different seeds different ones.
pub(crate) fn check_repeats<G: Ground>(seeds: Range<u64>) {
    let mut fingerprints = std::collections::BTreeSet::new();
    let count = seeds.end - seeds.start;
    for seed in seeds {
        let (once, again) = (simulate::<G>(seed, Weather::Stormy), simulate::<G>(seed, Weather::Stormy));
        let different = once.trace.iter().zip(&again.trace).find(|(one, other)| one != other);
        assert_eq!(different, None, "seed {seed}");
        assert_eq!(once.fingerprint, again.fingerprint, "seed {seed}");
        fingerprints.insert(once.fingerprint);
    }
    assert_eq!(fingerprints.len() as u64, count, "seeds make a difference");
}
