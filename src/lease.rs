//! Keeping one lease alive. A task renews it at a third of its TTL, and tries again quickly when that fails; what it
//! learns is published, and nothing else is decided here.
//!
//! An acknowledgement proves little (etcd before 3.4.38 and 3.5.23 renewed leases that it had revoked), and its absence
//! too: so the local deadline only warns, and what a break did to the node is read from the store by its owner.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, watch},
    task::JoinHandle,
    time::{Instant, sleep_until},
};

use crate::{
    backend::{
        LeaseId,
        retry::{Backoff, RetryPolicy},
    },
    error::Error,
    run::Context,
};

/// What is known of a lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseState {
    /// The lease.
    pub lease: LeaseId,
    /// False once the service has said that it does not exist.
    pub alive: bool,
    /// When the last renewal that was acknowledged had been sent.
    pub acknowledged: Instant,
    /// The TTL that the service last gave.
    pub ttl: Duration,
    /// How often it was renewed after a failure or on another connection than before.
    pub breaks: u64,
    /// The longest silence that ended with the last break.
    pub silence: Duration,
    /// When a silence of more than half the TTL ended last: others may still be returning from what caused it.
    pub disturbed: Option<Instant>,
    /// Why the last renewal failed, if it did.
    pub trouble: Option<String>,
    /// The connection of the last acknowledgement.
    connection: u64,
}

impl LeaseState {
    /// From when on the lease may be over.
    pub fn uncertain_at(&self) -> Instant {
        self.acknowledged + self.ttl
    }
}

/// The task that renews a lease. Dropping it ends the renewing, and not the lease.
#[derive(Debug)]
pub struct Keeper {
    state: watch::Receiver<LeaseState>,
    renew: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Keeper {
    /// Keeps a lease whose grant was sent at `sent`.
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
        let task = tokio::spawn(keep(Arc::clone(context), sender, Arc::clone(&renew)));
        Self { state, renew, task }
    }

    /// What is known now, and a way to wait for news.
    pub fn state(&self) -> watch::Receiver<LeaseState> {
        self.state.clone()
    }

    /// Asks for a renewal now.
    pub fn handle(&self) -> RenewHandle {
        RenewHandle(Arc::clone(&self.renew))
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Asks a [`Keeper`] for a renewal now.
#[derive(Clone, Debug)]
pub struct RenewHandle(Arc<Notify>);

impl RenewHandle {
    /// Asks; the acknowledgement shows in the lease's state.
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
                // Nobody acts on it, so nobody is woken.
                state.send_if_modified(|state| {
                    state.trouble = Some(error.to_string());
                    false
                });
                due = Instant::now() + backoff.next_delay();
            }
        }
    }
}
