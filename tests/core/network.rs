//! The whole stack on a simulated network: real nodes, coordinators, and stores, the etcd backend with its real client,
//! HTTP/2, and the real server. Everything runs in one thread on paused time, as a function of a seed. The faults are
//! those of machines and networks: partitions in both directions or one, connections of which only one end remains,
//! slow and lossy connections, a service that crashes, loses its data, is restarted or paused, or ends with the node
//! that hosts it, deaths, and departures.
//!
//! `LATTICE_SIMULATION_SEED=n` runs one seed and prints its trace and every log line; `LATTICE_SIMULATION_SCHEDULES=n`
//! sets how many run.

use crate::support::{
    cluster::Cluster,
    hosted::Hosted,
    runs::{check, check_repeats},
    schedule::Weather,
};

#[test]
fn every_invariant_holds() {
    check::<Cluster>(150, Weather::Stormy);
}

#[test]
fn while_no_node_dies_no_world_changes_whatever_happens_to_the_service() {
    check::<Cluster>(30, Weather::ServiceOnly);
}

#[test]
fn if_a_node_hosts_the_service_its_loss_is_announced_and_the_run_continues_with_the_next_host() {
    check::<Hosted>(60, Weather::Stormy);
}

#[test]
fn one_seed_one_trace() {
    check_repeats::<Cluster>(0..5);
    check_repeats::<Hosted>(0..5);
}
