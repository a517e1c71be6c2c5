//! The rendezvous itself, without I/O, clock, or randomness: the records of a run, and the decisions that follow from
//! them.
//!
//! A node or the coordinator reads records, calls one of these functions with what it read and the time of its
//! monotonic clock, and carries out the result. Therefore every rule can be tested by itself, and a schedule of a whole
//! run is a function of its seed.
//!
//! | module | the question it answers |
//! |---|---|
//! | [`identity`] | how nodes and the lives of a run are identified |
//! | [`keys`] | which key a record has |
//! | [`records`] | what a record contains |
//! | [`reading`] | how a transaction reads records |
//! | [`printable`] | how text of other processes is shown |
//! | [`policy`] | how long, how many, and what to ignore |
//! | [`sizing`] | which sizes a world may have |
//! | [`roster`] | what a coordinator knows of the run's nodes, and since when |
//! | [`decide`] | what a coordinator does next, and why |
//! | [`selection`] | which nodes are in the next world, if there are more than places |
//! | [`ranking`] | which ranks these nodes get |
//! | [`cooldown`] | how long a node that fails repeatedly waits for its next place |
//! | [`plan`] | how a world is divided into shards |
//! | [`standing`] | what a node is in the round that it reads |
//! | [`returning`] | what a node does after an interruption |
//! | [`submission`] | which submission a run belongs to, and which nodes it refuses |
//! | [`closing`] | what a node that starts does about a closed run |
//! | [`work`] | what the session of a node does next |
//! | [`waiting`] | what the coordinator reports about the nodes that wait |
//! | [`losses`] | which members a round lost, and how soon that was announced |
//! | [`clocks`] | the times that only the coordinator knows, for readers of the run |

pub mod accusing;
pub mod clocks;
pub mod closing;
pub mod cooldown;
pub mod decide;
#[cfg(test)]
mod fixtures;
pub mod identity;
pub mod keys;
pub mod losses;
pub mod neighbors;
mod observing;
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
