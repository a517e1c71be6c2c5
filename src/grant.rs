//! The first lease of a new node id. Granting it also shows that the service responds, so a node that joins makes no
//! separate call for that.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    backend::Backend,
    error::{Error, Result},
    protocol::identity::NodeId,
};

/// A lease that was granted for a new node id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Granted {
    /// The node id. Its first lease has the same number.
    pub id: NodeId,
    /// When the request was sent, or an earlier one that may have been applied instead.
    pub sent: Instant,
    /// The TTL that the service returned.
    pub ttl: Duration,
}

impl Granted {
    /// Requests the first lease of `id`, for the first time at `began`. If the lease exists, an earlier request was
    /// applied.
    ///
    /// # Errors
    /// As [`Backend::lease_grant`].
    pub async fn request(backend: &dyn Backend, id: NodeId, ttl: Duration, began: Instant) -> Result<Self> {
        let sent = Instant::now();
        match backend.lease_grant(id.first_lease(), ttl).await {
            Ok(ttl) => Ok(Self { id, sent, ttl }),
            Err(Error::LeaseExists { .. }) => Ok(Self { id, sent: began, ttl }),
            Err(error) => Err(error),
        }
    }

    /// Whether there is enough time left to join under it.
    pub fn is_fresh(&self) -> bool {
        self.sent.elapsed() < self.ttl / 2
    }
}
