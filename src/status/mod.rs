//! The state of a service and of runs, read without joining.
//!
//! Problem: the reason for a wait, the nodes that are missing and the next event are known to the coordinator alone. Design:
//! a reader reads the records of the run, and the small record in which the coordinator keeps the times of its clock, and
//! calls the coordinator's own decision function. Nothing here writes.
//!
//! | module | purpose |
//! |---|---|
//! | [`picture`] | the types that the command, the page and Python show, and their JSON |
//! | [`records`] | the records of a run, and what a coordinator would see in them; pure |
//! | [`facts`], [`nodes`] | the facts about the run, and the state of each node; pure |
//! | [`verdict`], [`forming`] | the answer: what the run waits for, and what happens next; pure |
//! | [`counters`], [`metrics`] | what happened to runs in numbers, and as Prometheus' text; pure |
//! | [`reading`] | reads runs |
//! | [`watching`] | follows one run |
//! | [`mod@probe`] | reports the service itself |

pub mod counters;
mod facts;
mod forming;
pub mod metrics;
mod nodes;
pub mod picture;
mod probe;
pub mod reading;
pub mod records;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_of_metrics;
pub mod verdict;
pub mod watching;

pub use self::{
    picture::RunStatus,
    probe::probe,
    reading::{ListedRun, Reader, Source},
    watching::Watching,
};
