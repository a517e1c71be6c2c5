//! Rendezvous for elastic training jobs: the nodes of a run agree on rounds through etcd, and each node receives its
//! rank, its world, and changes of the world.
//!
//! The layers, each of which uses only those above it:
//!
//! | module | purpose |
//! |---|---|
//! | [`error`] | the error type |
//! | [`discovery`] | the endpoints, from arguments and environment; pure |
//! | [`settings`] | the validated configuration of a run; pure |
//! | [`backend`] | the operations on the rendezvous service: transactions, ranges, watches, leases |
//! | [`protocol`] | the rendezvous protocol: records, keys, decisions, ranking; pure |
//! | [`run`], [`lease`] | the data that the tasks of a node share, and the renewal of its lease |
//! | [`store`] | a run's key-value store, which applies every write exactly once |
//! | [`coordinator`] | the task of one node of a run that decides its rounds |
//! | [`server`], [`hosting`] | the embedded server, and the node that hosts it for the others |
//! | [`node`] | the session of one node: lease, membership, its view of the run, its next world |
//! | [`status`] | the state of a service and of a run, read without joining |
//!
//! `python` (feature `python`) converts values and forwards calls. It decides nothing.

pub mod backend;
pub mod coordinator;
pub mod discovery;
pub mod error;
pub mod grant;
pub mod hosting;
pub mod lease;
mod lock;
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
