//! Defines what is retried and how often, as data.
//!
//! A [`Backend`](super::Backend) makes one attempt. The caller knows whether another attempt is allowed: reads can
//! always be repeated, writes only if they are repeatable (guarded by a revision, with a nonce), because an attempt
//! that timed out may have been applied. Pauses grow and are random, so that the nodes of a run do not all reconnect
//! to a restarted service at once.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::error::{Applied, Error, Result};

/// The longest pause between two attempts of anything that a node does with the service. It is part of the time that a
/// node may need to reconnect after an interruption.
pub const LONGEST_BACKOFF: Duration = Duration::from_secs(1);

/// How long to wait between attempts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryPolicy {
    /// The upper bound of the first pause. It is short, because with several etcd members the next one is probably
    /// healthy.
    pub first_delay: Duration,
    /// The upper bound of all pauses. It limits how late a node notices that the service is available again, and
    /// thereby the reconnect window.
    pub max_delay: Duration,
    /// The factor by which the bound grows with each attempt.
    pub growth: u32,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self { first_delay: Duration::from_millis(50), max_delay: LONGEST_BACKOFF, growth: 2 }
    }
}

/// The pauses of one series of attempts.
#[derive(Clone, Debug)]
pub struct Backoff {
    policy: RetryPolicy,
    bound: Duration,
    random: u64,
}

impl Backoff {
    /// A new series. The seed decides its random part.
    pub fn new(policy: RetryPolicy, seed: u64) -> Self {
        Self { policy, bound: policy.first_delay, random: seed }
    }

    /// The next pause: between half of the bound and the bound. It is never zero, so that no failure causes a busy
    /// loop.
    pub fn next_delay(&mut self) -> Duration {
        let bound = self.bound.min(self.policy.max_delay);
        self.bound = bound.saturating_mul(self.policy.growth).min(self.policy.max_delay);
        let half = bound / 2;
        let nanoseconds = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX);
        half + Duration::from_nanos(self.next_random() % nanoseconds.saturating_add(1))
    }

    /// A random part of a time, independent of the series.
    pub fn part_of(&mut self, whole: Duration) -> Duration {
        let nanoseconds = u64::try_from(whole.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(self.next_random() % nanoseconds.saturating_add(1))
    }

    /// Starts again with the shortest pause, after a success.
    pub fn reset(&mut self) {
        self.bound = self.policy.first_delay;
    }

    /// `SplitMix64` (Steele, Lea and Flood, 2014). It is sufficient to spread nodes, and its numbers are equal on all
    /// machines.
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// Makes attempts until one ends with something other than a transient error, or the next one would start after the
/// deadline. Only for reads and for writes that may be repeated. An attempt that has started ends by its own deadline.
///
/// # Errors
/// The error of the last attempt. An [`Error::Unavailable`] has [`Applied::Unknown`] if any of the attempts had it.
pub async fn retry<T, A, F>(policy: RetryPolicy, seed: u64, deadline: Instant, mut attempt: A) -> Result<T>
where
    A: FnMut() -> F,
    F: Future<Output = Result<T>>,
{
    let mut backoff = Backoff::new(policy, seed);
    let mut maybe_applied = false;
    loop {
        let mut error = match attempt().await {
            Err(error) if error.is_transient() => error,
            end => return end,
        };
        if let Error::Unavailable { applied, .. } = &mut error {
            maybe_applied |= *applied == Applied::Unknown;
            if maybe_applied {
                *applied = Applied::Unknown;
            }
        }
        let delay = backoff.next_delay();
        if Instant::now() + delay >= deadline {
            return Err(error);
        }
        tracing::debug!(%error, ?delay, "trying again");
        sleep(delay).await;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    fn unavailable(applied: Applied) -> Error {
        Error::Unavailable { endpoint: "e".into(), cause: "gone".into(), applied }
    }

    /// The outcome, the number of attempts, and the duration.
    async fn run(ends: impl IntoIterator<Item = Result<u8>>) -> (Result<u8>, usize, Duration) {
        let mut ends = VecDeque::from_iter(ends);
        let (mut attempts, began) = (0, Instant::now());
        let deadline = began + Duration::from_secs(10);
        let outcome = retry(RetryPolicy::default(), 7, deadline, || {
            attempts += 1;
            let end = ends.pop_front().unwrap_or_else(|| Err(unavailable(Applied::No)));
            async { end }
        });
        let outcome = outcome.await;
        (outcome, attempts, began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn transient_errors_are_tried_again() {
        let (outcome, attempts, _) =
            run([Err(unavailable(Applied::Unknown)), Err(Error::FutureRevision), Ok(1), Ok(2)]).await;
        assert_eq!((outcome.unwrap(), attempts), (1, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn others_are_not() {
        let (outcome, attempts, took) = run([Err(Error::Left), Ok(1)]).await;
        assert!(matches!(outcome, Err(Error::Left)));
        assert_eq!((attempts, took), (1, Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn deadline_ends_it() {
        let (outcome, attempts, took) = run([]).await;
        assert!(matches!(outcome, Err(Error::Unavailable { applied: Applied::No, .. })));
        assert!(took > Duration::from_secs(7) && took <= Duration::from_secs(10), "{took:?}");
        assert!((12..=24).contains(&attempts), "{attempts}");
    }

    #[tokio::test(start_paused = true)]
    async fn one_unknown_outcome_makes_the_whole_unknown() {
        let (outcome, ..) = run([Err(unavailable(Applied::Unknown))]).await;
        assert!(matches!(outcome, Err(Error::Unavailable { applied: Applied::Unknown, .. })));
    }

    #[test]
    fn waits_grow_to_a_bound_and_begin_again() {
        let policy = RetryPolicy::default();
        let mut backoff = Backoff::new(policy, 3);
        let mut bound = policy.first_delay;
        for _ in 0..12 {
            let delay = backoff.next_delay();
            assert!(delay >= bound / 2 && delay <= bound, "{delay:?} of {bound:?}");
            bound = (bound * 2).min(policy.max_delay);
        }
        assert_eq!(bound, policy.max_delay);
        backoff.reset();
        assert!(backoff.next_delay() <= policy.first_delay);
    }

    #[test]
    fn seed_decides() {
        let delays = |seed| {
            let mut backoff = Backoff::new(RetryPolicy::default(), seed);
            std::array::from_fn::<_, 5, _>(|_| backoff.next_delay())
        };
        assert_eq!(delays(1), delays(1));
        assert_ne!(delays(1), delays(2));
    }
}
