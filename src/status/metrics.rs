//! The metrics of runs, in Prometheus' text format.
//!
//! The number of series has a bound: at most [`MOST_RUNS`] live runs have series with a label `run`, and no label names a
//! node. `lattice_runs` counts all runs that are read. The present values come from the picture, and counters from an
//! [`Accumulator`].

use std::fmt::Display;

use serde::Serialize;

use super::{
    counters::{Accumulator, Counters, Evidence, Histogram, MOST_RUNS, is_live, is_read},
    picture::{NodeState, RunStatus, State},
};
use crate::{exposition::Page, protocol::records::ChangeKind};

/// The states that `lattice_runs` counts. A picture has no run that does not exist.
const STATES: [State; 5] = [State::Formed, State::Forming, State::Stuck, State::Unreachable, State::Closed];
/// The phases of a live run.
const PHASES: [&str; 4] = ["forming", "running", "restoring", "changing"];
/// The changes that end rounds. `None`: no world ran before. A node reports further changes only to its owner.
const CAUSES: [Option<ChangeKind>; 5] = [
    None,
    Some(ChangeKind::Lost),
    Some(ChangeKind::Leaving),
    Some(ChangeKind::Seeking),
    Some(ChangeKind::Newcomers),
];

/// All runs at one time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Picture<'a> {
    /// The runs that were read.
    pub runs: &'a [RunStatus],
    /// How many live runs were not read, because there are too many.
    pub unread: usize,
}

impl Accumulator {
    /// Applies a picture, and returns the text. With `None`, the service did not respond, and the counters keep their
    /// values for the next picture.
    pub fn scrape(&mut self, picture: Option<Picture<'_>>) -> String {
        if let Some(picture) = picture {
            self.observe(picture.runs);
        }
        text(picture, self)
    }
}

/// The text. The accumulator must have the picture already.
pub fn text(picture: Option<Picture<'_>>, accumulator: &Accumulator) -> String {
    let mut page = Page::default();
    let is_up = picture.is_some_and(|picture| picture.runs.iter().all(is_read));
    page.gauge("lattice_service_up", "1 if the rendezvous service responds.", u8::from(is_up));
    let Some(Picture { runs, unread }) = picture else { return page.into_text() };
    if let Some(slowest) = runs.iter().filter_map(|run| run.service.latency_seconds).reduce(f64::max) {
        page.gauge("lattice_service_read_seconds", "How long the slowest read of a run took.", slowest);
    }
    page.family("lattice_runs", "gauge", "Runs by state.");
    for state in STATES {
        let count = runs.iter().filter(|run| run.verdict.state == state).count();
        page.sample("lattice_runs", &[("state", &label(state))], count);
    }
    let help = format!("Live runs without separate series, because {MOST_RUNS} others have them.");
    let omitted = runs.iter().filter(|run| is_live(run) && is_read(run) && accumulator.of(run).is_none());
    page.gauge("lattice_runs_omitted", &help, unread + omitted.count());
    let counted = runs.iter().filter_map(|run| Some((run, accumulator.of(run)?))).collect();
    let mut runs = Runs { page, runs: counted };
    runs.write_states();
    runs.write_nodes();
    runs.write_counters();
    runs.page.into_text()
}

/// The runs that have separate series.
struct Runs<'a> {
    page: Page,
    runs: Vec<(&'a RunStatus, &'a Counters)>,
}

impl Runs<'_> {
    fn family(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        write: impl Fn(&mut Series<'_>, &RunStatus, &Counters),
    ) {
        self.page.family(name, kind, help);
        for (run, counters) in &self.runs {
            let (tenant, id) = (run.run.tenant.as_str(), run.run.id.as_str());
            write(&mut Series { page: &mut self.page, name, tenant, run: id }, run, counters);
        }
    }

    /// A gauge that a run has only while the service responds.
    fn gauge(&mut self, name: &str, help: &str, write: impl Fn(&mut Series<'_>, &RunStatus)) {
        self.family(name, "gauge", help, |series, run, _| {
            if is_read(run) {
                write(series, run);
            }
        });
    }

    fn write_states(&mut self) {
        self.family("lattice_run_state", "gauge", "1 for the state that the run is in.", |series, run, _| {
            for state in STATES.into_iter().filter(|state| *state != State::Closed) {
                series.add(&[("state", &label(state))], u8::from(run.verdict.state == state));
            }
        });
        self.gauge("lattice_run_phase", "1 for the phase that the run is in.", |series, run| {
            for phase in PHASES {
                series.add(&[("phase", phase)], u8::from(run.run.phase == Some(phase)));
            }
        });
        let help = "When the run began to wait for its next round. Absent while it does not wait.";
        self.gauge("lattice_run_waiting_since_timestamp_seconds", help, |series, run| {
            series.add_known(run.verdict.since);
        });
        self.gauge("lattice_run_awaited_nodes", "Nodes that the run waits for.", |series, run| {
            series.add(&[], run.verdict.waits_for_count);
        });
    }

    fn write_nodes(&mut self) {
        self.gauge("lattice_run_nodes", "Nodes by state.", |series, run| {
            for state in NodeState::ALL {
                series.add(&[("state", &label(state))], run.counts.get(&state).copied().unwrap_or(0));
            }
        });
        self.gauge("lattice_run_min_nodes", "Smallest number of nodes of a round.", |series, run| {
            series.add_known(run.run.min_nodes);
        });
        self.gauge("lattice_run_max_nodes", "Largest number of nodes of a round.", |series, run| {
            series.add_known(run.run.max_nodes);
        });
        self.gauge("lattice_run_round", "Number of the round. 0 before the first one.", |series, run| {
            series.add_known(run.run.round);
        });
    }

    fn write_counters(&mut self) {
        let help = "Rounds that have formed since this process began, by the change that ended the round \
                    before. first: no world ran before.";
        self.family("lattice_run_rounds_total", "counter", help, |series, _, counters| {
            for cause in CAUSES {
                let name = cause.map_or_else(|| "first".to_owned(), label);
                series.add(&[("cause", &name)], counters.rounds.get(&cause).copied().unwrap_or(0));
            }
        });
        let help = "Seconds that training stood still since this process began: from each announced change \
                    until the next round has formed, including the present standstill.";
        self.family("lattice_run_standstill_seconds_total", "counter", help, |series, _, counters| {
            series.add(&[], counters.standstill_seconds);
        });
        let help =
            "How often a live node was reported dead, since this process saw the run for the first time.";
        self.family("lattice_run_false_alarms_total", "counter", help, |series, _, counters| {
            series.add(&[], counters.false_alarms);
        });
        let help = "How long each round took to form since this process began: from the change, or from the \
                    first node that waited.";
        self.family("lattice_run_formation_seconds", "histogram", help, |series, _, counters| {
            series.add_histogram(&[], &counters.formation);
        });
        let help = "How long each loss took to be announced since this process began. connection: from the \
                    end of a connection to the member. lease: from the last renewal of its lease.";
        self.family("lattice_run_told_seconds", "histogram", help, |series, _, counters| {
            for (evidence, histogram) in &counters.told {
                let evidence = match evidence {
                    Evidence::Connection => "connection",
                    Evidence::Lease => "lease",
                };
                series.add_histogram(&[("evidence", evidence)], histogram);
            }
        });
    }
}

/// A metric of one run.
struct Series<'a> {
    page: &'a mut Page,
    name: &'a str,
    tenant: &'a str,
    run: &'a str,
}

impl Series<'_> {
    fn add(&mut self, labels: &[(&str, &str)], value: impl Display) {
        self.add_part("", labels, value);
    }

    fn add_known(&mut self, value: Option<impl Display>) {
        if let Some(value) = value {
            self.add(&[], value);
        }
    }

    fn add_part(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl Display) {
        let all = [&[("tenant", self.tenant), ("run", self.run)], labels].concat();
        self.page.sample(&format!("{}{suffix}", self.name), &all, value);
    }

    fn add_histogram(&mut self, labels: &[(&str, &str)], histogram: &Histogram) {
        for (bound, count) in &histogram.buckets {
            self.add_part("_bucket", &[labels, &[("le", &bound.to_string())]].concat(), count);
        }
        self.add_part("_bucket", &[labels, &[("le", "+Inf")]].concat(), histogram.count);
        self.add_part("_sum", labels, histogram.sum);
        self.add_part("_count", labels, histogram.count);
    }
}

/// The word that the JSON has for a state or a change.
fn label(word: impl Serialize) -> String {
    serde_json::to_value(word).ok().and_then(|word| word.as_str().map(str::to_owned)).unwrap_or_default()
}
