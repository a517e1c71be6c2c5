//! What every call of the server uses: the engine, the identity of the server, and the authentication.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use etcd_client::proto::PbResponseHeader;
use tokio::{sync::watch, time::Instant};

use super::{auth::Authenticator, budget::Budget, requests::Counters};
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

/// The version of etcd whose API the server has. The part after the plus sign shows that it is another program.
pub const VERSION: &str = concat!("3.5.21+lattice-rdzv.", env!("CARGO_PKG_VERSION"));
/// The part of the version of a server that a node hosts, before the mark of its run.
pub const HOSTED: &str = ".hosted.";
/// There are no elections here, but clients expect a term.
pub(super) const RAFT_TERM: u64 = 2;

/// The data of a server. It is lost when the process ends, and the next server has other IDs.
#[derive(Clone, Debug)]
pub struct Contents {
    pub(super) live: Arc<Live>,
    pub(super) cluster_id: u64,
    pub(super) member_id: u64,
}

impl Contents {
    /// No keys yet, and random IDs, which no other server has.
    pub fn new(bounds: Bounds, entropy: &Entropy) -> Self {
        let live = Live::looking_after_itself(Engine::new(bounds));
        let id = || entropy.bits().max(1);
        Self { live, cluster_id: id(), member_id: id() }
    }

    /// While it is paused, no lease expires by itself. A simulation uses this instead of stopping the process.
    #[doc(hidden)]
    pub fn pause(&self, paused: bool) {
        self.live.reshape(|_, _| ((), paused));
    }
}

/// One server.
#[derive(Debug)]
pub(super) struct Api {
    pub(super) contents: Contents,
    pub(super) authenticator: Authenticator,
    pub(super) counters: Counters,
    /// Limits what clients may make it buffer.
    pub(super) budget: Arc<Budget>,
    /// The version that it reports: [`VERSION`], with a suffix if a node hosts it.
    pub(super) version: String,
    /// The endpoint for clients, for `MemberList`.
    pub(super) endpoint: String,
    /// Until it is admitted, it only reports its identity.
    pub(super) admitted: AtomicBool,
    pub(super) connections: Arc<AtomicUsize>,
    /// The number of connections to the port of [`super::observers`].
    pub(super) observers: Arc<AtomicUsize>,
    pub(super) streams: Arc<AtomicUsize>,
    pub(super) began: Instant,
    /// Becomes true when the server stops.
    pub(super) stopping: watch::Receiver<bool>,
}

impl Api {
    /// Accesses the engine for one request.
    pub(super) fn access<T>(&self, access: impl FnOnce(&mut Engine, Duration) -> T) -> T {
        self.contents.live.access(access)
    }

    /// The header of a response at this revision.
    #[expect(clippy::unnecessary_wraps, reason = "a message's head is optional, and always there")]
    pub(super) fn header_at(&self, revision: Revision) -> Option<PbResponseHeader> {
        let Contents { cluster_id, member_id, .. } = self.contents;
        Some(PbResponseHeader { cluster_id, member_id, revision, raft_term: RAFT_TERM })
    }

    /// The header of a response at the latest revision.
    pub(super) fn header(&self) -> Option<PbResponseHeader> {
        self.header_at(self.contents.live.look(|engine, _| engine.revision()))
    }
}

/// Waits until the server stops.
pub(crate) async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // An error means that the server does not exist any more.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// Counts one of something as long as it exists.
#[derive(Debug)]
pub(crate) struct Counted(Arc<AtomicUsize>);

impl Counted {
    pub(crate) fn new(counter: &Arc<AtomicUsize>) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(counter))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
