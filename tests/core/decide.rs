//! Properties of `decide` that hold whatever happened before, tested with random rosters, where every decision is
//! carried out.

use std::{collections::BTreeSet, time::Duration};

use lattice_rdzv::{
    protocol::{
        decide::{Action, Form, decide},
        identity::NodeId,
        policy::Policy,
        records::{NodeRecord, Phase, RefusalRecord, RoundRecord},
        roster::{Moment, Roster},
        sizing::Sizing,
    },
    settings::Reaction,
};
use proptest::prelude::*;

/// An event of a run. A number selects one of the present nodes.
#[derive(Clone, Copy, Debug)]
enum Step {
    Arrives(Option<u8>),
    Seeks(usize),
    IsAboutToLeave(usize),
    Goes(usize),
    Finishes(usize),
    IsRenewed,
    Waits(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => prop_oneof![4 => Just(None), 3 => Just(Some(1)), 1 => Just(Some(2))].prop_map(Step::Arrives),
        5 => any::<usize>().prop_map(Step::Seeks),
        1 => any::<usize>().prop_map(Step::IsAboutToLeave),
        2 => any::<usize>().prop_map(Step::Goes),
        1 => any::<usize>().prop_map(Step::Finishes),
        3 => Just(Step::IsRenewed),
        5 => (1_u64..40_000).prop_map(Step::Waits),
    ];
    proptest::collection::vec(step, 1..120)
}

struct Run {
    roster: Roster,
    policy: Policy,
    now: Moment,
    arrived: u64,
    formed: u64,
}

impl Run {
    fn new(min: u32, max: u32, sizing: Sizing, on_member_loss: Reaction, on_newcomer: Reaction) -> Self {
        let (return_window, trusted_silence) = Policy::lease_times(Duration::from_secs(10));
        let policy = Policy {
            min_nodes: min,
            max_nodes: max,
            sizing,
            settle_time: Duration::from_millis(500),
            last_call_timeout: Duration::from_secs(30),
            rejoin_timeout: Duration::from_secs(90),
            grow_delay: Duration::from_secs(30),
            return_window,
            lease_ttl: Duration::from_secs(10),
            trusted_silence,
            on_member_loss,
            on_newcomer,
        };
        Self { roster: Roster::default(), policy, now: Moment::ZERO, arrived: 0, formed: 0 }
    }

    fn one(&self, pick: usize) -> Option<NodeId> {
        let count = self.roster.nodes.len();
        (count > 0).then(|| *self.roster.nodes.keys().nth(pick % count).unwrap())
    }

    fn says(&mut self, id: NodeId, change: impl FnOnce(&mut NodeRecord)) {
        let mut node = self.roster.nodes[&id].clone();
        change(&mut node.record);
        self.roster.put_node(id, node.record, node.created);
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Arrives(submission) => {
                self.arrived += 1;
                let record = NodeRecord {
                    name: format!("n{}", self.arrived % 5),
                    address: "h".into(),
                    port: 1,
                    topology: None,
                    // Indices repeat and are missing, and their order is not that of arrival.
                    index: (!self.arrived.is_multiple_of(3))
                        .then(|| u32::try_from(7 - self.arrived % 7).unwrap()),
                    min: self.policy.min_nodes,
                    max: self.policy.max_nodes,
                    sizing: self.policy.sizing.clone(),
                    seeks: 0,
                    world: None,
                    leaving: false,
                    hosts: false,
                    submission: submission.map(|number| number.to_string()),
                    lifeline: None,
                    false_alarms: 0,
                };
                // Ids are random: their order is not that of arrival.
                let id = NodeId::from_random(self.arrived.wrapping_mul(0x9e37_79b9_7f4a_7c15));
                self.roster.put_node(id, record, i64::try_from(self.arrived).unwrap());
            }
            Step::Seeks(pick) => {
                let next = self.roster.round.as_ref().map_or(0, |round| round.round) + 1;
                if let Some(id) = self.one(pick) {
                    self.says(id, |record| record.seeks = next);
                }
            }
            Step::IsAboutToLeave(pick) => {
                if let Some(id) = self.one(pick) {
                    self.says(id, |record| record.leaving = true);
                }
            }
            Step::Goes(pick) => {
                if let Some(id) = self.one(pick) {
                    self.roster.remove_node(self.now, id, &self.policy.clone());
                }
            }
            Step::Finishes(pick) => {
                if let Some(id) = self.one(pick).filter(|id| self.roster.world.contains_key(id)) {
                    self.roster.put_finished(id);
                }
            }
            Step::IsRenewed => self.roster.acknowledged = self.now,
            Step::Waits(milliseconds) => self.now += Duration::from_millis(milliseconds),
        }
    }

    /// Carries out decisions until there are no more. Returns whether every world was valid.
    fn decide(&mut self) -> Result<bool, TestCaseError> {
        for _ in 0..10 {
            self.roster.observe(self.now, &self.policy.clone());
            let round = self.roster.round.clone();
            match decide(&self.roster, self.now, &self.policy).action {
                Action::Wait => return Ok(true),
                Action::Renew => self.roster.acknowledged = self.now,
                Action::Close => return Ok(false),
                Action::BeginLife => {
                    prop_assert!(round.is_none());
                    let round = RoundRecord::forming(
                        "l".into(),
                        self.policy.min_nodes,
                        self.policy.max_nodes,
                        "a".into(),
                    );
                    self.roster.set_round(self.now, round, Vec::new());
                }
                Action::AnnounceChange(change) => {
                    let round = round.unwrap();
                    prop_assert!(round.has_world() && round.change.is_none(), "announced twice");
                    let world = self.roster.world.values().cloned().collect();
                    self.roster.set_round(self.now, RoundRecord { change: Some(change), ..round }, world);
                }
                Action::KeepFailures(failures) => {
                    let world = self.roster.world.values().cloned().collect();
                    let round = RoundRecord { failures, ..round.unwrap() };
                    self.roster.set_round(self.now, round, world);
                }
                Action::Refuse(refusal) => {
                    self.check_refusal(&refusal)?;
                    let world = self.roster.world.values().cloned().collect();
                    let round = RoundRecord { refused: Some(refusal), ..round.unwrap() };
                    self.roster.set_round(self.now, round, world);
                }
                Action::Form(form) => {
                    self.check(&round.unwrap(), &form)?;
                    self.formed += 1;
                    let blank = RoundRecord::forming(
                        "l".into(),
                        self.policy.min_nodes,
                        self.policy.max_nodes,
                        "a".into(),
                    );
                    let round = RoundRecord {
                        round: form.round,
                        world: format!("w{}", form.round),
                        size: u32::try_from(form.members.len()).unwrap(),
                        phase: Phase::Running,
                        submission: form.submission,
                        failures: form.failures,
                        ..blank
                    };
                    self.roster.set_round(self.now, round, form.members);
                    self.roster.committed = true;
                }
                action @ (Action::Restore { .. } | Action::EndRestoring) => {
                    prop_assert!(false, "nothing was lost, and yet: {action:?}");
                }
            }
        }
        prop_assert!(false, "it decides on and on");
        Ok(true)
    }

    fn check_refusal(&self, refusal: &RefusalRecord) -> Result<(), TestCaseError> {
        let refused = |id: &NodeId| {
            let node = &self.roster.nodes[id];
            refusal.refuses(node.record.submission.as_deref(), node.created)
        };
        prop_assert!(self.roster.nodes.keys().any(refused), "no node is refused");
        prop_assert!(!self.roster.world.keys().any(|id| self.roster.nodes.contains_key(id) && refused(id)));
        let stays =
            |record: &NodeRecord| !record.leaving && record.submission.as_ref() == Some(&refusal.submission);
        prop_assert!(self.roster.nodes.values().any(|node| stays(&node.record)), "the run has no owner");
        Ok(())
    }

    fn check(&self, round: &RoundRecord, form: &Form) -> Result<(), TestCaseError> {
        let (roster, policy) = (&self.roster, &self.policy);
        let size = u32::try_from(form.members.len()).unwrap();
        prop_assert!(policy.min_nodes <= size && size <= policy.max_nodes, "a world of {}", size);
        prop_assert_eq!(policy.sizes().largest(size as usize), Some(size), "a size that is not allowed");
        let seekers = roster.seekers(policy).count();
        if form.failures.is_empty() && round.failures.is_empty() {
            prop_assert_eq!(policy.sizes().largest(seekers), Some(size), "of {} nodes", seekers);
        }
        prop_assert!(form.members.iter().map(|entry| entry.rank).eq(0..size), "ranks: {:?}", form.members);
        let ids: BTreeSet<NodeId> = form.members.iter().map(|entry| entry.id).collect();
        prop_assert_eq!(ids.len(), form.members.len(), "a node twice");
        prop_assert!(form.round > round.round);
        prop_assert!(!round.has_world() || round.change.is_some(), "no change was announced");
        let index = |id: &NodeId| roster.nodes.get(id).and_then(|node| node.record.index);
        if !round.has_world() {
            let lowest = ids.iter().filter_map(index).min();
            prop_assert_eq!(form.members.first().and_then(|entry| index(&entry.id)), lowest, "rank 0");
        }
        for id in &ids {
            let node = roster.nodes.get(id);
            prop_assert!(node.is_some_and(|node| !node.record.leaving), "{} is not here to stay", id);
            prop_assert!(!roster.finished.contains(id), "{} has finished", id);
        }
        let submissions: BTreeSet<_> =
            ids.iter().filter_map(|id| roster.nodes[id].record.submission.as_ref()).collect();
        prop_assert!(submissions.len() <= 1, "a world of the submissions {:?}", submissions);
        prop_assert!(submissions.first().is_none_or(|one| form.submission.as_ref() == Some(one)));
        let deadline = roster.change_told.unwrap_or_default() + policy.rejoin_time(round.size);
        for id in roster.world.keys().filter(|id| !roster.finished.contains(id)) {
            let Some(node) = roster.nodes.get(id).filter(|node| !node.record.leaving) else { continue };
            let seeks = node.record.seeks > round.round;
            prop_assert!(seeks || self.now >= deadline, "{} was not waited for", id);
            if policy.sizes().is_restricted() {
                prop_assert!(!ids.contains(id) || seeks, "{} does not seek", id);
                let new = form.members.iter().any(|entry| !roster.world.contains_key(&entry.id));
                prop_assert!(ids.contains(id) || !seeks || !new, "a new node has the place of {}", id);
            } else {
                prop_assert_eq!(ids.contains(id), seeks, "{} seeks: {}", id, seeks);
            }
        }
        Ok(())
    }
}

/// One of four kinds of rules for a run of these numbers of nodes.
fn sizing_of(kind: u32, min: u32, max: u32) -> Sizing {
    match kind {
        1 => Sizing { sizes: vec![min, max], ..Sizing::default() },
        2 => Sizing { node_unit: Some(max), ..Sizing::default() },
        3 => Sizing { wanted: Some(min), ..Sizing::default() },
        _ => Sizing::default(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn no_world_is_formed_that_must_not_be(
        steps in steps(), min in 1_u32..4, more in 0_u32..4, loss in any::<bool>(), newcomer in any::<bool>(),
        sizing in 0_u32..4,
    ) {
        let reaction = |ignored| if ignored { Reaction::Ignore } else { Reaction::Restart };
        let mut run = Run::new(min, min + more, sizing_of(sizing, min, min + more), reaction(loss), reaction(newcomer));
        for step in steps {
            run.step(step);
            if !run.decide()? {
                return Ok(());
            }
        }
    }
}

/// Ensures that the properties are tested: ordinary runs form world after world.
#[test]
fn ordinary_runs_form_world_after_world() {
    let mut run = Run::new(2, 3, Sizing::default(), Reaction::Restart, Reaction::Restart);
    for turn in 0..20 {
        if turn < 3 {
            run.step(Step::Arrives(Some(1)));
        }
        for step in [Step::Seeks(0), Step::Seeks(1), Step::Seeks(2), Step::Waits(40_000)] {
            run.step(step);
            assert!(run.decide().unwrap());
        }
    }
    assert!(run.formed > 10, "{}", run.formed);
}
