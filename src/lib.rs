//! Rendezvous for elastic training jobs: the nodes of a run agree on rounds through etcd, and each node receives its
//! rank, its world, and changes of the world.
//!
//! The modules, from the lowest layer to the highest:
//!
//! | module | purpose |
//! |---|---|
//! | [`error`] | the error type |
//! | [`discovery`] | the endpoints, from arguments and environment; pure |
//! | [`settings`] | the validated configuration of a run; pure |
//! | [`backend`] | the operations on the rendezvous service: transactions, ranges, watches, leases |
//! | [`protocol`] | the rendezvous protocol: records, keys, decisions, ranking; pure |
//! | [`lifeline`] | connections to other members, whose end is a sign of a death |
//! | [`grant`] | the grant of a lease that also shows whether a service responds |
//! | [`run`], [`lease`] | the data that the tasks of a node share, and the renewal of its lease |
//! | [`store`] | a run's key-value store, which applies every write exactly once |
//! | [`coordinator`] | the task of one node of a run that decides its rounds |
//! | [`server`], [`hosting`] | the embedded server, and the node that hosts it for the others |
//! | [`node`] | the session of one node: lease, membership, its view of the run, its next world |
//! | [`exposition`] | Prometheus' text format |
//! | [`status`] | the state of a service and of a run, read without joining |
//! | [`dashboard`] | runs as a page in a browser, with metrics |
//! | [`operate`] | the acts of an operator: close a run, drain a node |
//!
//! `python` (feature `python`) converts values and forwards calls. It decides nothing.

pub mod backend;
pub mod coordinator;
pub mod dashboard;
pub mod discovery;
pub mod error;
pub mod exposition;
pub mod grant;
pub mod hosting;
pub mod lease;
pub mod lifeline;
mod lock;
pub mod node;
pub mod operate;
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
