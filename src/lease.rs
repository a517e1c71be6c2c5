//! Keeps one etcd lease alive. A task renews the lease after each third of its TTL, retries failed renewals with
//! backoff, and publishes the result as [`LeaseState`]. It decides nothing else.
//!
//! Neither an acknowledgment nor its absence is conclusive: etcd before 3.4.38 and 3.5.23 renewed leases that it had
//! revoked, and responses can be lost. A missed deadline therefore only marks the node as uncertain. After an
//! interruption, the owner of the lease reads from the service whether the node is still registered.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::{Instant, sleep_until},
};
use tracing::Instrument as _;

use crate::{
    backend::{
        LeaseId,
        retry::{Backoff, RetryPolicy},
    },
    error::Error,
    run::Context,
};

/// The state of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseState {
    /// The lease.
    pub lease: LeaseId,
    /// False after the service has reported that the lease does not exist.
    pub alive: bool,
    /// When the last acknowledged renewal was sent.
    pub acknowledged: Instant,
    /// The TTL that the service returned last.
    pub ttl: Duration,
    /// How often it was renewed after a failure, or on another connection than before.
    pub breaks: u64,
    /// The longest silence before the last interruption ended.
    pub silence: Duration,
    /// When the last silence of more than half the TTL ended. Other nodes may still be reconnecting after its cause.
    pub disturbed: Option<Instant>,
    /// The error of the last renewal, if it failed.
    pub trouble: Option<String>,
    /// The connection of the last acknowledgement.
    connection: u64,
}

impl LeaseState {
    /// The time from which the lease may have expired.
    pub fn uncertain_at(&self) -> Instant {
        self.acknowledged + self.ttl
    }
}

/// The task that renews a lease. Dropping it stops the renewals, but does not revoke the lease.
#[derive(Debug)]
pub struct Keeper {
    state: watch::Receiver<LeaseState>,
    renew: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Keeper {
    /// Keeps a lease alive whose grant was sent at `sent`.
    pub fn start(context: &Arc<Context>, lease: LeaseId, ttl: Duration, sent: Instant) -> Self {
        let connection = context.backend.connection();
        let first = LeaseState {
            lease,
            alive: true,
            acknowledged: sent,
            ttl,
            breaks: 0,
            silence: Duration::ZERO,
            disturbed: None,
            trouble: None,
            connection,
        };
        let (sender, state) = watch::channel(first);
        let renew = Arc::new(Notify::new());
        let task = tokio::spawn(keep(Arc::clone(context), sender, Arc::clone(&renew)).in_current_span());
        Self { state, renew, task }
    }

    /// Returns the current state and allows waiting for changes.
    pub fn state(&self) -> watch::Receiver<LeaseState> {
        self.state.clone()
    }

    /// Requests a renewal now.
    pub fn handle(&self) -> RenewHandle {
        RenewHandle(Arc::clone(&self.renew))
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Requests a renewal from a [`Keeper`] now.
#[derive(Clone, Debug)]
pub struct RenewHandle(Arc<Notify>);

impl RenewHandle {
    /// Requests a renewal. The acknowledgment appears in the state of the lease.
    pub fn renew(&self) {
        self.0.notify_one();
    }
}

async fn keep(context: Arc<Context>, state: watch::Sender<LeaseState>, renew: Arc<Notify>) {
    let mut backoff = Backoff::new(RetryPolicy::default(), context.entropy.bits());
    let (lease, mut due) = {
        let state = state.borrow();
        (state.lease, state.acknowledged + state.ttl / 3)
    };
    loop {
        tokio::select! {
            biased;
            () = renew.notified() => {}
            () = sleep_until(due) => {}
        }
        let sent = Instant::now();
        match context.backend.lease_keep_alive(lease).await {
            Ok(ttl) => {
                let connection = context.backend.connection();
                state.send_modify(|state| {
                    if sent.saturating_duration_since(state.acknowledged) > state.ttl / 2 {
                        state.disturbed = Some(Instant::now());
                    }
                    if state.trouble.is_some() || state.connection != connection {
                        state.breaks += 1;
                        state.silence = sent.saturating_duration_since(state.acknowledged);
                    }
                    state.acknowledged = sent;
                    state.trouble = None;
                    state.ttl = ttl;
                    state.connection = connection;
                });
                backoff.reset();
                due = sent + ttl / 3;
            }
            Err(Error::LeaseNotFound { .. }) => {
                state.send_modify(|state| {
                    state.alive = false;
                    state.silence = sent.saturating_duration_since(state.acknowledged);
                });
                return;
            }
            Err(error) => {
                if state.borrow().trouble.is_none() {
                    tracing::debug!(%error, "a renewal failed");
                }
                // No receiver acts on this change, so none is notified.
                state.send_if_modified(|state| {
                    state.trouble = Some(error.to_string());
                    false
                });
                due = Instant::now() + backoff.next_delay();
            }
        }
    }
}
