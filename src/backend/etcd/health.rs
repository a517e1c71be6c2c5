//! Decides after a failure whether to keep a connection or to fail over. Pure.
//!
//! A failover ends all watches of the connection, and each of them must be opened and read again. It is useful only
//! if another connection is likely to work better. During an election, no member of the cluster works better, and one
//! late response may only show a short overload.

use std::time::Duration;

use tokio::time::Instant;

/// How long a cluster may elect a leader: two of etcd's default election timeouts (`--election-timeout=1000`). A member
/// that still knows no leader is cut off from the others.
const ELECTION: Duration = Duration::from_secs(2);

/// What a failure shows about the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// The service responded.
    Sound,
    /// The member reported that its cluster has no leader, or that the leader did not respond in time.
    Leaderless,
    /// No response arrived in time.
    Late,
    /// The connection cannot be used, or the member does not serve.
    Broken,
}

/// The trouble on a connection since its last success.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Health {
    leaderless_since: Option<Instant>,
    /// When the first call without a response was given up.
    late_at: Option<Instant>,
}

/// A failed call, and the other facts that the decision depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct FailedCall {
    pub(super) condition: Condition,
    pub(super) sent: Instant,
    pub(super) ended: Instant,
    /// Whether the last acknowledged renewal was sent more than half a TTL ago.
    pub(super) lease_in_danger: bool,
    /// Whether there is another endpoint.
    pub(super) has_alternative: bool,
}

impl Health {
    /// A call succeeded.
    pub(super) fn succeed(&mut self) {
        *self = Self::default();
    }

    /// A call failed. Returns whether to turn to another connection.
    pub(super) fn fail(&mut self, call: FailedCall) -> bool {
        match call.condition {
            Condition::Sound => false,
            Condition::Broken => true,
            Condition::Leaderless => {
                let since = *self.leaderless_since.get_or_insert(call.ended);
                call.lease_in_danger || call.ended.saturating_duration_since(since) >= ELECTION
            }
            Condition::Late => {
                // Calls that waited at the same time are one observation.
                let first = *self.late_at.get_or_insert(call.ended);
                call.lease_in_danger || call.has_alternative || call.sent >= first
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn call(condition: Condition, sent: Instant, ended: Instant) -> FailedCall {
        FailedCall { condition, sent, ended, lease_in_danger: false, has_alternative: false }
    }

    #[test]
    fn sound_connection_stays_and_a_broken_one_does_not() {
        let now = Instant::now();
        assert!(!Health::default().fail(call(Condition::Sound, now, now)));
        assert!(Health::default().fail(call(Condition::Broken, now, now)));
    }

    #[test]
    fn election_is_waited_for() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let leaderless = |millis| call(Condition::Leaderless, at(millis), at(millis));
        let mut health = Health::default();
        let turns = [0, 1_000, 1_999, 2_000].map(|millis| health.fail(leaderless(millis)));
        assert_eq!(turns, [false, false, false, true]);
        health.succeed();
        assert!(!health.fail(leaderless(2_100)), "a success begins the time again");
        assert!(health.fail(FailedCall { lease_in_danger: true, ..leaderless(2_200) }));
        let elsewhere = FailedCall { has_alternative: true, ..leaderless(2_200) };
        assert!(!health.fail(elsewhere), "the other members have no leader either");
    }

    #[test]
    fn one_late_answer_is_not_enough_without_an_alternative() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let late = |sent, ended| call(Condition::Late, at(sent), at(ended));
        let mut health = Health::default();
        assert!(!health.fail(late(0, 2_500)));
        assert!(!health.fail(late(100, 2_600)), "it waited at the same time");
        assert!(health.fail(late(2_500, 5_000)));
        health.succeed();
        assert!(!health.fail(late(6_000, 8_500)), "a success begins again");
        assert!(Health::default().fail(FailedCall { has_alternative: true, ..late(0, 2_500) }));
        assert!(Health::default().fail(FailedCall { lease_in_danger: true, ..late(0, 2_500) }));
    }
}
