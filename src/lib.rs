//! The rendezvous of elastic training jobs: the nodes of a run meet in etcd, agree on rounds, and each learns its
//! rank, its world and when the world changes.
//!
//! The layers, each of which knows only those above it:
//!
//! | module | one idea |
//! |---|---|
//! | [`error`] | the one error type |
//! | [`discovery`] | which endpoints, from arguments and environment; pure |
//! | [`settings`] | what a run is configured with, validated; pure |
//! | [`backend`] | what the protocol needs of a store: transactions, ranges, watches, leases |
//! | [`protocol`] | the rendezvous itself: records, keys, decisions, ranking; pure |
//! | [`run`], [`lease`] | what the tasks of a node share, and the keeping of its lease |
//! | [`store`] | a run's key-value space, in which every write applies once |
//! | [`coordinator`] | the task that one node of a run carries, which decides its rounds |
//! | [`server`], [`hosting`] | the memory backend behind etcd's API, and the node that serves it to the others |
//! | [`node`] | one node's session: lease, membership, its view of the run, its next world |
//! | [`status`] | what can be said of a service and of a run without joining it |
//!
//! `python` (feature `python`) converts and forwards; it decides nothing.

pub mod backend;
pub mod coordinator;
pub mod discovery;
pub mod error;
pub mod hosting;
pub mod lease;
pub mod node;
pub mod protocol;
#[cfg(feature = "python")]
mod python;
pub mod run;
pub mod server;
pub mod settings;
pub mod status;
pub mod store;
mod tls;

pub use error::{Error, Result};
