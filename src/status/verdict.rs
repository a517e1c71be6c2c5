//! Answers what a run is doing, which nodes it waits for, and what happens next. A pure function of the records and the
//! time, based on the coordinator's own [`decide`](crate::protocol::decide::decide).
//!
//! A run is *stuck* if nothing will change without outside intervention, or if a stated limit has passed: 60 s without
//! an arrival while nodes are missing, or [`OVERDUE`] after the coordinator should have acted. A run whose rounds end
//! again and again shortly after they form is stuck, too.

use std::time::Duration;

use super::{
    facts::{phase_since, round_status, run_facts},
    nodes,
    picture::{
        Awaited, Next, NodeState, NodeStatus, RoundStatus, RunFacts, RunStatus, SCHEMA, State, Verdict,
        exit_status,
    },
    records::{OVERDUE, Observation, RunRecords, Scene},
};
use crate::{
    protocol::{
        decide::Action,
        identity::NodeId,
        records::{ChangeKind, NAMES, Outcome, RoundRecord, nodes_text, some_names},
    },
    settings::Reaction,
};

/// A run with too few nodes is stuck after this time without an arrival.
pub const FORMING_LIMIT: Duration = Duration::from_secs(60);
/// A service that takes longer than this for a read is named as slow.
const SLOW: f64 = 1.0;
/// This number of rounds in a row that ended because a member requested the next round is a loop.
const LOOP_ROUNDS: usize = 3;
/// Rounds that lasted longer are not a loop: torch's default timeout of 30 minutes, and a margin.
const LOOP_SECONDS: f64 = 35.0 * 60.0;

/// Judges a run. When nodes last renewed their leases is not part of it; see [`suspects`].
pub fn judge(records: &RunRecords, observation: &Observation) -> RunStatus {
    let scene = Scene::of(records, observation.now);
    let nodes = match &scene {
        Some(scene) => nodes::of_scene(scene, records.closed.is_some()),
        None => nodes::without_round(records),
    };
    let resumed = |round| records.resumed.get(&round).copied();
    let rounds: Vec<RoundStatus> =
        records.history.values().map(|record| round_status(record, resumed(record.round))).collect();
    let judge = Judge { records, observation, nodes: &nodes, rounds: &rounds };
    let mut verdict = judge.verdict(scene.as_ref());
    judge.add_notes(scene.as_ref(), &mut verdict);
    let outcome = records.closed.as_ref().map(|closed| closed.outcome);
    verdict.exit_status = exit_status(verdict.state, outcome);
    verdict.waits_for.truncate(NAMES);
    let mut run = run_facts(records, observation);
    run.phase_since = phase_since(records, scene.as_ref());
    let mut counts = std::collections::BTreeMap::new();
    for node in &nodes {
        *counts.entry(node.state).or_insert(0) += 1;
    }
    RunStatus {
        schema: SCHEMA,
        verdict,
        at: observation.now.as_secs_f64(),
        service: observation.service.clone(),
        run,
        counts,
        nodes,
        rounds,
        unreadable: records.unreadable.values().cloned().collect(),
    }
}

/// The status of a run whose service did not respond.
pub fn unreachable(observation: &Observation, why: &str) -> RunStatus {
    let mut verdict =
        Verdict::new(State::Unreachable, format!("the rendezvous service did not respond: {why}"));
    verdict.set_next("nodes that wait for a world give up at their limit", None, Some("join_timeout"));
    verdict.exit_status = exit_status(State::Unreachable, None);
    let no_leader = why.contains("no leader");
    verdict.command =
        Some(if no_leader { "etcdctl endpoint health --cluster" } else { "lattice-rdzv doctor" }.to_owned());
    if no_leader {
        verdict
            .notes
            .push("the etcd cluster has no quorum: more than half of its members must run".to_owned());
    }
    verdict.notes.push(
        "running workers continue; no round can form until the service responds; if a node of the job hosted the service, \
         the job may have ended"
            .to_owned(),
    );
    let mut service = observation.service.clone();
    service.errors.push(why.to_owned());
    let run = RunFacts {
        id: observation.run_id.clone(),
        tenant: observation.tenant.clone(),
        ..RunFacts::default()
    };
    RunStatus {
        schema: SCHEMA,
        verdict,
        at: observation.now.as_secs_f64(),
        service,
        run,
        counts: std::collections::BTreeMap::new(),
        nodes: Vec::new(),
        rounds: Vec::new(),
        unreadable: Vec::new(),
    }
}

impl Verdict {
    pub(super) fn new(state: State, sentence: impl Into<String>) -> Self {
        Self {
            state,
            exit_status: 0,
            sentence: sentence.into(),
            reason: String::new(),
            since: None,
            waits_for: Vec::new(),
            waits_for_count: 0,
            next: None,
            command: None,
            notes: Vec::new(),
        }
    }

    /// Names the nodes that the run waits for.
    pub(super) fn set_awaited<'a>(&mut self, nodes: impl Iterator<Item = &'a NodeStatus>) {
        self.waits_for = nodes.map(awaited).collect();
        self.waits_for_count = self.waits_for.len();
    }

    pub(super) fn set_next(
        &mut self,
        what: impl Into<String>,
        at: Option<Duration>,
        limit: Option<&'static str>,
    ) {
        self.next = Some(Next { what: what.into(), at: at.map(|at| at.as_secs_f64()), limit });
    }
}

/// A run ID or a name as an argument of a shell.
pub(super) fn quoted(word: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_./:@%+=,".contains(letter);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// A run that is judged.
pub(super) struct Judge<'a> {
    pub(super) records: &'a RunRecords,
    pub(super) observation: &'a Observation,
    pub(super) nodes: &'a [NodeStatus],
    rounds: &'a [RoundStatus],
}

impl Judge<'_> {
    pub(super) fn in_state(&self, state: NodeState) -> impl Iterator<Item = &NodeStatus> {
        self.nodes.iter().filter(move |node| node.state == state)
    }

    fn verdict(&self, scene: Option<&Scene>) -> Verdict {
        if let Some(closed) = &self.records.closed {
            let message = closed.message(&self.observation.run_id);
            let mut verdict = Verdict::new(State::Closed, message);
            verdict.reason.clone_from(&closed.why);
            verdict.set_next(
                match closed.outcome {
                    Outcome::Succeeded => {
                        "a node of the same submission ends at once; any other node begins a new job under this run id \
                         after `reuse_delay`, or at once with another submission"
                    }
                    Outcome::Failed | Outcome::Ended => {
                        "a node that starts now begins a new job under this run id: at once if its submission differs, \
                         otherwise after `reuse_delay`"
                    }
                },
                None,
                Some("reuse_delay"),
            );
            return verdict;
        }
        if !self.records.exists() {
            let id = &self.observation.run_id;
            let mut verdict = Verdict::new(State::Absent, format!("there is no run with this id: {id}"));
            verdict.command = Some("lattice-rdzv status --all".to_owned());
            return verdict;
        }
        let Some(scene) = scene else {
            let here = nodes_text(self.records.nodes.len());
            let mut verdict =
                Verdict::new(State::Forming, format!("{here} here, and no coordinator has begun"));
            verdict.set_next("a node becomes coordinator within seconds", None, None);
            return verdict;
        };
        let mut verdict = if scene.roster.nodes.is_empty() {
            self.deserted()
        } else if scene.is_forming() {
            self.forming(scene)
        } else {
            self.running(scene)
        };
        verdict.reason.clone_from(&scene.decision.reason);
        if verdict.state == State::Forming && scene.is_overdue() {
            verdict.state = State::Stuck;
            let name = self.coordinator_name();
            verdict.notes.push(format!(
                "coordinator {name} should have done this more than {} s ago",
                OVERDUE.as_secs()
            ));
            if self.records.coordinator.is_some() {
                verdict.command =
                    Some(format!("end the process of {name}; another node becomes coordinator"));
            }
        }
        verdict
    }

    pub(super) fn coordinator_name(&self) -> &str {
        self.records.coordinator.as_ref().map_or("(none)", |(record, _)| record.name.as_str())
    }

    fn running(&self, scene: &Scene) -> Verdict {
        let roster = &scene.roster;
        let Some(round) = &roster.round else { return Verdict::new(State::Forming, "no round yet") };
        let number = round.round;
        match &scene.decision.action {
            Action::AnnounceChange(change) => {
                let why = &change.why;
                let mut verdict = self.due(scene, number, 0);
                verdict.sentence = format!("round {number} is about to end: {why}");
                verdict.set_awaited(self.in_state(NodeState::Missing));
                return verdict;
            }
            Action::Renew => {
                let mut verdict = self.due(scene, number, 0);
                verdict.sentence = format!("round {number} runs, and {}", scene.decision.reason);
                verdict.set_awaited(self.in_state(NodeState::Missing));
                return verdict;
            }
            _ => {}
        }
        let missing: Vec<&NodeStatus> = self.in_state(NodeState::Missing).collect();
        let names = some_names(missing.iter().map(|one| one.name.as_str()));
        if !missing.is_empty() && scene.policy.on_member_loss == Reaction::Restart {
            let confirm = roster.absences.values().map(|absence| absence.confirm_at).min();
            let verb = if missing.len() == 1 { "is" } else { "are" };
            let mut verdict =
                Verdict::new(State::Forming, format!("round {number} runs, and {names} {verb} missing"));
            verdict.set_awaited(missing.iter().copied());
            verdict.since = missing.iter().filter_map(|one| one.since).reduce(f64::min);
            let at = confirm.filter(|_| scene.has_clocks);
            verdict.set_next(format!("round {number} ends unless {names} returns"), at, Some("lease_ttl"));
            return verdict;
        }
        let present = roster.world.keys().filter(|id| roster.nodes.contains_key(id)).count();
        let mut verdict = Verdict::new(
            State::Formed,
            format!("round {number} runs with {} of at most {}", nodes_text(present), round.max),
        );
        if !missing.is_empty() {
            verdict.notes.push(format!("the world runs without {names} (on_member_loss=ignore)"));
        }
        self.add_growth(scene, round, &mut verdict);
        self.check_loop(round, &mut verdict);
        verdict
    }

    /// When the world grows, if it will.
    fn add_growth(&self, scene: &Scene, round: &RoundRecord, verdict: &mut Verdict) {
        let waiting: Vec<&NodeStatus> =
            self.in_state(NodeState::Waiting).filter(|node| node.rank.is_none()).collect();
        if waiting.is_empty() {
            if self.in_state(NodeState::Spare).next().is_some() {
                verdict.set_next(
                    "a spare takes the place of the first member that leaves or is lost",
                    None,
                    None,
                );
            }
            return;
        }
        let names = some_names(waiting.iter().map(|node| node.name.as_str()));
        let due = scene.roster.newcomers_since.map(|since| since + scene.policy.grow_delay);
        verdict.set_next(
            format!("round {} ends, and the next one includes {names}", round.round),
            due.filter(|_| scene.has_clocks),
            Some("grow_delay"),
        );
    }

    /// Whether the last rounds each ended soon because a member requested the next one, and this round is as young as
    /// they were. This means that the nodes rendezvous, but their workers cannot reach each other.
    #[expect(clippy::cast_precision_loss, reason = "seconds since 1970 are far below 2^52")]
    fn check_loop(&self, round: &RoundRecord, verdict: &mut Verdict) {
        let recent: Vec<&RoundStatus> = self.rounds.iter().rev().take(LOOP_ROUNDS + 1).collect();
        let lifetimes: Option<Vec<f64>> = recent
            .windows(2)
            .map(|pair| {
                let [later, earlier] = pair else { return None };
                let ended = later.formed_at? as f64 - later.took_seconds;
                let lasted = (ended - earlier.formed_at? as f64).max(0.0);
                (later.cause == Some(ChangeKind::Seeking) && lasted < LOOP_SECONDS).then_some(lasted)
            })
            .collect();
        let Some(lifetimes) = lifetimes.filter(|lifetimes| lifetimes.len() == LOOP_ROUNDS) else { return };
        let longest = lifetimes.iter().copied().fold(0.0, f64::max);
        let formed = recent.first().and_then(|round| round.formed_at);
        let age = formed.map(|formed| self.observation.now.as_secs_f64() - formed as f64);
        if age.is_none_or(|age| age > 2.0 * longest + 30.0) {
            return;
        }
        let number = round.round;
        verdict.state = State::Stuck;
        verdict.sentence = format!(
            "round {number} runs, but the last {LOOP_ROUNDS} rounds each ended within {longest:.0} s because a member \
             requested the next one"
        );
        verdict.set_next(format!("round {number} probably ends in the same way"), None, None);
        let (host, port) = (&round.master_address, round.master_port);
        verdict.notes.push(format!(
            "the nodes reach the rendezvous service; check that their workers start and that each node reaches the \
             others, first {host}:{port} (rank 0): NetworkPolicy, firewall, interface"
        ));
        verdict.command =
            Some("read the workers' logs of the member that asked first, named in the round's reason".into());
    }

    fn add_notes(&self, scene: Option<&Scene>, verdict: &mut Verdict) {
        if self.records.closed.is_some() {
            let waiting = self.in_state(NodeState::Excluded).count();
            if waiting > 0 {
                verdict
                    .notes
                    .push(format!("not in the last round of the closed job: {}", nodes_text(waiting)));
            }
            return;
        }
        for (state, what) in [(NodeState::Spare, "waits as a spare"), (NodeState::Excluded, "is not counted")]
        {
            self.note_group(state, what, verdict);
        }
        if scene.is_some() && self.records.coordinator.is_none() && !self.records.nodes.is_empty() {
            verdict
                .notes
                .push("there is no coordinator at present; a node takes over within seconds".to_owned());
        }
        if scene.is_some_and(|scene| !scene.has_clocks) && verdict.state == State::Forming {
            verdict
                .notes
                .push("the coordinator has not written its times yet, so times are not known".to_owned());
        }
        for turned in self.records.clocks.iter().flat_map(|clocks| &clocks.turned_away) {
            let ago = self.observation.now.saturating_sub(Duration::from_millis(turned.at_ms)).as_secs();
            verdict.notes.push(format!("{} was rejected {ago} s ago: {}", turned.name, turned.why));
        }
        if let Some(latency) = self.observation.service.latency_seconds.filter(|latency| *latency >= SLOW) {
            let endpoint = &self.observation.service.endpoint;
            verdict
                .notes
                .push(format!("the service at {endpoint} is slow: a read of the run took {latency:.1} s"));
        }
        for error in &self.observation.service.errors {
            verdict.notes.push(format!("the service reports: {error}"));
        }
    }

    /// Names the nodes of a state by their reason: equal reasons are one note.
    fn note_group(&self, state: NodeState, what: &str, verdict: &mut Verdict) {
        let mut groups: std::collections::BTreeMap<&str, Vec<&str>> = std::collections::BTreeMap::new();
        for node in self.in_state(state) {
            groups.entry(node.why.as_deref().unwrap_or("")).or_default().push(&node.name);
        }
        for (why, names) in groups {
            let verb = if names.len() == 1 {
                what.to_owned()
            } else {
                what.replace("waits", "wait").replace("is ", "are ")
            };
            verdict.notes.push(format!("{} {verb}: {why}", some_names(names)));
        }
    }
}

fn awaited(node: &NodeStatus) -> Awaited {
    Awaited {
        name: node.name.clone(),
        id: Some(node.id.clone()),
        rank: node.rank,
        since: node.since,
        evidence: node.why.clone().unwrap_or_default(),
        last_seen: None,
    }
}

/// The nodes whose last sign of life a reader should read: those that the run waits for, and the coordinator.
pub fn suspects(status: &RunStatus) -> Vec<NodeId> {
    let told =
        status.nodes.iter().filter(|node| node.state == NodeState::Told).take(NAMES).map(|node| &node.id);
    let coordinator = status.run.coordinator.as_ref().map(|coordinator| &coordinator.id);
    told.chain(coordinator).filter_map(|id| NodeId::try_from(id.clone()).ok()).collect()
}
