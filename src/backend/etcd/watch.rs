//! An etcd watch as a [`WatchStream`]: it ends with its connection, and its position is the last revision that it reported.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use etcd_client::WatchOptions;
use tokio::time::Instant;

use super::{
    classify::{Failure, classify, classify_reason},
    connection::{Clients, Connection, Pool},
    convert::{bounds, event, header},
};
use crate::{
    backend::{Changes, Keys, Revision, WatchStream},
    error::{Applied, Error, Result},
};

/// One open watch on one connection.
pub(super) struct EtcdWatch {
    pub(super) pool: Arc<Pool>,
    pub(super) connection: Arc<Connection>,
    pub(super) stream: etcd_client::WatchStream,
    /// The last revision reported.
    pub(super) position: Revision,
}

impl EtcdWatch {
    fn fail(&self, failure: Failure) -> Error {
        self.pool.failed(&self.connection, &failure, Instant::now());
        failure.into_error(&self.connection.endpoint, 0, false)
    }
}

impl fmt::Debug for EtcdWatch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Connection { number, endpoint, .. } = &*self.connection;
        let mut debug = formatter.debug_struct("EtcdWatch");
        debug.field("endpoint", endpoint).field("connection", number).finish_non_exhaustive()
    }
}

#[async_trait]
impl WatchStream for EtcdWatch {
    async fn next(&mut self) -> Result<Changes> {
        loop {
            let message = tokio::select! {
                biased;
                cause = self.connection.over() => {
                    let cause = format!("the connection was given up: {cause}");
                    let (endpoint, applied) = (self.connection.endpoint.clone(), Applied::No);
                    return Err(Error::Unavailable { endpoint, cause, applied });
                }
                message = self.stream.message() => message,
            };
            let answer = match message {
                Ok(Some(answer)) => answer,
                Ok(None) => return Err(self.fail(classify_reason("the stream of the watch ended"))),
                Err(error) => return Err(self.fail(classify(&error))),
            };
            if answer.compact_revision() > 0 {
                return Err(Error::Compacted { oldest: answer.compact_revision() });
            }
            if answer.canceled() {
                return Err(self.fail(classify_reason(answer.cancel_reason())));
            }
            let events: Vec<_> = answer.events().iter().filter_map(event).collect();
            // Not the revision of the header, which is that of the etcd member and may be ahead of what this watch was
            // sent.
            if let Some(last) = events.last() {
                self.position = self.position.max(last.revision());
                return Ok(Changes { revision: self.position, events });
            }
        }
    }

    fn revision(&self) -> Revision {
        self.position
    }

    fn connection(&self) -> u64 {
        self.connection.number
    }
}

/// Opens a watch. Returns the revision of the service when the watch was created.
pub(super) async fn open_watch(
    clients: &Clients,
    keys: &Keys,
    start: Revision,
) -> Result<(etcd_client::WatchStream, Revision), Failure> {
    let (key, end) = bounds(keys.clone());
    let mut options = WatchOptions::new().with_start_revision(start);
    if let Some(end) = end {
        options = options.with_range(end);
    }
    let mut stream = clients.watch.clone().watch(key, Some(options)).await?;
    let created = stream.message().await?.ok_or_else(|| classify_reason("the watch ended at once"))?;
    // The next message reports a compacted start, so that the watch ends with that error.
    if created.canceled() && created.compact_revision() == 0 {
        return Err(classify_reason(created.cancel_reason()));
    }
    Ok((stream, header(created.header()).revision))
}
