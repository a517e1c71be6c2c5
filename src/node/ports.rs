//! An endpoint without a port: an etcd's port and c10d's are both tried, and whichever serves is the service.
//!
//! Every node must come to the same one. So the one that a node of this very run hosts comes first, then an etcd's port,
//! then c10d's; and a port that is taken, even by what does not answer, is not passed over for hosting another service.

use std::{net::UdpSocket, time::Duration};

use tokio::{
    net::{TcpStream, lookup_host},
    time::{Instant, sleep, timeout, timeout_at},
};

use super::connect::Search;
use crate::{
    discovery::{Endpoint, Source},
    error::{Applied, Error, Result},
    hosting::hosted_run,
};

/// A port that nobody answers at within this counts as closed, and a service as one that does not answer. The other port
/// may be the one, and both are tried again.
const LIMIT: Duration = Duration::from_secs(1);

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(200);

/// What was found at a port.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Port {
    /// Nobody takes connections, for this reason.
    Closed(String),
    /// Somebody takes connections, and does not answer as an etcd.
    Taken,
    /// A service.
    Serves,
    /// A service that a node of this run hosts.
    HostsThisRun,
}

/// Which of two ports it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    Etcd,
    Hosted,
}

fn choose(etcd: &Port, hosted: &Port) -> Option<Choice> {
    match (etcd, hosted) {
        (_, Port::HostsThisRun) => Some(Choice::Hosted),
        (Port::Serves | Port::HostsThisRun, _) => Some(Choice::Etcd),
        (_, Port::Serves) => Some(Choice::Hosted),
        (Port::Taken, _) => Some(Choice::Etcd),
        (_, Port::Taken) => Some(Choice::Hosted),
        (Port::Closed(_), Port::Closed(_)) => None,
    }
}

impl Search<'_> {
    /// The one of two sources that serves, or where this node is to host the service. Waits for either until the
    /// deadline where that is not this machine's part.
    pub(super) async fn choose_port(
        &self,
        etcd: Source,
        hosted: Source,
        deadline: Instant,
    ) -> Result<Source> {
        let (Some(first), Some(second)) = (etcd.endpoints.first(), hosted.endpoints.first()) else {
            return Ok(etcd);
        };
        let is_host = match self.connection.is_host {
            Some(is_host) => is_host,
            None => is_here(second, deadline).await,
        };
        loop {
            let (at_first, at_second) =
                tokio::join!(self.look_at(&etcd, first, deadline), self.look_at(&hosted, second, deadline));
            match choose(&at_first, &at_second) {
                Some(Choice::Etcd) => return Ok(etcd),
                Some(Choice::Hosted) => return Ok(hosted),
                None if is_host => return Ok(hosted),
                None => {}
            }
            if let (Port::Closed(first_cause), Port::Closed(second_cause)) = (at_first, at_second)
                && Instant::now() + PAUSE >= deadline
            {
                return Err(Error::Unavailable {
                    endpoint: first.to_string(),
                    cause: format!(
                        "{first_cause}; {} names no port, so that of an etcd ({}) and that of a node that hosts the \
                         service ({}) were tried, and nobody serves at `{second}` either: {second_cause}",
                        etcd.name, first.port, second.port
                    ),
                    applied: Applied::No,
                });
            }
            sleep(PAUSE).await;
        }
    }

    async fn look_at(&self, source: &Source, endpoint: &Endpoint, deadline: Instant) -> Port {
        let connect_by = deadline.min(Instant::now() + LIMIT);
        let address = (endpoint.host.to_string(), endpoint.port);
        match timeout_at(connect_by, TcpStream::connect(address)).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Port::Closed(error.to_string()),
            Err(_) => return Port::Closed("nothing answered in time".to_owned()),
        }
        // Who it is, a service says without a login.
        let Ok(client) = self.client(source, None) else { return Port::Taken };
        match timeout(LIMIT, client.status()).await {
            Ok(Ok(status)) if hosted_run(&status.version) == Some(self.keys.mark().as_str()) => {
                Port::HostsThisRun
            }
            Ok(Ok(_) | Err(Error::Denied { .. })) => Port::Serves,
            _ => Port::Taken,
        }
    }
}

/// Whether an endpoint's host is this machine, as far as that is known in time.
async fn is_here(endpoint: &Endpoint, deadline: Instant) -> bool {
    let host = endpoint.host.to_string();
    match timeout_at(deadline, lookup_host((host.as_str(), 0))).await {
        Ok(Ok(mut addresses)) => addresses.any(|address| UdpSocket::bind(address).is_ok()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_comes_to_the_same_port() {
        let closed = || Port::Closed("refused".to_owned());
        let (etcd, hosted) = (Some(Choice::Etcd), Some(Choice::Hosted));
        for (at_etcds, at_hosted, expected) in [
            (closed(), closed(), None),
            (Port::Serves, closed(), etcd),
            (closed(), Port::Serves, hosted),
            (closed(), Port::HostsThisRun, hosted),
            // Nodes that were there before the etcd are at the other one.
            (Port::Serves, Port::HostsThisRun, hosted),
            (Port::Taken, Port::HostsThisRun, hosted),
            (Port::Serves, Port::Serves, etcd),
            (Port::Serves, Port::Taken, etcd),
            (Port::Taken, Port::Serves, hosted),
            // An etcd may be paused: no other service is hosted beside it.
            (Port::Taken, closed(), etcd),
            (Port::Taken, Port::Taken, etcd),
            (closed(), Port::Taken, hosted),
        ] {
            assert_eq!(choose(&at_etcds, &at_hosted), expected, "{at_etcds:?}, {at_hosted:?}");
        }
    }
}
