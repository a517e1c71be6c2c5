//! The rendezvous itself, without I/O, clock or randomness: what stands in the store, and what follows from it.
//!
//! A node or the coordinator reads the store, calls one of these functions with what it saw and what its monotonic
//! clock says, and carries out the answer. So every rule can be tested by itself, and a schedule of a whole run is a
//! function of its seed.
//!
//! | module | the question it answers |
//! |---|---|
//! | [`identity`] | who is who, and which life of a run this is |
//! | [`keys`] | where a record stands |
//! | [`records`] | what a record says |
//! | [`reading`] | how a transaction reads records |
//! | [`printable`] | how text of other processes is shown |
//! | [`policy`] | how long, how many, and what to ignore |
//! | [`sizing`] | which sizes a world may have |
//! | [`roster`] | what a coordinator knows of the run's nodes, and since when |
//! | [`decide`] | what a coordinator does next, and why |
//! | [`selection`] | which nodes are in the next world, if more are there than it has places |
//! | [`ranking`] | with which ranks |
//! | [`cooldown`] | how long a node that fails again and again waits for its next place |
//! | [`plan`] | how a world is cut into shards |
//! | [`standing`] | what a node is in the round that it sees |
//! | [`returning`] | what a node does after a break |
//! | [`submission`] | which submission a run belongs to, and which nodes it refuses |
//! | [`closing`] | what a starter does about a run that is closed |
//! | [`work`] | what the session of a node does next |
//! | [`waiting`] | what the coordinator says about the nodes that wait |

pub mod closing;
pub mod cooldown;
pub mod decide;
#[cfg(test)]
mod fixtures;
pub mod identity;
pub mod keys;
pub mod plan;
pub mod policy;
pub mod printable;
pub mod ranking;
pub mod reading;
pub mod records;
pub mod returning;
pub mod roster;
pub mod selection;
pub mod sizing;
pub mod standing;
pub mod submission;
pub mod waiting;
pub mod work;
