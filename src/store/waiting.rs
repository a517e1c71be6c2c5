//! Reads keys, and waits for keys that do not exist yet, with one read and one watch. Where other nodes are awaited,
//! the watch is opened first.
//!
//! Nothing is polled, except that a long wait reads again once a minute, because etcd has lost watch events. A watch that
//! breaks is not resumed: a service that lost its data meanwhile would accept it, but it would miss everything without an
//! error. Instead all keys are read again. They are also read again when the session reports that the service lost its
//! data. A read is conditional on this node's record, so that a service that lost its data does not return "not found"
//! before the session has noticed the loss. It is also conditional on `ctl/round` being attached to the run's lease, so
//! that discarded data of an older backup is not returned either.

use std::{pin::pin, time::Duration};

use tokio::{sync::watch, time::sleep};

use super::{
    Inner, Progress, StoreView,
    journal::Journal,
    values::{Contents, Place},
    writing::moved_or,
};
use crate::{
    backend::{
        Changes, Event, KeyValue, Keys, Range, Revision, WatchStream, pages::read_pages, retry::Backoff,
    },
    error::{Applied, Error, Result},
};

/// The maximum number of keys that are read one by one in a transaction. More keys are read with one range over their
/// common prefix.
const KEYS_READ_SINGLY: usize = 32;

/// The average time after which a wait reads again, because etcd has lost watch events.
const REREAD_INTERVAL: Duration = Duration::from_secs(60);

/// Why a watch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Woken {
    /// The awaited keys exist.
    Enough,
    /// The world is about to change, and the caller wants to know that.
    Changed,
    /// The watch broke or was open for long, or the service lost its data.
    ReadAgain,
}

/// What was read before a watch.
#[derive(Clone, Copy, Debug)]
struct Seen<'journal> {
    revision: Revision,
    /// How often the service had lost its data at that time.
    resets: u64,
    journal: Option<&'journal Journal>,
}

/// What can make the next attempt at a read succeed.
struct ReadTriggers {
    view: watch::Receiver<StoreView>,
    restored: Option<watch::Receiver<()>>,
}

impl ReadTriggers {
    fn new(view: watch::Receiver<StoreView>, journal: Option<&Journal>) -> Self {
        Self { view, restored: journal.map(Journal::restored) }
    }

    fn mark_unchanged(&mut self) {
        self.view.mark_unchanged();
        self.restored.iter_mut().for_each(watch::Receiver::mark_unchanged);
    }

    /// Waits for such an event, or for as long as the pause of a retry.
    async fn wait(&mut self, backoff: &mut Backoff) -> Result<()> {
        let Some(restored) = &mut self.restored else { return moved_or(&mut self.view, backoff).await };
        tokio::select! {
            biased;
            // The store keeps the journal for as long as the call lasts, so this cannot fail.
            _ = restored.changed() => Ok(()),
            moved = moved_or(&mut self.view, backoff) => moved,
        }
    }
}

impl Inner {
    /// Reads what the keys hold now. Returns the revision.
    pub(super) async fn read(
        &self,
        contents: &mut Contents,
        journal: Option<&Journal>,
        progress: &Progress,
    ) -> Result<Revision> {
        let mut backoff = self.backoff();
        let mut triggers = ReadTriggers::new(self.context.view.clone(), journal);
        loop {
            triggers.mark_unchanged();
            match self.read_once(contents, journal).await {
                Err(error) if error.is_transient() => {
                    progress.note(&error.to_string());
                    triggers.wait(&mut backoff).await?;
                }
                end => return end,
            }
        }
    }

    /// Reads which keys exist, without their values, and the revision.
    pub(super) async fn all(
        &self,
        keys: Keys,
        journal: Option<&Journal>,
        progress: &Progress,
    ) -> Result<(Revision, Vec<KeyValue>)> {
        let mut backoff = self.backoff();
        let mut triggers = ReadTriggers::new(self.context.view.clone(), journal);
        loop {
            triggers.mark_unchanged();
            let read = match self.known_lease().and_then(|view| self.check_restored(&[], &view, journal)) {
                Ok(()) => self.pages(keys.clone(), true).await,
                Err(error) => Err(error),
            };
            match read {
                Err(error) if error.is_transient() => {
                    progress.note(&error.to_string());
                    triggers.wait(&mut backoff).await?;
                }
                end => return end,
            }
        }
    }

    /// Fails until this node has restored everything that it wrote to these keys, or to any key if `names` is empty.
    fn check_restored(&self, names: &[&str], view: &StoreView, journal: Option<&Journal>) -> Result<()> {
        let Some(name) = journal.and_then(|journal| journal.first_missing(names, view.run_lease)) else {
            return Ok(());
        };
        Err(self.unavailable(format!(
            "it lost its data, and the values that this node wrote to `{name}` are being restored"
        )))
    }

    /// Makes one attempt to read what keys hold.
    async fn read_once(&self, contents: &mut Contents, journal: Option<&Journal>) -> Result<Revision> {
        contents.clear();
        let view = self.known_lease()?;
        if journal.is_some() {
            let names: Vec<_> = contents.places().iter().map(|place| place.name.as_str()).collect();
            self.check_restored(&names, &view, journal)?;
        }
        if contents.places().len() > KEYS_READ_SINGLY {
            let (revision, items) = self.pages(contents.covering(), false).await?;
            for item in items {
                contents.found(item);
            }
            return Ok(revision);
        }
        let (mut txn, _) = self.presence(&view);
        let keys = contents.places().iter().flat_map(Place::keys);
        let gets: Vec<_> = keys.map(|key| txn.get_if_done(key)).collect();
        let answer = self.context.backend.txn(txn).await?;
        if !answer.succeeded {
            return Err(self.data_missing());
        }
        for item in gets.iter().filter_map(|get| get.item(&answer)) {
            contents.found(item.clone());
        }
        let revision = answer.header.revision;
        for queue in contents.unread_queues() {
            for item in self.pages_at(queue, true, revision).await?.1 {
                contents.found(item);
            }
        }
        Ok(revision)
    }

    /// Reads all keys, page by page, at one revision. Returns that revision, too.
    pub(super) async fn pages(&self, keys: Keys, keys_only: bool) -> Result<(Revision, Vec<KeyValue>)> {
        self.pages_at(keys, keys_only, 0).await
    }

    /// As [`Self::pages`], at the given revision (0 is the latest).
    async fn pages_at(
        &self,
        keys: Keys,
        keys_only: bool,
        revision: Revision,
    ) -> Result<(Revision, Vec<KeyValue>)> {
        // Before the read: the result belongs to this lease only if `ctl/round` is attached to it afterwards.
        let view = self.known_lease()?;
        let range = Range { limit: self.context.limits.page, keys_only, revision, ..Range::new(keys) };
        let (items, revision) = read_pages(self.context.backend.as_ref(), range).await?;
        let (txn, _) = self.presence(&view);
        if !self.context.backend.txn(txn).await?.succeeded {
            return Err(self.data_missing());
        }
        Ok((revision, items))
    }

    /// The view of the session, once it contains the run's lease.
    fn known_lease(&self) -> Result<StoreView> {
        let view = self.context.view.borrow().clone();
        if view.run_lease == 0 && view.over.is_none() { Err(self.data_missing()) } else { Ok(view) }
    }

    fn data_missing(&self) -> Error {
        let cause = "this node's record, or the run's data, is not in the service at the moment";
        self.unavailable(cause.to_owned())
    }

    fn unavailable(&self, cause: String) -> Error {
        Error::Unavailable { endpoint: self.context.backend.endpoint(), cause, applied: Applied::No }
    }

    /// Waits until all of the keys hold something, or with `until_change`, until the world is about to change.
    pub(super) async fn wait(
        &self,
        contents: &mut Contents,
        journal: Option<&Journal>,
        until_change: bool,
        progress: &Progress,
    ) -> Result<()> {
        let mut backoff = self.backoff();
        let mut triggers = ReadTriggers::new(self.context.view.clone(), journal);
        loop {
            triggers.mark_unchanged();
            let (resets, changed) = {
                let now = triggers.view.borrow();
                (now.resets, now.changed && until_change)
            };
            // A call that waits for other nodes seldom finds their keys at once. If its watch is open before the read,
            // keys that are written meanwhile do not require another read.
            let early =
                if until_change && !changed { self.open(contents.covering(), progress).await? } else { None };
            match self.read_once(contents, journal).await {
                Ok(_) if changed || contents.is_complete() => return Ok(()),
                Ok(revision) => {
                    backoff.reset();
                    progress.awaiting(contents.missing());
                    let stream = match early {
                        Some(stream) => Some(stream),
                        None => self.open(contents.covering(), progress).await?,
                    };
                    let woken = match stream {
                        Some(stream) => {
                            let seen = Seen { revision, resets, journal };
                            self.wait_on(stream, contents, seen, until_change, progress).await?
                        }
                        None => Woken::ReadAgain,
                    };
                    match woken {
                        Woken::Enough | Woken::Changed => return Ok(()),
                        Woken::ReadAgain => progress.awaiting(contents.missing()),
                    }
                }
                // The world is about to change, and a caller that wants to know that does not wait for the service.
                Err(error) if error.is_transient() && changed => return Ok(()),
                Err(error) if error.is_transient() => progress.note(&error.to_string()),
                Err(error) => return Err(error),
            }
            triggers.wait(&mut backoff).await?;
        }
    }

    /// Follows the keys after a read at this revision. Reads once more what was written while the watch was opened.
    async fn wait_on(
        &self,
        stream: Box<dyn WatchStream>,
        contents: &mut Contents,
        seen: Seen<'_>,
        until_change: bool,
        progress: &Progress,
    ) -> Result<Woken> {
        let Seen { mut revision, resets, journal } = seen;
        if stream.revision() > revision {
            revision = match self.read_once(contents, journal).await {
                Ok(revision) => revision,
                Err(error) if error.is_transient() => return Ok(Woken::ReadAgain),
                Err(error) => return Err(error),
            };
            progress.awaiting(contents.missing());
            if contents.is_complete() {
                return Ok(Woken::Enough);
            }
        }
        self.watched(stream, revision, resets, until_change, progress, |event| {
            contents.apply(event);
            progress.awaiting(contents.missing());
            contents.is_complete()
        })
        .await
    }

    /// Waits for a change of these keys after a revision. Also returns when the keys must be read again for another
    /// reason.
    pub(super) async fn wait_for_change(
        &self,
        keys: Keys,
        revision: Revision,
        resets: u64,
        progress: &Progress,
    ) -> Result<()> {
        let put = |event: Event| matches!(event, Event::Put(_));
        let woken = match self.open(keys, progress).await? {
            Some(stream) if stream.revision() > revision => return Ok(()),
            Some(stream) => self.watched(stream, revision, resets, false, progress, put).await?,
            None => Woken::ReadAgain,
        };
        if woken == Woken::ReadAgain {
            sleep(self.backoff().next_delay()).await;
        }
        Ok(())
    }

    /// Opens a watch that begins now. It does not begin at the revision that was read: etcd serves watches that begin
    /// in the past from a loop that runs ten times a second (`syncWatchersLoop`), and in a busy run every revision is
    /// soon in the past.
    async fn open(&self, keys: Keys, progress: &Progress) -> Result<Option<Box<dyn WatchStream>>> {
        match self.context.backend.watch(keys, 0).await {
            Ok(stream) => Ok(Some(stream)),
            Err(error) if error.is_transient() => {
                progress.note(&error.to_string());
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Follows the keys after this revision until `enough` returns true, which is checked after the last change of a
    /// revision.
    async fn watched(
        &self,
        mut stream: Box<dyn WatchStream>,
        revision: Revision,
        resets: u64,
        until_change: bool,
        progress: &Progress,
        mut enough: impl FnMut(Event) -> bool + Send,
    ) -> Result<Woken> {
        let mut view = self.context.view.clone();
        let judge = |view: &StoreView| {
            if until_change && view.changed {
                Some(Woken::Changed)
            } else if view.resets != resets {
                Some(Woken::ReadAgain)
            } else {
                None
            }
        };
        // Random, so that nodes that began to wait together do not read together.
        let part = Duration::from_millis(self.seed() % 1000) * 60;
        let mut reread = pin!(sleep(REREAD_INTERVAL / 2 + part));
        loop {
            if let Some(woken) = judge(&view.borrow_and_update()) {
                return Ok(woken);
            }
            tokio::select! {
                biased;
                changes = stream.next() => match changes {
                    Ok(Changes { events, .. }) => {
                        let unread = events.into_iter().filter(|event| event.revision() > revision);
                        let mut events = unread.peekable();
                        while let Some(event) = events.next() {
                            let revision = event.revision();
                            // Half a revision is a state that never existed.
                            let last = events.peek().is_none_or(|next| next.revision() != revision);
                            if enough(event) && last {
                                return Ok(Woken::Enough);
                            }
                        }
                    }
                    Err(error) if error.is_transient() || matches!(error, Error::Compacted { .. }) => {
                        progress.note(&error.to_string());
                        return Ok(judge(&view.borrow()).unwrap_or(Woken::ReadAgain));
                    }
                    Err(error) => return Err(error),
                },
                moved = view.changed() => moved.map_err(|_| Error::Left)?,
                () = &mut reread => return Ok(Woken::ReadAgain),
            }
        }
    }
}
