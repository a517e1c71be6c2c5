//! The states of a node. To leave a state is a move, which drops everything that belongs to it. So no field is reset by
//! hand.

mod closed;
mod joining;
mod membership;
mod outside;
mod over;

pub(super) use self::{
    closed::Closed,
    joining::{Joined, Joining, new_term, take_lease},
    membership::{CoordinatorTask, HeldLease, Membership, MembershipEvent, StoredRecord},
    outside::Outside,
    over::Over,
};

/// The state of a node.
pub(super) enum Stage {
    /// Outside the run.
    Outside(Outside),
    /// Joining the run, with a lease.
    Joining(Box<Joining>),
    /// In the run.
    In(Box<Membership>),
    /// The run is closed.
    Closed(Box<Closed>),
    /// An error has ended the session. The node can only close the run and leave it.
    Over(Box<Over>),
}

impl Default for Stage {
    fn default() -> Self {
        Self::Outside(Outside::default())
    }
}

impl Stage {
    /// The membership. A node keeps it when the run is closed, and after some errors, until it leaves.
    pub(super) fn membership(&self) -> Option<&Membership> {
        match self {
            Self::Outside(_) | Self::Joining(_) => None,
            Self::In(membership) => Some(membership),
            Self::Closed(closed) => closed.membership.as_deref(),
            Self::Over(over) => over.membership.as_deref(),
        }
    }

    pub(super) fn membership_mut(&mut self) -> Option<&mut Membership> {
        match self {
            Self::Outside(_) | Self::Joining(_) => None,
            Self::In(membership) => Some(membership),
            Self::Closed(closed) => closed.membership.as_deref_mut(),
            Self::Over(over) => over.membership.as_deref_mut(),
        }
    }

    /// Moves the membership out.
    pub(super) fn into_membership(self) -> Option<Box<Membership>> {
        match self {
            Self::Outside(_) | Self::Joining(_) => None,
            Self::In(membership) => Some(membership),
            Self::Closed(closed) => closed.membership,
            Self::Over(over) => over.membership,
        }
    }
}
