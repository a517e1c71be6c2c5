//! How often a run is read and sent. A run of 10,000 nodes has a status of 2 MiB, and must occupy neither a whole core
//! nor a whole network. Pure.

use std::time::Duration;

use crate::status::{
    RunStatus,
    picture::{NodeStatus, ServiceStatus},
};

/// How long the first wait for a change takes. A verdict also depends on the time, so it is computed again after each
/// wait.
pub(super) const FIRST_TICK: Duration = Duration::from_secs(1);
/// The longest wait for a change. The page counts a run as lost after 15 s without an event.
const LONGEST_TICK: Duration = Duration::from_secs(5);
/// The longest pause between two statuses.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Signs of life change all the time. In a small status, they are sent again after this time.
const REFRESH: Duration = Duration::from_secs(5);
/// In a large status, they are sent again after this time.
const LONGEST_REFRESH: Duration = Duration::from_secs(60);
/// The longest pause after failures in a row.
const LONGEST_RETRY: Duration = Duration::from_secs(5);

/// How long to wait for the next change of a run whose status has this size.
pub(super) fn tick(bytes: usize) -> Duration {
    (FIRST_TICK + per_byte(bytes, Duration::from_micros(1))).min(LONGEST_TICK)
}

/// How long to gather changes after a status of this size was sent. The first change after a quiet time is sent at once,
/// because the pause is over by then.
pub(super) fn pause(bytes: usize) -> Duration {
    per_byte(bytes, Duration::from_nanos(100)).min(LONGEST_PAUSE)
}

/// The maximum age of the signs of life in a status of this size.
fn refresh(bytes: usize) -> Duration {
    (REFRESH + per_byte(bytes, Duration::from_micros(10))).min(LONGEST_REFRESH)
}

fn per_byte(bytes: usize, each: Duration) -> Duration {
    each.saturating_mul(u32::try_from(bytes).unwrap_or(u32::MAX))
}

/// Whether a status must be sent, because it differs, or because its signs of life are old.
pub(super) fn is_due(shown: &RunStatus, bytes: usize, status: &RunStatus) -> bool {
    let same_node = |(one, other): (&NodeStatus, &NodeStatus)| {
        one == other || without_last_seen(one) == without_last_seen(other)
    };
    status.at - shown.at >= refresh(bytes).as_secs_f64()
        || without_clocks(shown) != without_clocks(status)
        || shown.nodes.len() != status.nodes.len()
        || !shown.nodes.iter().zip(&status.nodes).all(same_node)
}

/// A status without its nodes and without the parts that differ each time that it is read.
fn without_clocks(status: &RunStatus) -> impl PartialEq + use<> {
    let RunStatus { schema, verdict, at: _, service, run, counts, nodes: _, rounds, unreadable } = status;
    let service = ServiceStatus { latency_seconds: None, ..service.clone() };
    let (mut run, mut verdict) = (run.clone(), verdict.clone());
    if let Some(coordinator) = &mut run.coordinator {
        coordinator.last_seen = None;
    }
    for node in &mut verdict.waits_for {
        node.last_seen = None;
    }
    verdict.notes = verdict.notes.iter().map(|note| without_numbers(note)).collect();
    (*schema, verdict, service, run, counts.clone(), rounds.clone(), unreadable.clone())
}

fn without_last_seen(node: &NodeStatus) -> NodeStatus {
    NodeStatus { last_seen: None, why: node.why.as_deref().map(without_numbers), ..node.clone() }
}

/// A text without the words that are numbers, because some of them are seconds that pass.
fn without_numbers(text: &str) -> String {
    let is_number = |word: &str| word.bytes().all(|byte| byte.is_ascii_digit());
    text.split(' ').filter(|word| !is_number(word)).collect::<Vec<_>>().join(" ")
}

/// Failures in a row.
#[derive(Debug, Default)]
pub(super) struct Failures(u32);

impl Failures {
    pub(super) fn reset(&mut self) {
        self.0 = 0;
    }

    /// How long to wait before the next attempt: 0.5 s, then twice as long each time.
    pub(super) fn next_pause(&mut self) -> Duration {
        let pause = Duration::from_millis(500) * 2_u32.pow(self.0.min(8));
        self.0 += 1;
        pause.min(LONGEST_RETRY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::{picture::NodeState, records::Observation, verdict::unreachable};

    fn status(at: f64) -> RunStatus {
        let mut status = unreachable(&Observation::default(), "why");
        status.at = at;
        status
    }

    #[test]
    fn small_runs_are_looked_at_each_second_and_large_ones_less_often() {
        let milliseconds = Duration::from_millis;
        for (bytes, expected_tick, expected_pause) in [
            (0, 1_000, 0),
            (10_000, 1_010, 1),
            (2_500_000, 3_500, 250),
            (50_000_000, 5_000, 1_000),
            (usize::MAX, 5_000, 1_000),
        ] {
            assert_eq!(
                (tick(bytes), pause(bytes)),
                (milliseconds(expected_tick), milliseconds(expected_pause))
            );
        }
    }

    #[test]
    fn status_is_sent_when_it_differs_and_signs_of_life_are_sent_now_and_then() {
        let shown = status(100.0);
        assert!(!is_due(&shown, 1_000, &status(104.0)));
        assert!(is_due(&shown, 1_000, &status(106.0)));
        assert!(!is_due(&shown, 2_000_000, &status(106.0)), "a large one is refreshed less often");
        assert!(is_due(&shown, 2_000_000, &status(126.0)));
        let mut other = status(100.0);
        other.service.latency_seconds = Some(1.0);
        assert!(!is_due(&shown, 1_000, &other));
        other.verdict.notes.push("news".to_owned());
        assert!(is_due(&shown, 1_000, &other));
        let node = |last_seen, state| NodeStatus {
            name: "n".into(),
            id: "1".into(),
            rank: Some(0),
            state,
            why: None,
            since: None,
            address: String::new(),
            port: 0,
            topology: None,
            index: None,
            last_seen,
            false_alarms: 0,
        };
        let of = |node| RunStatus { nodes: vec![node], ..status(100.0) };
        let shown = of(node(Some(1.0), NodeState::Told));
        assert!(!is_due(&shown, 1_000, &of(node(Some(2.0), NodeState::Told))));
        assert!(is_due(&shown, 1_000, &of(node(Some(1.0), NodeState::Waiting))));
        assert!(is_due(&shown, 1_000, &status(100.0)), "a node is gone");
        let with = |note: &str| {
            let mut status = status(100.0);
            status.verdict.notes.push(note.to_owned());
            status
        };
        let shown = with("n1 was rejected 5 s ago: nnodes 2:8");
        assert!(!is_due(&shown, 1_000, &with("n1 was rejected 6 s ago: nnodes 2:8")));
        assert!(is_due(&shown, 1_000, &with("n2 was rejected 5 s ago: nnodes 2:8")));
    }

    #[test]
    fn attempts_are_repeated_less_and_less_often() {
        let mut failures = Failures::default();
        let pauses: Vec<u128> = (0..6).map(|_| failures.next_pause().as_millis()).collect();
        assert_eq!(pauses, [500, 1_000, 2_000, 4_000, 5_000, 5_000]);
        failures.reset();
        assert_eq!(failures.next_pause(), Duration::from_millis(500));
    }
}
