//! Opens the lifelines of a node, at the port of its settings.

use std::{fmt, io, net::TcpListener, ops::RangeInclusive};

use super::{Lifelines, TcpLifelines, listener, probe};
use crate::settings::Settings;

/// Why a node has no lifelines.
#[derive(Debug)]
pub enum Absence {
    /// Its settings turn them off.
    TurnedOff,
    /// The kernel does not report by which message a connection was refused.
    OldKernel,
    /// Its port could not be bound.
    NoPort(io::Error),
}

impl fmt::Display for Absence {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TurnedOff => formatter.write_str("they are turned off (`lifelines`)"),
            Self::OldKernel => formatter.write_str(
                "this kernel does not distinguish a refused connection from one that a firewall rejects, as Linux 5.9 and \
                 newer do",
            ),
            Self::NoPort(error) => write!(
                formatter,
                "no port could be bound for them ({error}); set `lifeline_port` to a free port, or `lifelines=off`"
            ),
        }
    }
}

/// The lifelines that the settings of a node require. `None`, after one line in the log, if it has none. Must be called
/// in a runtime, after the port of the workers' store was bound, because that comes first in `port_range`.
pub fn open(settings: &Settings) -> Option<Box<dyn Lifelines>> {
    let opened = bind(settings).and_then(|listener| TcpLifelines::on(listener).map_err(Absence::NoPort));
    match opened {
        Ok(lifelines) => Some(Box::new(lifelines)),
        Err(Absence::TurnedOff) => None,
        Err(absence) => {
            tracing::warn!(
                "no lifelines, so the death of this node is reported when its lease ends: {absence}"
            );
            None
        }
    }
}

/// Why a node with these settings would have no lifelines on this machine. `None` if it would have them.
pub fn absence(settings: &Settings) -> Option<Absence> {
    bind(settings).err()
}

fn bind(settings: &Settings) -> Result<TcpListener, Absence> {
    if !settings.lifelines {
        return Err(Absence::TurnedOff);
    }
    if !probe::is_supported() {
        return Err(Absence::OldKernel);
    }
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for port in ports(settings) {
        match listener::bind(port) {
            Ok(listener) => return Ok(listener),
            Err(error) => failure = error,
        }
    }
    Err(Absence::NoPort(failure))
}

/// The ports to try. The last port of a range comes first: the ports of the workers' stores are taken from its start.
fn ports(settings: &Settings) -> Vec<u16> {
    match (settings.lifeline_port, settings.port_range) {
        (Some(port), _) => vec![port],
        (None, Some((first, last))) => RangeInclusive::new(first, last).rev().collect(),
        (None, None) => vec![0],
    }
}
