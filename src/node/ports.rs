//! An endpoint without a port: the ports of etcd and c10d are both tried, and the service is the server that responds.
//!
//! Every node must choose the same server. So a server that a node of this very run hosts has precedence, then the port
//! of etcd, and then the port of c10d. If a port is taken, even by a process that does not respond, no node hosts
//! another service.

use std::time::Duration;

use tokio::{
    net::{TcpStream, lookup_host},
    time::{Instant, sleep, timeout, timeout_at},
};

use super::connect::Search;
use crate::{
    discovery::{Endpoint, Source, is_own_address},
    error::{Applied, Error, Result},
    hosting::hosted_run,
};

/// A port that does not accept a connection within this time counts as closed, and a service that does not respond
/// within it as unresponsive. The other port may be the right one, and both are tried again.
const LIMIT: Duration = Duration::from_secs(1);

/// The pause between two attempts.
const PAUSE: Duration = Duration::from_millis(200);

/// What was found at a port.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Port {
    /// The port does not accept connections, for this reason.
    Closed(String),
    /// The port accepts connections, but does not respond like an etcd.
    Taken,
    /// A service.
    Serves,
    /// A service that a node of this run hosts.
    HostsThisRun,
}

/// Which of the two ports it is.
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
    /// The source that serves, of two, or the source at which this node is to host the service. If this machine is not
    /// the host, waits for either source until the deadline.
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
                         service ({}) were tried, and no service responds at `{second}` either: {second_cause}",
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
        // A service returns its status without a login.
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

/// Whether the host of an endpoint is this machine, as far as that is known in time.
async fn is_here(endpoint: &Endpoint, deadline: Instant) -> bool {
    let host = endpoint.host.to_string();
    match timeout_at(deadline, lookup_host((host.as_str(), 0))).await {
        Ok(Ok(mut addresses)) => addresses.any(|address| is_own_address(address.ip())),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_chooses_the_same_port() {
        let closed = || Port::Closed("refused".to_owned());
        let (etcd, hosted) = (Some(Choice::Etcd), Some(Choice::Hosted));
        for (at_etcds, at_hosted, expected) in [
            (closed(), closed(), None),
            (Port::Serves, closed(), etcd),
            (closed(), Port::Serves, hosted),
            (closed(), Port::HostsThisRun, hosted),
            // Nodes that were started before the etcd use the other service.
            (Port::Serves, Port::HostsThisRun, hosted),
            (Port::Taken, Port::HostsThisRun, hosted),
            (Port::Serves, Port::Serves, etcd),
            (Port::Serves, Port::Taken, etcd),
            (Port::Taken, Port::Serves, hosted),
            // An etcd may be paused, so no other service is hosted beside it.
            (Port::Taken, closed(), etcd),
            (Port::Taken, Port::Taken, etcd),
            (closed(), Port::Taken, hosted),
        ] {
            assert_eq!(choose(&at_etcds, &at_hosted), expected, "{at_etcds:?}, {at_hosted:?}");
        }
    }
}
