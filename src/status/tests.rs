//! Verdicts on runs, as tables. Time 0 is `START` seconds since 1970.

use std::time::Duration;

use super::{
    picture::{NodeState, RunStatus, State},
    records::{Observation, RunRecords, SeenNode},
    verdict::judge,
};
use crate::{
    protocol::{
        clocks::{AbsenceRecord, ClocksRecord, TurnedAway, Waits},
        identity::NodeId,
        records::{
            ChangeKind, ChangeRecord, ClosedRecord, CoordinatorRecord, HistoryRecord, LostRecord, NodeRecord,
            Outcome, Phase, PlanEntry, Record, RoundRecord,
        },
        sizing::Sizing,
    },
    settings::Reaction,
};

pub(super) const START: u64 = 1_800_000_000;

pub(super) fn id(number: u64) -> NodeId {
    NodeId::from_random(number << 1)
}

fn ms(seconds: u64) -> u64 {
    (START + seconds) * 1000
}

pub(super) fn at(seconds: u64) -> f64 {
    Duration::from_secs(START + seconds).as_secs_f64()
}

fn node(number: u64, seeks: u64) -> SeenNode {
    let text = format!(
        r#"{{"version":1,"name":"n{number}","address":"10.0.0.{number}","port":1,"min":2,"max":3,"seeks":{seeks},"leaving":false}}"#
    );
    let record = NodeRecord::decode("nodes/1", text.as_bytes()).unwrap();
    SeenNode { record, created: i64::try_from(number).unwrap(), lease: 7 }
}

fn clocks() -> ClocksRecord {
    ClocksRecord {
        life: "l".into(),
        round: 0,
        world: String::new(),
        waits: Waits {
            settle_ms: 500,
            last_call_ms: 30_000,
            rejoin_ms: 90_000,
            grow_ms: 30_000,
            return_ms: 13_500,
            silence_ms: 5_000,
            ttl_ms: 10_000,
            on_member_loss: Reaction::Restart,
            on_newcomer: Reaction::Restart,
        },
        last_arrival_ms: Some(ms(0)),
        wanted_ms: Some(ms(0)),
        enough_ms: None,
        newcomers_ms: None,
        contested_ms: None,
        change_ms: None,
        restoring_until_ms: None,
        absences: Vec::new(),
        failed: Vec::new(),
        turned_away: Vec::new(),
    }
}

/// A run of 2 to 3 nodes whose first nodes are present and in no world yet.
pub(super) fn forming(present: u64) -> RunRecords {
    RunRecords {
        round: Some(RoundRecord::forming("l".into(), 2, 3, "a".into())),
        clocks: Some(clocks()),
        coordinator: Some((
            CoordinatorRecord {
                node: id(1),
                name: "n1".into(),
                nonce: "o".into(),
                min: 2,
                max: 3,
                sizing: Sizing::default(),
            },
            7,
        )),
        nodes: (1..=present).map(|number| (id(number), node(number, 0))).collect(),
        ..RunRecords::default()
    }
}

/// A run of 2 to 3 nodes whose round 1 has these nodes.
pub(super) fn running(size: u32) -> RunRecords {
    let mut records = forming(u64::from(size));
    let round = records.round.as_mut().unwrap();
    (round.round, round.size, round.world, round.phase) = (1, size, "w".into(), Phase::Running);
    round.master_address = "10.0.0.1".into();
    records.world = (0..size)
        .map(|rank| PlanEntry {
            id: id(u64::from(rank) + 1),
            name: format!("n{}", rank + 1),
            label: None,
            rank,
        })
        .collect();
    records.clocks = Some(ClocksRecord {
        round: 1,
        world: "w".into(),
        wanted_ms: None,
        last_arrival_ms: None,
        ..clocks()
    });
    records
}

pub(super) fn changing(size: u32, kind: ChangeKind) -> RunRecords {
    let mut records = running(size);
    let change = ChangeRecord { kind, why: "n1 requested the next round".into(), names: vec!["n1".into()] };
    records.round.as_mut().unwrap().change = Some(change);
    let clocks = records.clocks.as_mut().unwrap();
    (clocks.change_ms, clocks.wanted_ms) = (Some(ms(0)), Some(ms(0)));
    records
}

pub(super) fn judged(records: &RunRecords, seconds: u64) -> RunStatus {
    let now = Duration::from_secs(START + seconds);
    judge(
        records,
        &Observation { run_id: "job".into(), tenant: "default".into(), now, ..Observation::default() },
    )
}

fn states(status: &RunStatus) -> Vec<(&str, NodeState)> {
    status.nodes.iter().map(|node| (node.name.as_str(), node.state)).collect()
}

#[test]
fn run_without_enough_nodes_is_forming_and_after_a_minute_without_arrival_stuck() {
    let mut records = forming(1);
    for (seconds, state, exit) in [(0, State::Forming, 3), (59, State::Forming, 3), (60, State::Stuck, 4)] {
        let verdict = judged(&records, seconds).verdict;
        assert_eq!((verdict.state, verdict.exit_status), (state, exit), "after {seconds} s");
        assert_eq!(verdict.sentence, "waiting for 1 more node: 1 of at least 2 here (n1)");
        assert_eq!((verdict.since, verdict.waits_for_count), (Some(at(0)), 1));
        assert_eq!(verdict.next.unwrap().at, None);
    }
    records.clocks.as_mut().unwrap().last_arrival_ms = Some(ms(50));
    assert_eq!(judged(&records, 109).verdict.state, State::Forming, "an arrival begins the time anew");
    assert_eq!(judged(&records, 110).verdict.state, State::Stuck);
}

#[test]
fn turned_away_node_is_named_with_its_settings() {
    let mut records = forming(1);
    let turned =
        TurnedAway { name: "n9".into(), why: "nnodes 2:8, but the run has 2:3".into(), at_ms: ms(3) };
    records.clocks.as_mut().unwrap().turned_away.push(turned);
    let verdict = judged(&records, 90).verdict;
    assert_eq!(verdict.state, State::Stuck);
    let note = "n9 was rejected 87 s ago: nnodes 2:8, but the run has 2:3";
    assert!(verdict.notes.iter().any(|one| one == note), "{:?}", verdict.notes);
}

#[test]
fn last_call_names_the_time_at_which_the_round_starts() {
    let mut records = forming(2);
    records.clocks.as_mut().unwrap().enough_ms = Some(ms(5));
    let verdict = judged(&records, 10).verdict;
    let next = verdict.next.unwrap();
    assert_eq!((next.at, next.limit), (Some(at(35)), Some("last_call_timeout")));
    assert_eq!(next.what, "round 1 forms with 2 nodes");
    // The coordinator does not do it: that is stuck, not forming.
    let verdict = judged(&records, 36).verdict;
    assert_eq!(
        (verdict.state, verdict.next.unwrap().what.as_str()),
        (State::Forming, "coordinator n1 is about to do this")
    );
    let verdict = judged(&records, 46).verdict;
    assert_eq!(verdict.state, State::Stuck, "{verdict:?}");
    assert!(
        verdict.notes.iter().any(|note| note.starts_with("coordinator n1 should have done this")),
        "{verdict:?}"
    );
    assert_eq!(verdict.command.as_deref(), Some("end the process of n1; another node becomes coordinator"));
}

#[test]
fn unknown_times_are_not_invented() {
    let records = RunRecords { clocks: None, ..forming(1) };
    let verdict = judged(&records, 1_000).verdict;
    assert_eq!((verdict.state, verdict.since), (State::Forming, None));
    assert!(verdict.notes.iter().any(|note| note.contains("times are not known")), "{verdict:?}");
}

#[test]
fn running_world_is_formed_and_its_spare_is_named_with_the_reason() {
    let mut records = running(3);
    assert_eq!(judged(&records, 5).verdict.exit_status, 0);
    records.nodes.insert(id(4), node(4, 0));
    let status = judged(&records, 5);
    assert_eq!(status.verdict.sentence, "round 1 runs with 3 nodes of at most 3");
    assert_eq!(states(&status).last(), Some(&("n4", NodeState::Spare)));
    let note = "n4 waits as a spare: all 3 places are taken (max_nodes)";
    assert_eq!(status.verdict.notes, [note]);
    assert!(status.verdict.next.unwrap().what.starts_with("a spare takes the place"));
    // A run that takes no new nodes.
    let mut records = running(2);
    records.nodes.insert(id(4), node(4, 0));
    records.clocks.as_mut().unwrap().waits.on_newcomer = Reaction::Ignore;
    let status = judged(&records, 5);
    assert_eq!(states(&status).last(), Some(&("n4", NodeState::Spare)));
    assert!(status.verdict.notes[0].contains("on_newcomer=ignore"), "{:?}", status.verdict);
}

#[test]
fn new_node_that_will_be_admitted_has_a_time() {
    let mut records = running(2);
    records.round.as_mut().unwrap().max = 4;
    records.nodes.insert(id(4), node(4, 0));
    for seen in records.nodes.values_mut() {
        seen.record.max = 4;
    }
    records.clocks.as_mut().unwrap().newcomers_ms = Some(ms(10));
    let status = judged(&records, 15);
    assert_eq!((status.verdict.state, states(&status)[2].1), (State::Formed, NodeState::Waiting));
    let next = status.verdict.next.unwrap();
    assert_eq!((next.at, next.limit), (Some(at(40)), Some("grow_delay")));
    let verdict = judged(&records, 41).verdict;
    assert_eq!(
        (verdict.state, verdict.sentence.as_str()),
        (State::Forming, "round 1 is about to end: n4 wants to join")
    );
}

#[test]
fn missing_member_is_named_with_time_and_evidence() {
    let mut records = running(3);
    records.nodes.remove(&id(2));
    let absence = AbsenceRecord { id: id(2), since_ms: ms(20), confirm_ms: ms(33), announced: false };
    records.clocks.as_mut().unwrap().absences.push(absence);
    let status = judged(&records, 25);
    let verdict = &status.verdict;
    assert_eq!(
        (verdict.state, verdict.sentence.as_str()),
        (State::Forming, "round 1 runs, and n2 is missing")
    );
    let awaited = &verdict.waits_for[0];
    assert_eq!((awaited.name.as_str(), awaited.rank, awaited.since), ("n2", Some(1), Some(at(20))));
    assert_eq!(awaited.evidence, "no renewal for 10 s");
    assert_eq!((verdict.since, verdict.waits_for_count), (Some(at(20)), 1));
    assert_eq!(verdict.next.as_ref().unwrap().at, Some(at(33)));
    assert_eq!(status.nodes[1].state, NodeState::Missing);
    let about_to_end = judged(&records, 34).verdict;
    assert_eq!(about_to_end.sentence, "round 1 is about to end: lost n2: no renewal for 10 s");
    assert_eq!(about_to_end.waits_for_count, 1);
    // Evidence of another node replaces the end of the lease.
    let lost = LostRecord {
        name: "n2".into(),
        by: "n3".into(),
        why: "refused at 10.0.0.2:40112".into(),
        lease: 0,
        after_ms: None,
    };
    records.lost.insert(id(2), lost);
    let verdict = judged(&records, 21).verdict;
    assert_eq!(verdict.waits_for[0].evidence, "refused at 10.0.0.2:40112 (seen by n3)");
}

#[test]
fn member_that_has_not_asked_is_named_with_the_time_at_which_it_is_excluded() {
    let mut records = changing(3, ChangeKind::Seeking);
    for number in [1, 2] {
        records.nodes.insert(id(number), node(number, 2));
    }
    let status = judged(&records, 41);
    let verdict = &status.verdict;
    assert_eq!(verdict.state, State::Forming);
    assert_eq!(verdict.sentence, "n3 has not requested round 2 since the change was announced");
    assert_eq!((verdict.since, verdict.waits_for[0].since), (Some(at(0)), Some(at(0))));
    let next = verdict.next.as_ref().unwrap();
    assert_eq!(
        (next.what.as_str(), next.limit),
        ("round 2 forms without n3, with 2 nodes", Some("rejoin_timeout"))
    );
    assert_eq!(next.at.map(f64::round), Some(at(90)));
    assert_eq!(verdict.command.as_deref(), Some("lattice-rdzv drain job n3"));
    let expected = [("n1", NodeState::Waiting), ("n2", NodeState::Waiting), ("n3", NodeState::Told)];
    assert_eq!(states(&status), expected);
}

#[test]
fn loss_below_the_minimum_names_the_lost_member() {
    let mut records = changing(2, ChangeKind::Lost);
    records.nodes.insert(id(1), node(1, 2));
    records.nodes.remove(&id(2));
    let absence = AbsenceRecord { id: id(2), since_ms: ms(0), confirm_ms: ms(0), announced: false };
    records.clocks.as_mut().unwrap().absences.push(absence);
    let verdict = judged(&records, 70).verdict;
    assert_eq!((verdict.state, verdict.waits_for[0].name.as_str()), (State::Stuck, "n2"));
    assert_eq!(verdict.sentence, "waiting for 1 more node: 1 of at least 2 here (n1)");
    assert!(
        verdict.command.unwrap().starts_with("start n2 again, or as many other nodes, with the same run id")
    );
}

#[test]
fn run_that_all_nodes_have_left_is_stuck_and_a_missing_run_is_absent() {
    let mut records = running(2);
    records.nodes.clear();
    records.coordinator = None;
    assert_eq!(judged(&records, 5).verdict.state, State::Stuck);
    let status = judged(&RunRecords::default(), 5);
    assert_eq!((status.verdict.state, status.verdict.exit_status), (State::Absent, 5));
}

#[test]
fn closed_run_has_the_exit_status_of_its_outcome() {
    for (outcome, exit) in [(Outcome::Succeeded, 6), (Outcome::Failed, 7), (Outcome::Ended, 7)] {
        let closed =
            ClosedRecord { life: "l".into(), by: "n1".into(), why: "done".into(), outcome, submission: None };
        let status = judged(&RunRecords { closed: Some(closed), ..running(2) }, 5);
        assert_eq!((status.verdict.state, status.verdict.exit_status), (State::Closed, exit));
        assert!(status.verdict.next.unwrap().limit == Some("reuse_delay"));
    }
}

#[test]
fn rounds_that_end_again_and_again_are_a_loop_until_one_lasts() {
    let mut records = running(2);
    let history = |round: u64, cause| HistoryRecord {
        round,
        why: "n2 requested the next round".into(),
        took_seconds: 1.0,
        size: 2,
        newcomers: 0,
        coordinator: "n1".into(),
        names: vec!["n1".into(), "n2".into()],
        formed_at: Some(START + round * 20),
        change: Some(ChangeRecord { kind: cause, why: String::new(), names: Vec::new() }),
        lost: Vec::new(),
    };
    for round in 1..=4 {
        records.history.insert(round, history(round, ChangeKind::Seeking));
    }
    let round = records.round.as_mut().unwrap();
    round.round = 4;
    records.clocks.as_mut().unwrap().round = 4;
    let status = judged(&records, 85);
    assert_eq!(status.verdict.state, State::Stuck, "{:?}", status.verdict);
    assert!(status.verdict.notes[0].contains("10.0.0.1:"), "{:?}", status.verdict);
    assert_eq!(
        judged(&records, 80 + 69).verdict.state,
        State::Formed,
        "it has lasted longer than twice the others"
    );
    records.history.insert(3, history(3, ChangeKind::Newcomers));
    assert_eq!(judged(&records, 85).verdict.state, State::Formed, "nodes that join are no loop");
}
