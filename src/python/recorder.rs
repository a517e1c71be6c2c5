//! Puts the core's log events into the queue of this process, and waits for them.

use std::{
    fmt::{self, Write as _},
    sync::atomic::{AtomicI32, Ordering},
    time::{Duration, Instant},
};

use pyo3::prelude::*;
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
    subscriber::Interest,
};
use tracing_subscriber::{
    layer::{Context, Layer, SubscriberExt as _},
    registry::{LookupSpan, Registry},
};

use super::{
    logs::{CRATE, Entry, INFO, Origin, WARNING},
    runtime::{Process, tick},
};
use crate::protocol::printable::printable;

/// The lowest level that is recorded.
static LEAST: AtomicI32 = AtomicI32::new(INFO);

/// Waits for records.
pub(super) fn fetch(py: Python<'_>, limit: Duration) -> PyResult<Vec<Entry>> {
    let queue = &Process::current().logs;
    let deadline = Instant::now() + limit;
    let tick = tick().unwrap_or(limit);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if let Some(records) = py.detach(|| queue.fetch(left.min(tick))) {
            return Ok(records);
        }
        py.check_signals()?;
        if left <= tick {
            return Ok(Vec::new());
        }
    }
}

/// Sets the lowest level.
pub(super) fn set_level(level: i32) {
    LEAST.store(level, Ordering::Relaxed);
}

/// Records the core's log events from now on. Only the first call in a process has an effect.
pub(super) fn record() {
    // An error means that another subscriber is already installed and receives the events.
    let _ = tracing::subscriber::set_global_default(Registry::default().with(Recorder));
}

/// Puts the core's events into the queue.
struct Recorder;

impl Recorder {
    fn is_ours(metadata: &Metadata<'_>) -> bool {
        metadata.target().strip_prefix(CRATE).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    }
}

impl<S> Layer<S> for Recorder
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            let mut origin = Origin::default();
            attributes.record(&mut origin);
            span.extensions_mut().insert(origin);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(origin) = span.extensions_mut().get_mut::<Origin>()
        {
            values.record(origin);
        }
    }

    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        // "Sometimes", because the lowest level can change.
        if Self::is_ours(metadata) { Interest::sometimes() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        Self::is_ours(metadata) && number(*metadata.level()) >= LEAST.load(Ordering::Relaxed)
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let metadata = event.metadata();
        let mut text = Text::default();
        event.record(&mut text);
        // A message may repeat names and keys from other processes.
        let message = printable(&(text.message + &text.fields)).into_owned();
        let span = context.event_span(event);
        let origin = span.and_then(|span| span.extensions().get::<Origin>().cloned()).unwrap_or_default();
        let entry = (number(*metadata.level()), logger(metadata.target()), message, origin);
        Process::current().logs.push(entry);
    }
}

impl Visit for Origin {
    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "round" {
            self.2 = Some(value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = || Some(printable(&format!("{value:?}")).into_owned());
        match field.name() {
            "run" => self.0 = text(),
            "node" => self.1 = text(),
            _ => {}
        }
    }
}

/// Returns the level number of `logging`. Levels below debug get half of its number.
fn number(level: Level) -> i32 {
    match level {
        Level::ERROR => 40,
        Level::WARN => WARNING,
        Level::INFO => INFO,
        Level::DEBUG => 10,
        Level::TRACE => 5,
    }
}

/// Returns the logger's name for a target: the crate and the first module below it.
fn logger(target: &str) -> String {
    target.split("::").take(2).collect::<Vec<_>>().join(".")
}

/// Formats a message with its fields.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string does not fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn target_becomes_a_loggers_name() {
        assert_eq!(logger("lattice_rdzv::node::session"), "lattice_rdzv.node");
        assert_eq!(logger("lattice_rdzv"), "lattice_rdzv");
    }
}
