//! How long the coordinator computes for one decision about a run of N nodes, without a service. Prints; asserts nothing.
//! `cargo bench --bench decide -- N...` measures each of these sizes.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a measurement that cannot be made ends, and it is for a person"
)]

mod machine;

use std::time::{Duration, Instant};

use lattice_rdzv::{
    protocol::{
        decide::{Action, Form, decide},
        identity::NodeId,
        neighbors::neighbors,
        plan::shards,
        policy::Policy,
        records::{NodeRecord, Phase, Record as _, RoundRecord},
        roster::{Moment, Roster},
        sizing::Sizing,
    },
    settings::Reaction,
};

const NODES: [u32; 3] = [1_000, 10_000, 100_000];
const TTL: Duration = Duration::from_secs(10);

fn main() {
    let named: Vec<u32> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let all = if named.is_empty() { NODES.to_vec() } else { named };
    println!("{}", machine::describe());
    println!(
        "{:>8} {:>12} {:>12} {:>12} {:>12} {:>12}",
        "nodes", "first world", "its plan", "nothing new", "a loss", "next world"
    );
    for nodes in all {
        measure(nodes);
    }
}

fn policy(nodes: u32) -> Policy {
    let (return_window, trusted_silence) = Policy::lease_times(TTL);
    Policy {
        min_nodes: 1,
        max_nodes: nodes,
        sizing: Sizing::default(),
        settle_time: Duration::ZERO,
        last_call_timeout: Duration::from_secs(30),
        rejoin_timeout: Duration::from_secs(90),
        grow_delay: Duration::from_secs(30),
        return_window,
        lease_ttl: TTL,
        trusted_silence,
        on_member_loss: Reaction::Restart,
        on_newcomer: Reaction::Restart,
    }
}

fn record(number: u32, policy: &Policy) -> NodeRecord {
    NodeRecord {
        name: format!("node-{number}"),
        address: format!("10.{}.{}.{}", number >> 16, (number >> 8) & 255, number & 255),
        port: 29500,
        topology: Some(format!("rack-{}", number / 32)),
        index: Some(number),
        min: policy.min_nodes,
        max: policy.max_nodes,
        sizing: Sizing::default(),
        seeks: 1,
        world: None,
        leaving: false,
        hosts: false,
        submission: None,
        lifeline: Some(40_000),
        false_alarms: 0,
    }
}

/// Takes the time of a decision, and returns both.
fn decided(roster: &mut Roster, now: Moment, policy: &Policy) -> (Action, Duration) {
    let began = Instant::now();
    roster.observe(now, policy);
    let action = decide(roster, now, policy).action;
    (action, began.elapsed())
}

fn formed(action: Action) -> Form {
    match action {
        Action::Form(form) => form,
        other => panic!("no world: {other:?}"),
    }
}

fn round(number: u64, policy: &Policy) -> RoundRecord {
    RoundRecord {
        round: number,
        world: format!("w{number}"),
        size: policy.max_nodes,
        phase: Phase::Running,
        ..RoundRecord::forming("l".into(), policy.min_nodes, policy.max_nodes, "a".into())
    }
}

fn measure(nodes: u32) {
    let (policy, mut now) = (policy(nodes), Moment::from_secs(100));
    let mut roster = Roster { acknowledged: now, ..Roster::default() };
    let blank = RoundRecord::forming("l".into(), policy.min_nodes, policy.max_nodes, "a".into());
    roster.set_round(now, blank, Vec::new());
    let ids: Vec<NodeId> = (0..nodes)
        .map(|number| NodeId::from_random(u64::from(number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
        .collect();
    for (number, id) in (0..nodes).zip(&ids) {
        roster.put_node(*id, record(number, &policy), i64::from(number));
    }
    let (action, first) = decided(&mut roster, now, &policy);
    let form = formed(action);

    let began = Instant::now();
    let watched = neighbors(&form.members, |id| roster.nodes.get(&id).map(|node| &node.record));
    let bytes: usize = shards(&form.members, &watched).iter().map(|shard| shard.encode().len()).sum();
    let plan = began.elapsed();

    roster.set_round(now, round(1, &policy), form.members);
    roster.committed = true;
    let (_, idle) = decided(&mut roster, now, &policy);

    roster.remove_node(now, ids[7], &policy);
    let (action, loss) = decided(&mut roster, now, &policy);
    let Action::AnnounceChange(change) = action else { panic!("no change: {action:?}") };
    let world = roster.world.values().cloned().collect();
    roster.set_round(now, RoundRecord { change: Some(change), ..round(1, &policy) }, world);
    for (number, id) in (0..nodes).zip(&ids) {
        if number != 7 {
            roster.put_node(*id, NodeRecord { seeks: 2, ..record(number, &policy) }, i64::from(number));
        }
    }
    now += Duration::from_secs(1);
    roster.acknowledged = now;
    let (action, next) = decided(&mut roster, now, &policy);
    formed(action);
    let text = |time: Duration| format!("{:.2} ms", time.as_secs_f64() * 1000.0);
    println!(
        "{nodes:>8} {:>12} {:>12} {:>12} {:>12} {:>12}   the plan has {bytes} bytes",
        text(first),
        text(plan),
        text(idle),
        text(loss),
        text(next)
    );
}
