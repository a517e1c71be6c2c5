//! Keeps the core's log records until Python fetches them.
//!
//! Native threads cannot call into Python, so records wait in a queue. The queue is bounded: if Python does not fetch
//! them, the oldest records are dropped, and the next fetch reports their number.

use std::{
    collections::VecDeque,
    sync::{Condvar, Mutex, PoisonError},
    time::Duration,
};

use pyo3::IntoPyObject;

use crate::lock::lock;

/// The maximum number of waiting records, which is sufficient for minutes of a busy node.
const LONGEST: usize = 4096;

pub(super) const CRATE: &str = "lattice_rdzv";

/// The level number of Python's `logging`.
pub(super) const INFO: i32 = 20;
pub(super) const WARNING: i32 = 30;

/// The run, the node and the round that a record is about, as far as they are known.
#[derive(Clone, Debug, Default, IntoPyObject)]
pub(super) struct Origin(pub(super) Option<String>, pub(super) Option<String>, pub(super) Option<u64>);

/// Level, target and message, in the form of `logging`, and the origin.
pub(super) type Entry = (i32, String, String, Origin);

/// The records of one process.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    news: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    records: VecDeque<Entry>,
    dropped: u64,
    ended: bool,
}

impl Queue {
    pub(super) fn push(&self, entry: Entry) {
        let mut waiting = lock(&self.waiting);
        if waiting.records.len() >= LONGEST {
            waiting.records.pop_front();
            waiting.dropped += 1;
        }
        waiting.records.push_back(entry);
        drop(waiting);
        self.news.notify_one();
    }

    /// Ends all waits for records.
    pub(super) fn end(&self) {
        lock(&self.waiting).ended = true;
        self.news.notify_all();
    }

    /// Returns the queued records. Waits for the first one, and returns `None` if there is none within the time
    /// limit.
    pub(super) fn fetch(&self, limit: Duration) -> Option<Vec<Entry>> {
        let idle = |waiting: &mut Waiting| waiting.records.is_empty() && !waiting.ended;
        let waited = self.news.wait_timeout_while(lock(&self.waiting), limit, idle);
        let mut waiting = waited.unwrap_or_else(PoisonError::into_inner).0;
        if waiting.records.is_empty() && !waiting.ended {
            return None;
        }
        let mut records = Vec::from(std::mem::take(&mut waiting.records));
        let dropped = std::mem::take(&mut waiting.dropped);
        if dropped > 0 {
            let message =
                format!("{dropped} older log records were dropped, because they were not fetched in time");
            records.insert(0, (WARNING, CRATE.to_owned(), message, Origin::default()));
        }
        Some(records)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_queue_drops_the_oldest_and_says_how_many() {
        let queue = Queue::default();
        for index in 0..LONGEST + 3 {
            queue.push((INFO, CRATE.to_owned(), index.to_string(), Origin::default()));
        }
        let records = queue.fetch(Duration::ZERO).unwrap_or_default();
        assert_eq!(records.len(), LONGEST + 1);
        assert_eq!(records.first().map(|entry| entry.0), Some(WARNING));
        assert!(records.first().is_some_and(|entry| entry.2.ends_with(": 3")));
        assert_eq!(records.get(1).map(|entry| entry.2.as_str()), Some("3"));
    }

    #[test]
    fn ended_queue_returns_the_remaining_records_and_does_not_wait() {
        let queue = Queue::default();
        queue.push((INFO, CRATE.to_owned(), "left".to_owned(), Origin::default()));
        queue.end();
        assert_eq!(queue.fetch(Duration::from_secs(3600)).map(|records| records.len()), Some(1));
        assert_eq!(queue.fetch(Duration::from_secs(3600)).map(|records| records.len()), Some(0));
    }
}
