//! What every call of the server stands on: the engine, who we are, and who may ask.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use etcd_client::proto::PbResponseHeader;
use tokio::{sync::watch, time::Instant};

use super::{auth::Gatekeeper, budget::Budget, requests::Counters};
use crate::{
    backend::{
        Revision,
        memory::{
            engine::{Bounds, Engine},
            live::Live,
        },
    },
    run::Entropy,
};

/// etcd's version whose API this is; what stands after the plus says that it is another program.
pub const VERSION: &str = concat!("3.5.21+lattice-rdzv.", env!("CARGO_PKG_VERSION"));
/// What stands in the version of one that a node hosts, before the mark of its run.
pub const HOSTED: &str = ".hosted.";
/// There are no elections here, but clients expect a term.
pub(super) const RAFT_TERM: u64 = 2;

/// What a server holds. It is gone with the process, and whoever comes next has other ids.
#[derive(Clone, Debug)]
pub struct Contents {
    pub(super) live: Arc<Live>,
    pub(super) cluster_id: u64,
    pub(super) member_id: u64,
}

impl Contents {
    /// Nothing yet, under random ids, so that nobody else has them.
    pub fn new(bounds: Bounds, entropy: &Entropy) -> Self {
        let live = Live::looking_after_itself(Engine::new(bounds));
        let id = || entropy.bits().max(1);
        Self { live, cluster_id: id(), member_id: id() }
    }

    /// While it is paused no lease ends by itself: what a simulation says instead of stopping the process.
    #[doc(hidden)]
    pub fn pause(&self, paused: bool) {
        self.live.reshape(|_, _| ((), paused));
    }
}

/// One server.
#[derive(Debug)]
pub(super) struct Api {
    pub(super) contents: Contents,
    pub(super) gatekeeper: Gatekeeper,
    pub(super) counters: Counters,
    /// What clients may make it buffer.
    pub(super) budget: Arc<Budget>,
    /// What it says it is: [`VERSION`], and whether a node hosts it.
    pub(super) version: String,
    /// Where clients reach it, for `MemberList`.
    pub(super) endpoint: String,
    /// Until it is admitted it only says who it is.
    pub(super) admitted: AtomicBool,
    pub(super) connections: AtomicUsize,
    /// Connections to the port of [`super::observers`].
    pub(super) observers: AtomicUsize,
    pub(super) streams: AtomicUsize,
    pub(super) began: Instant,
    /// Becomes true when the server stops.
    pub(super) stopping: watch::Receiver<bool>,
}

impl Api {
    /// The store's engine, for one request.
    pub(super) fn access<T>(&self, access: impl FnOnce(&mut Engine, Duration) -> T) -> T {
        self.contents.live.access(access)
    }

    /// The head of an answer at this revision.
    #[expect(clippy::unnecessary_wraps, reason = "a message's head is optional, and always there")]
    pub(super) fn header_at(&self, revision: Revision) -> Option<PbResponseHeader> {
        let Contents { cluster_id, member_id, .. } = self.contents;
        Some(PbResponseHeader { cluster_id, member_id, revision, raft_term: RAFT_TERM })
    }

    /// The head of an answer now.
    pub(super) fn header(&self) -> Option<PbResponseHeader> {
        self.header_at(self.contents.live.look(|engine, _| engine.revision()))
    }
}

/// Waits until the server stops.
pub(super) async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // An error is that the server is gone altogether.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// Counts one of something as long as it lives.
#[derive(Debug)]
pub(super) struct Counted {
    api: Arc<Api>,
    counter: Counter,
}

/// Which of a server's counters.
pub(super) type Counter = fn(&Api) -> &AtomicUsize;

impl Counted {
    pub(super) fn new(api: &Arc<Api>, counter: Counter) -> Self {
        counter(api).fetch_add(1, Ordering::Relaxed);
        Self { api: Arc::clone(api), counter }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.counter)(&self.api).fetch_sub(1, Ordering::Relaxed);
    }
}
