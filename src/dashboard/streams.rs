//! Event streams: one response body for each browser, which sends the newest state and skips what the browser is too slow
//! for. The number of streams is limited, and each ends after [`LIFE`], so that a changed password takes effect.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures_util::stream::unfold;
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use super::{frames, live::Shown, overview::Listed};
use crate::{server::stopped, settings::RunName};

/// Open streams at once. Each keeps at most the status that it sends and the newest one.
pub(super) const MOST: usize = 64;
/// How long one stream lasts. The browser then opens the next one.
const LIFE: Duration = Duration::from_secs(15 * 60);

/// Counts the open streams.
#[derive(Clone, Debug, Default)]
pub(super) struct Streams(Arc<AtomicUsize>);

/// One open stream.
#[derive(Debug)]
pub(super) struct Permit(Arc<AtomicUsize>);

impl Streams {
    pub(super) fn open(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Counts one more stream, unless there are [`MOST`].
    pub(super) fn permit(&self) -> Option<Permit> {
        let more = |open| (open < MOST).then_some(open + 1);
        let counted = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        counted.is_ok().then(|| Permit(Arc::clone(&self.0)))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The response to a browser for which there is no stream.
pub(super) fn refused() -> Response {
    let text = format!("{MOST} pages show this dashboard already; close one, or try again later\n");
    (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "10")], text).into_response()
}

/// What differs between two states of a run or a list, as events.
pub(super) trait Difference: Clone + Send + Sync + 'static {
    /// The events that lead from the state that the browser has, if it has one, to this one.
    fn events(&self, before: Option<&Self>) -> Vec<Bytes>;
}

impl Difference for Shown {
    fn events(&self, before: Option<&Self>) -> Vec<Bytes> {
        let mut events = Vec::new();
        let Some(status) = &self.status else { return self.problem.iter().cloned().collect() };
        let known = before.and_then(|before| before.status.as_ref());
        let is_known = known.is_some_and(|known| Arc::ptr_eq(known, status));
        // After a problem, the status is sent again, because it is current again.
        let was_problem = before.is_some_and(|before| before.problem.is_some());
        if !is_known || (was_problem && self.problem.is_none()) {
            events.push(status.event.clone());
        }
        match &self.problem {
            Some(problem) => events.push(problem.clone()),
            None => events.push(self.checked.clone()),
        }
        events
    }
}

impl Difference for Listed {
    fn events(&self, before: Option<&Self>) -> Vec<Bytes> {
        let none = BTreeMap::new();
        let known = before.map_or(&none, |before| &before.runs);
        let gone = known.keys().filter(|run: &&RunName| !self.runs.contains_key(*run)).map(frames::gone);
        let is_news = |run: &RunName, event: &Bytes| {
            known.get(run).is_none_or(|known| known.as_ptr() != event.as_ptr())
        };
        let news = self.runs.iter().filter(|(run, event)| is_news(run, event));
        let mut events: Vec<Bytes> = gone.chain(news.map(|(_, event)| event.clone())).collect();
        events.extend(self.problem.clone().or_else(|| self.count.clone()));
        events
    }
}

/// The response that follows these states until the browser leaves or the dashboard stops.
pub(super) fn respond<T: Difference>(
    permit: Permit,
    states: watch::Receiver<T>,
    stopping: watch::Receiver<bool>,
) -> Response {
    struct State<T> {
        _permit: Permit,
        states: watch::Receiver<T>,
        stopping: watch::Receiver<bool>,
        sent: Option<T>,
        queue: std::vec::IntoIter<Bytes>,
        end: Instant,
    }
    let end = Instant::now() + LIFE;
    // The first state is sent at once.
    let mut states = states;
    states.mark_changed();
    let state = State { _permit: permit, states, stopping, sent: None, queue: Vec::new().into_iter(), end };
    let events = unfold(state, |mut state| async move {
        loop {
            if let Some(event) = state.queue.next() {
                return Some((Ok::<_, Infallible>(event), state));
            }
            let changed = async {
                tokio::select! {
                    biased;
                    () = stopped(&mut state.stopping) => false,
                    changed = state.states.changed() => changed.is_ok(),
                }
            };
            if !timeout_at(state.end, changed).await.unwrap_or(false) {
                return None;
            }
            let newest = state.states.borrow_and_update().clone();
            state.queue = newest.events(state.sent.as_ref()).into_iter();
            state.sent = Some(newest);
        }
    });
    let mut response = Body::from_stream(events).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    // For proxies that would gather events.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        dashboard::live::Status,
        status::{records::Observation, verdict::unreachable},
    };

    fn status(text: &'static str) -> Arc<Status> {
        Arc::new(Status {
            run: unreachable(&Observation::default(), "why"),
            event: Bytes::from_static(text.as_bytes()),
        })
    }

    fn texts(events: &[Bytes]) -> Vec<&str> {
        events.iter().map(|event| std::str::from_utf8(event).unwrap()).collect()
    }

    #[test]
    fn browser_gets_the_newest_status_once_and_then_that_it_is_current() {
        let checked = Bytes::from_static(b"checked");
        let unread = Shown::default();
        assert!(unread.events(None).is_empty());
        let first = Shown { status: Some(status("first")), checked: checked.clone(), ..Shown::default() };
        assert_eq!(texts(&first.events(Some(&unread))), ["first", "checked"]);
        assert_eq!(texts(&first.events(Some(&first))), ["checked"]);
        let denied = Shown { problem: Some(Bytes::from_static(b"denied")), ..first.clone() };
        assert_eq!(texts(&denied.events(Some(&first))), ["denied"]);
        assert_eq!(
            texts(&denied.events(None)),
            ["first", "denied"],
            "what was last known, and that it is not current"
        );
        assert_eq!(texts(&first.events(Some(&denied))), ["first", "checked"]);
    }

    #[test]
    fn list_sends_only_the_runs_that_changed_and_those_that_are_gone() {
        let name = |id: &str| RunName { tenant: "t".into(), run_id: id.into() };
        let (a, b) = (Bytes::from_static(b"a"), Bytes::from_static(b"b"));
        let count = Some(Bytes::from_static(b"count"));
        let one = Listed {
            runs: BTreeMap::from([(name("a"), a.clone())]),
            count: count.clone(),
            ..Listed::default()
        };
        let two = Listed {
            runs: BTreeMap::from([(name("a"), a), (name("b"), b.clone())]),
            count,
            ..Listed::default()
        };
        assert_eq!(texts(&two.events(None)), ["a", "b", "count"]);
        assert_eq!(texts(&two.events(Some(&one))), ["b", "count"]);
        let gone = one.events(Some(&two));
        assert_eq!(texts(&gone), ["event: gone\ndata: {\"id\":\"b\",\"tenant\":\"t\"}\n\n", "count"]);
    }

    #[test]
    fn number_of_streams_is_limited() {
        let streams = Streams::default();
        let open: Vec<Permit> = (0..MOST).map(|_| streams.permit().unwrap()).collect();
        assert!(streams.permit().is_none());
        drop(open);
        assert_eq!(streams.open(), 0);
        assert!(streams.permit().is_some());
    }
}
