//! The address by which other nodes reach this one.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    net::UdpSocket,
    time::{Instant, timeout_at},
};

use crate::{
    discovery::{Answer, Lookup, Source, is_own_address},
    settings::Settings,
};

/// The time limit for resolving the host's own name. There is an address without it, though only this machine can use
/// it.
const OWN_NAME_LIMIT: Duration = Duration::from_secs(5);

/// An address that is reached by the machine's default route. It is reserved for documentation, and nothing is sent
/// there.
const OUTSIDE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 9);

/// The address by which other nodes reach this one: the configured address, or the source address of packets to the
/// service. If that is a loopback address, the address of the host's name is used, if it is not a loopback address and
/// is resolved soon: the resolver of the system alone can take up to half a minute to fail, for example on a laptop
/// that is away from its network. If the name that other nodes resolve is a loopback address here, as on Debian for the
/// machine's own name, the address of the default route is the last resort.
pub async fn local_address(settings: &Settings, source: &Source, names: &impl Lookup) -> String {
    if let Some(address) = &settings.local_address {
        // Behind NAT, an address of another device may be right.
        if address.parse().is_ok_and(|address| !is_own_address(address)) {
            tracing::warn!(
                "`local_addr` is {address}, which is not an address of this machine; other nodes connect to it"
            );
        }
        return address.clone();
    }
    let deadline = Instant::now() + settings.connection.connect_timeout;
    let mut own: Option<IpAddr> = None;
    for endpoint in &source.endpoints {
        let text = endpoint.to_string();
        let target = text.split_once("://").map_or(text.as_str(), |(_, target)| target);
        own = way_to(target, names, deadline).await;
        if own.is_some() {
            break;
        }
    }
    match own {
        Some(address) if !address.is_loopback() => address.to_string(),
        own => {
            let host = settings.host_name.as_deref().unwrap_or(&settings.node_name);
            let found = look_up(names, host, 0, Instant::now() + OWN_NAME_LIMIT).await;
            let mut outside =
                found.into_iter().map(|address| address.ip()).find(|address| !address.is_loopback());
            if outside.is_none()
                && own.is_some()
                && source.endpoints.iter().any(|endpoint| endpoint.host.needs_dns())
            {
                outside = address_towards(OUTSIDE).await;
            }
            let loopback = own.map_or_else(|| "127.0.0.1".to_owned(), |own| own.to_string());
            if outside.is_none() && settings.max_nodes > 1 {
                tracing::info!(
                    "the address of this node is {loopback}, which only this machine can reach; set another with `local_addr`"
                );
            }
            outside.map_or(loopback, |address| address.to_string())
        }
    }
}

/// The addresses of a name, as far as they are known in time.
async fn look_up(names: &impl Lookup, host: &str, port: u16, deadline: Instant) -> Vec<SocketAddr> {
    match timeout_at(deadline, names.lookup(host, port)).await {
        Ok(Answer::Found(addresses)) => addresses,
        Ok(_) => Vec::new(),
        Err(_) => {
            tracing::warn!(
                "the name was not resolved in time, so this node continues without its addresses: `{host}`"
            );
            Vec::new()
        }
    }
}

/// The source address of packets to a host and port.
async fn way_to(target: &str, names: &impl Lookup, deadline: Instant) -> Option<IpAddr> {
    let (host, port) = target.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    address_towards(look_up(names, host, port.parse().ok()?, deadline).await.into_iter().next()?).await
}

/// The source address of packets to `target`. Nothing is sent.
async fn address_towards(target: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = if target.is_ipv4() { IpAddr::from([0u8; 4]) } else { IpAddr::from([0u8; 16]) };
    let socket = UdpSocket::bind((any, 0)).await.ok()?;
    socket.connect(target).await.ok()?;
    Some(socket.local_addr().ok()?.ip())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use async_trait::async_trait;

    use super::*;
    use crate::settings::{Arguments, Origin};

    /// A resolver that knows only these names.
    struct Names(&'static [(&'static str, [u8; 4])]);

    #[async_trait]
    impl Lookup for Names {
        async fn lookup(&self, host: &str, port: u16) -> Answer {
            match self.0.iter().find(|(name, _)| *name == host) {
                Some((_, address)) => Answer::Found(vec![(*address, port).into()]),
                None => std::future::pending().await,
            }
        }
    }

    async fn address(endpoint: &str, names: Names) -> (String, Duration) {
        let given = [("run_id", "r"), ("nnodes", "2"), ("node_name", "host-1"), ("endpoint", endpoint)];
        let values = given.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let settings =
            Settings::resolve(&Arguments { values, origin: Origin::Argument }, &BTreeMap::new()).unwrap();
        let source = Source::new("a test", vec![endpoint.parse().unwrap()]);
        let began = Instant::now();
        (local_address(&settings, &source, &names).await, began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn silent_resolver_delays_no_node() {
        let (own, took) = address("localhost:2379", Names(&[("localhost", [127, 0, 0, 1])])).await;
        assert_eq!(own, "127.0.0.1");
        assert!(took <= OWN_NAME_LIMIT + Duration::from_millis(10), "{took:?}");
        let (own, took) = address("etcd:2379", Names(&[])).await;
        assert_eq!(own, "127.0.0.1");
        assert!(took <= Duration::from_secs(36), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn on_a_loopback_the_host_is_reached_by_the_address_of_its_name() {
        let names = Names(&[("localhost", [127, 0, 0, 1]), ("host-1", [10, 0, 0, 7])]);
        assert_eq!(address("localhost:2379", names).await.0, "10.0.0.7");
    }

    #[tokio::test(start_paused = true)]
    async fn name_that_is_a_loopback_here_is_reached_by_the_default_route() {
        let names = Names(&[("host-1", [127, 0, 1, 1])]);
        let outside =
            address_towards(OUTSIDE).await.map_or("127.0.0.1".to_owned(), |address| address.to_string());
        assert_eq!(address("host-1:29400", names).await.0, outside);
    }
}
