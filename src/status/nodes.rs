//! The state of each node, and the nodes that the run waits for. Pure.

use std::collections::BTreeMap;

use super::{
    picture::{NodeState, NodeStatus},
    records::{RunRecords, Scene, SeenNode},
};
use crate::{
    protocol::{
        cooldown::{Cooling, cooling},
        identity::NodeId,
        roster::{Present, Seen},
    },
    settings::Reaction,
};

/// The nodes of a run that has no round: all of them wait.
pub(super) fn without_round(records: &RunRecords) -> Vec<NodeStatus> {
    let state = |leaving| if leaving { NodeState::Leaving } else { NodeState::Waiting };
    let node = |(id, node): (&NodeId, &SeenNode)| {
        let record = &node.record;
        NodeStatus {
            name: record.name.clone(),
            id: id.to_string(),
            rank: None,
            state: state(record.leaving),
            why: None,
            since: None,
            address: record.address.clone(),
            port: record.port,
            topology: record.topology.clone(),
            index: record.index,
            last_seen: None,
            false_alarms: record.false_alarms,
        }
    };
    let mut nodes: Vec<NodeStatus> = records.nodes.iter().map(node).collect();
    sort(&mut nodes);
    nodes
}

/// All nodes of a run: those that are present, and the members that are missing.
pub(super) fn of_scene(scene: &Scene, closed: bool) -> Vec<NodeStatus> {
    let roster = &scene.roster;
    let states = States::new(scene);
    let mut nodes = Vec::with_capacity(roster.nodes.len());
    for (id, node) in &roster.nodes {
        let (state, why) = if closed { closed_state(scene, *id, node) } else { states.of(*id, node) };
        let record = &node.record;
        let since = (state == NodeState::Told).then_some(roster.change_told).flatten();
        nodes.push(NodeStatus {
            name: roster.name(*id).to_owned(),
            id: id.to_string(),
            rank: roster.world.get(id).map(|entry| entry.rank),
            state,
            why,
            since: since.filter(|_| scene.has_clocks).map(|since| since.as_secs_f64()),
            address: record.address.clone(),
            port: record.port,
            topology: record.topology.clone(),
            index: record.index,
            last_seen: None,
            false_alarms: record.false_alarms,
        });
    }
    if !closed {
        nodes.extend(missing(scene));
    }
    sort(&mut nodes);
    nodes
}

fn missing(scene: &Scene) -> impl Iterator<Item = NodeStatus> {
    let roster = &scene.roster;
    let absent =
        roster.world.iter().filter(|(id, _)| !roster.nodes.contains_key(id) && !roster.finished.contains(id));
    absent.map(|(id, entry)| {
        let absence = roster.absences.get(id);
        NodeStatus {
            name: entry.name.clone(),
            id: id.to_string(),
            rank: Some(entry.rank),
            state: NodeState::Missing,
            why: Some(evidence(scene, *id)),
            since: absence.filter(|_| scene.has_clocks).map(|absence| absence.since.as_secs_f64()),
            address: String::new(),
            port: 0,
            topology: entry.label.clone(),
            index: None,
            last_seen: None,
            false_alarms: 0,
        }
    })
}

/// How the run knows that a member is gone.
fn evidence(scene: &Scene, id: NodeId) -> String {
    let roster = &scene.roster;
    if let Some(evidence) = roster.lost.get(&id) {
        return evidence.evidence();
    }
    if roster.absences.get(&id).is_some_and(|absence| absence.announced) {
        return "it announced that it leaves, and left".to_owned();
    }
    let ttl = scene.policy.lease_ttl;
    if ttl.is_zero() {
        "its lease ended".to_owned()
    } else {
        format!("no renewal for {} s", ttl.as_secs_f64())
    }
}

fn sort(nodes: &mut [NodeStatus]) {
    nodes.sort_by(|one, other| {
        let key = |node: &NodeStatus| (node.rank.is_none(), node.rank);
        key(one).cmp(&key(other)).then_with(|| natural(&one.name).cmp(&natural(&other.name)))
    });
}

/// A name cut into texts and numbers, so that `n9` comes before `n10`.
fn natural(name: &str) -> Vec<(String, u64)> {
    let mut parts: Vec<(String, String)> = Vec::new();
    let mut in_number = true;
    for letter in name.chars() {
        let digit = letter.is_ascii_digit();
        if !digit && in_number {
            parts.push((String::new(), String::new()));
        }
        in_number = digit;
        if parts.is_empty() {
            parts.push((String::new(), String::new()));
        }
        if let Some((text, number)) = parts.last_mut() {
            if digit { number.push(letter) } else { text.push(letter) }
        }
    }
    parts.into_iter().map(|(text, number)| (text, number.parse().unwrap_or(0))).collect()
}

/// The state of a node after the run was closed: nothing is awaited any more.
fn closed_state(scene: &Scene, id: NodeId, node: &Present) -> (NodeState, Option<String>) {
    let state = if node.record.leaving {
        NodeState::Leaving
    } else if scene.roster.finished.contains(&id) {
        NodeState::Finished
    } else if scene.roster.world.contains_key(&id) {
        NodeState::Member
    } else {
        NodeState::Excluded
    };
    (state, (state == NodeState::Excluded).then(|| "not in the last round".to_owned()))
}

/// Computes what the states of all nodes depend on once.
struct States<'a> {
    scene: &'a Scene,
    cooling: BTreeMap<NodeId, Cooling>,
    seekers: std::collections::BTreeSet<NodeId>,
    no_place: Option<String>,
}

impl<'a> States<'a> {
    fn new(scene: &'a Scene) -> Self {
        let cooling = cooling(&scene.roster, &scene.policy, scene.now);
        let is_new = |seen: &Seen<'_>| !seen.is_member && !cooling.contains_key(&seen.id);
        let seekers: Vec<Seen<'_>> = scene.roster.seekers(&scene.policy).collect();
        let newcomers = seekers.iter().filter(|seen| is_new(seen)).count();
        let seekers = seekers.iter().map(|seen| seen.id).collect();
        Self { scene, cooling, no_place: no_place(scene, newcomers), seekers }
    }

    fn of(&self, id: NodeId, node: &Present) -> (NodeState, Option<String>) {
        let roster = &self.scene.roster;
        let changes = roster.round.as_ref().is_some_and(|round| round.change.is_some());
        let record = &node.record;
        if roster.finished.contains(&id) {
            return (NodeState::Finished, None);
        }
        if record.leaving {
            return (NodeState::Leaving, None);
        }
        if roster.world.contains_key(&id) {
            return match (self.seekers.contains(&id), changes) {
                (true, _) => (NodeState::Waiting, None),
                (false, true) => (
                    NodeState::Told,
                    Some("it has not requested the next round since the change was announced".into()),
                ),
                (false, false) => (NodeState::Member, None),
            };
        }
        if let Some(why) = self.exclusion(id, node) {
            return (NodeState::Excluded, Some(why));
        }
        if let Some(cooling) = self.cooling.get(&id) {
            let left = cooling.until.saturating_sub(self.scene.now).as_secs();
            return (NodeState::Waiting, Some(format!("{}; {left} s remain", cooling.failure.message())));
        }
        match &self.no_place {
            Some(why) => (NodeState::Spare, Some(why.clone())),
            None => (NodeState::Waiting, None),
        }
    }

    fn exclusion(&self, id: NodeId, node: &Present) -> Option<String> {
        let (roster, record) = (&self.scene.roster, &node.record);
        if record.sizes() != self.scene.policy.sizes() {
            return Some(format!(
                "it has nnodes {}, and the run has {}",
                record.sizes(),
                self.scene.policy.sizes()
            ));
        }
        if !roster.world.contains_key(&id) && roster.is_of_other_submission(record) {
            let (own, owner) = (record.submission.as_deref(), roster.owner.as_deref());
            return Some(format!(
                "it is of submission `{}`, and the run belongs to `{}`",
                own.unwrap_or_default(),
                owner.unwrap_or_default()
            ));
        }
        if !roster.is_of_this_life(node) {
            return Some("it belongs to an earlier job under this run id".to_owned());
        }
        (!self.seekers.contains(&id))
            .then(|| "it was excluded from the round, and joins again under another id".to_owned())
    }
}

/// Why a running world takes no new nodes. None if it takes these, or if the next world is being formed.
fn no_place(scene: &Scene, newcomers: usize) -> Option<String> {
    let (roster, policy) = (&scene.roster, &scene.policy);
    let round = roster.round.as_ref().filter(|round| round.has_world() && round.change.is_none())?;
    if round.size >= round.max {
        return Some(format!("{} (max_nodes)", taken(round.max)));
    }
    if policy.on_newcomer == Reaction::Ignore {
        return Some(
            "the run takes new nodes only when a round forms for another reason (on_newcomer=ignore)".into(),
        );
    }
    if roster.is_finishing() {
        return Some("nodes of the run have finished".to_owned());
    }
    if roster.larger_size(newcomers, scene.now, policy).is_none() {
        let here = round.size as usize + newcomers;
        let sizes = policy.sizes().describe(here);
        return Some(sizes.unwrap_or_else(|| taken(round.size)));
    }
    None
}

fn taken(places: u32) -> String {
    if places == 1 { "the only place is taken".to_owned() } else { format!("all {places} places are taken") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_numbers_sort_by_the_numbers() {
        let mut names = vec!["n10", "n9", "a", "n2-10", "n2-9", "7", "10"];
        names.sort_by_key(|name| natural(name));
        assert_eq!(names, ["7", "10", "a", "n2-9", "n2-10", "n9", "n10"]);
    }
}
