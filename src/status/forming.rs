//! The verdict on a run that has no world, or whose world is about to be replaced. Pure.

use std::time::Duration;

use super::{
    picture::{Awaited, NodeState, NodeStatus, State, Verdict},
    records::Scene,
    verdict::{FORMING_LIMIT, Judge, quoted},
};
use crate::protocol::{
    decide::{Action, WaitsFor},
    records::{nodes_text, some_names},
};

impl Judge<'_> {
    /// All nodes are gone, and the run was not closed.
    pub(super) fn deserted(&self) -> Verdict {
        let mut verdict =
            Verdict::new(State::Stuck, "no node of the run is left, and the run was not closed");
        verdict.set_awaited(self.in_state(NodeState::Missing));
        verdict.set_next("the records of the run expire with its lease", None, None);
        verdict.command = Some("start the nodes again".to_owned());
        verdict
    }

    pub(super) fn forming(&self, scene: &Scene) -> Verdict {
        let roster = &scene.roster;
        let round = roster.highest_round + 1;
        let since = roster.change_told.or(roster.wanted_since).filter(|_| scene.has_clocks);
        let wake = scene.decision.wake.filter(|_| scene.has_clocks);
        let seekers = roster.seekers(&scene.policy).count();
        let mut verdict = match scene.decision.waits_for {
            Some(WaitsFor::Members) => self.waits_for_members(scene, round, wake),
            Some(WaitsFor::MissingNodes) => self.lacks_nodes(scene, round),
            Some(WaitsFor::MoreNodes) => {
                let here = nodes_text(seekers);
                let mut verdict = Verdict::new(
                    State::Forming,
                    format!("{here} here, and round {round} waits for more nodes"),
                );
                let has_member = roster.seekers(&scene.policy).any(|seeker| seeker.is_member);
                let limit = if has_member { "settle_time" } else { "last_call_timeout" };
                let size = scene.policy.sizes().largest(seekers).unwrap_or(0);
                verdict.set_next(
                    format!("round {round} forms with {}", nodes_text(size as usize)),
                    wake,
                    Some(limit),
                );
                verdict
            }
            Some(WaitsFor::Departures) => {
                let mut verdict = Verdict::new(State::Forming, "nodes are leaving one after the other");
                verdict.set_next(format!("round {round} forms when departures have ended"), wake, None);
                verdict
            }
            Some(WaitsFor::Host) => {
                let host = roster.round.as_ref().and_then(|round| round.host.clone()).unwrap_or_default();
                let mut verdict = Verdict::new(
                    State::Forming,
                    format!("waiting for `{host}`, which hosts the rendezvous service, to return"),
                );
                verdict.waits_for_count = 1;
                verdict.waits_for.push(Awaited {
                    name: host,
                    id: None,
                    rank: None,
                    since: since.map(|since| since.as_secs_f64()),
                    evidence: "its record is gone".to_owned(),
                    last_seen: None,
                });
                verdict.set_next("the other nodes give up", None, Some("host_timeout"));
                verdict.command = Some("start the host again with the same command".to_owned());
                self.stuck_after_limit(&mut verdict, scene);
                verdict
            }
            Some(WaitsFor::Closing) => {
                let mut verdict = Verdict::new(
                    State::Forming,
                    "the world has finished, and its nodes have not closed the run yet",
                );
                verdict.set_awaited(self.in_state(NodeState::Finished));
                verdict.set_next("a finished node closes the run", None, None);
                let run = quoted(&self.observation.run_id);
                verdict.command = Some(format!(
                    "lattice-rdzv close {run} --outcome succeeded --why 'its nodes have finished'"
                ));
                self.stuck_after_limit(&mut verdict, scene);
                verdict
            }
            Some(WaitsFor::Restored) => {
                let mut verdict = Verdict::new(
                    State::Forming,
                    format!(
                        "the service lost its data, and the world is being restored: {}",
                        scene.decision.reason
                    ),
                );
                verdict.set_next("the world runs with the nodes that are back", wake, Some("lease_ttl"));
                verdict
            }
            None => self.due(scene, round, seekers),
        };
        verdict.since = since.map(|since| since.as_secs_f64());
        verdict
    }

    /// The change was announced to members that have not requested the next round.
    fn waits_for_members(&self, scene: &Scene, round: u64, wake: Option<Duration>) -> Verdict {
        let told: Vec<&NodeStatus> = self.in_state(NodeState::Told).collect();
        let names = some_names(told.iter().map(|node| node.name.as_str()));
        let verb = if told.len() == 1 { "has" } else { "have" };
        let mut verdict = Verdict::new(
            State::Forming,
            format!("{names} {verb} not requested round {round} since the change was announced"),
        );
        verdict.set_awaited(told.iter().copied());
        let left = scene.roster.seekers(&scene.policy).count();
        let without = match scene.policy.sizes().largest(left) {
            Some(size) => format!("round {round} forms without {names}, with {}", nodes_text(size as usize)),
            None => format!(
                "{names} {} excluded, and the run waits for {} nodes",
                if told.len() == 1 { "is" } else { "are" },
                scene.policy.sizes().smallest()
            ),
        };
        verdict.set_next(without, wake, Some("rejoin_timeout"));
        if let Some(first) = told.first() {
            let run = quoted(&self.observation.run_id);
            verdict.command = Some(format!("lattice-rdzv drain {run} {}", quoted(&first.name)));
        }
        verdict
    }

    /// Fewer nodes are present than the smallest size needs.
    fn lacks_nodes(&self, scene: &Scene, round: u64) -> Verdict {
        let sizes = scene.policy.sizes();
        let here: Vec<&NodeStatus> = self.in_state(NodeState::Waiting).collect();
        let missing = (sizes.smallest() as usize).saturating_sub(here.len()).max(1);
        let names = some_names(here.iter().map(|node| node.name.as_str()));
        let names = if names.is_empty() { String::new() } else { format!(" ({names})") };
        let mut verdict = Verdict::new(
            State::Forming,
            format!(
                "waiting for {missing} more {}: {} of at least {} here{names}",
                if missing == 1 { "node" } else { "nodes" },
                here.len(),
                sizes.smallest()
            ),
        );
        let lost: Vec<&NodeStatus> = self.in_state(NodeState::Missing).collect();
        verdict.set_awaited(lost.iter().copied());
        // Nodes that have not appeared have no name.
        verdict.waits_for_count = missing;
        verdict.set_next(
            format!(
                "round {round} forms when {} are here; a waiting node gives up at its limit",
                sizes.smallest()
            ),
            None,
            Some("join_timeout"),
        );
        let what = if lost.is_empty() {
            "start the missing nodes".to_owned()
        } else {
            let names = some_names(lost.iter().map(|node| node.name.as_str()));
            format!("start {names} again, or as many other nodes,")
        };
        verdict.command = Some(format!(
            "{what} with the same run id, endpoint and nnodes; on a node that does not appear here, run `lattice-rdzv doctor`"
        ));
        self.stuck_after_limit(&mut verdict, scene);
        verdict
    }

    /// Marks a wait that time does not end as stuck once no node has arrived for [`FORMING_LIMIT`].
    fn stuck_after_limit(&self, verdict: &mut Verdict, scene: &Scene) {
        let Some(clocks) = self.records.current_clocks() else { return };
        let arrival = clocks.last_arrival_ms.map(Duration::from_millis);
        let last = [arrival, scene.roster.wanted_since, scene.roster.change_told].into_iter().flatten().max();
        let Some(last) = last else { return };
        let quiet = scene.now.saturating_sub(last);
        if quiet >= FORMING_LIMIT {
            verdict.state = State::Stuck;
            verdict.notes.push(format!("no node has arrived for more than {} s", FORMING_LIMIT.as_secs()));
        }
    }

    /// The coordinator is about to act.
    pub(super) fn due(&self, scene: &Scene, round: u64, seekers: usize) -> Verdict {
        let sentence = match &scene.decision.action {
            Action::Form(form) => {
                format!("round {round} is about to form with {}", nodes_text(form.members.len()))
            }
            Action::Close => format!("the run is about to be closed: {}", scene.decision.reason),
            Action::Restore { .. } | Action::EndRestoring => {
                format!("the world is being restored: {}", scene.decision.reason)
            }
            _ => format!("{} here; {}", nodes_text(seekers), scene.decision.reason),
        };
        let mut verdict = Verdict::new(State::Forming, sentence);
        if self.records.coordinator.is_some() {
            verdict.set_next(
                format!("coordinator {} is about to do this", self.coordinator_name()),
                Some(scene.now),
                None,
            );
        } else {
            verdict.set_next("a node becomes coordinator within seconds and then does this", None, None);
        }
        verdict
    }
}
