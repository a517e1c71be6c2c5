//! The key of each record of a run. Tenant and run ID are percent-encoded, so no ID reaches the keys of another run.
//! Round numbers are padded with zeros, so keys sort as rounds do.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::identity::NodeId;
use crate::backend::Keys;

/// The characters that are not encoded: the unreserved characters of RFC 3986 except `.`, so that no part can be `.` or
/// `..`.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'~');

/// The keys of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunKeys {
    prefix: String,
}

impl RunKeys {
    /// The prefix of the keys of all runs of all tenants.
    pub const ALL: &str = "/lattice/rdzv/";

    /// The keys of `run_id` of `tenant`.
    pub fn new(tenant: &str, run_id: &str) -> Self {
        let tenant = utf8_percent_encode(tenant, ENCODED);
        let run_id = utf8_percent_encode(run_id, ENCODED);
        Self { prefix: format!("/lattice/rdzv/{tenant}/{run_id}/") }
    }

    /// A mark of the run, by which a service that one of its nodes hosts can be recognized. It is the same in every
    /// release.
    pub fn mark(&self) -> String {
        // FNV-1a: its constants are those of its authors.
        let hash = self.prefix.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        });
        format!("{hash:016x}")
    }

    /// The prefix of the keys of the run.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The prefix of coordinator, round, and closing, which every node watches.
    pub fn control(&self) -> Keys {
        Keys::prefix(format!("{}ctl/", self.prefix))
    }

    /// The record of the coordinator.
    pub fn coordinator(&self) -> String {
        format!("{}ctl/coordinator", self.prefix)
    }

    /// The round that the run is in.
    pub fn round(&self) -> String {
        format!("{}ctl/round", self.prefix)
    }

    /// The record of the closing of the run.
    pub fn closed(&self) -> String {
        format!("{}ctl/closed", self.prefix)
    }

    /// The description of the nodes that wait for a round, which the coordinator writes. It is not below `ctl/`, which
    /// every node watches.
    pub fn waiting(&self) -> String {
        format!("{}waiting", self.prefix)
    }

    /// The times of the coordinator's clock, for readers that do not join.
    pub fn clocks(&self) -> String {
        format!("{}clocks", self.prefix)
    }

    /// The request that a node leaves. Below `ctl/`, so that a node needs no further watch.
    pub fn drain(&self, id: NodeId) -> String {
        format!("{}ctl/drain/{id}", self.prefix)
    }

    /// The prefix of the keys of all runs of a tenant.
    pub fn runs(tenant: &str) -> String {
        format!("/lattice/rdzv/{}/", utf8_percent_encode(tenant, ENCODED))
    }

    /// The record of the closing of an earlier life.
    pub fn closed_life(&self, life: &str) -> String {
        format!("{}closed/{life}", self.prefix)
    }

    /// The prefix of the closings of earlier lives.
    pub fn closed_lives(&self) -> String {
        format!("{}closed/", self.prefix)
    }

    /// A node's record.
    pub fn node(&self, id: NodeId) -> String {
        format!("{}nodes/{id}", self.prefix)
    }

    /// The prefix of the records of all nodes.
    pub fn nodes(&self) -> String {
        format!("{}nodes/", self.prefix)
    }

    /// The node that a key under [`RunKeys::nodes`] or [`RunKeys::finished`] belongs to.
    pub fn node_of(key: &[u8]) -> Option<NodeId> {
        let text = std::str::from_utf8(key).ok()?;
        NodeId::try_from(text.rsplit('/').next()?.to_owned()).ok()
    }

    /// The mark of a node that has entered its exit barrier.
    pub fn finished_node(&self, life: &str, round: u64, id: NodeId) -> String {
        format!("{}{id}", self.finished(life, round))
    }

    /// The prefix of the finished nodes of a round.
    pub fn finished(&self, life: &str, round: u64) -> String {
        format!("{}{round:010}/", self.finished_life(life))
    }

    /// The prefix of the finished nodes of a life.
    pub fn finished_life(&self, life: &str) -> String {
        format!("{}{life}/", self.all_finished())
    }

    /// The prefix of the finished nodes of all rounds.
    pub fn all_finished(&self) -> String {
        format!("{}finished/", self.prefix)
    }

    /// The evidence that a member of a round is dead.
    pub fn lost_node(&self, life: &str, round: u64, id: NodeId) -> String {
        format!("{}{id}", self.lost(life, round))
    }

    /// The prefix of the evidence about the members of a round.
    pub fn lost(&self, life: &str, round: u64) -> String {
        format!("{}{life}/{round:010}/", self.all_lost())
    }

    /// The suspicion that a member of a round is dead.
    pub fn suspect(&self, life: &str, round: u64, id: NodeId) -> String {
        format!("{}{id}", self.suspects(life, round))
    }

    /// The prefix of the suspicions about the members of a round.
    pub fn suspects(&self, life: &str, round: u64) -> String {
        format!("{}{life}/{round:010}/", self.all_suspects())
    }

    /// The prefix of all suspicions.
    pub fn all_suspects(&self) -> String {
        format!("{}suspects/", self.prefix)
    }

    /// The prefix of all evidence about dead members.
    pub fn all_lost(&self) -> String {
        format!("{}lost/", self.prefix)
    }

    /// One shard of a plan.
    pub fn plan_shard(&self, life: &str, round: u64, attempt: &str, shard: u32) -> String {
        format!("{}{shard:06}", self.plan(life, round, attempt))
    }

    /// The prefix of the shards of a plan.
    pub fn plan(&self, life: &str, round: u64, attempt: &str) -> String {
        format!("{}{attempt}/", self.plan_round(life, round))
    }

    /// The prefix of the plans of a round.
    pub fn plan_round(&self, life: &str, round: u64) -> String {
        format!("{}plan/{life}/{round:010}/", self.prefix)
    }

    /// Why and how a round formed.
    pub fn history_round(&self, life: &str, round: u64) -> String {
        format!("{}{round:010}", self.history(life))
    }

    /// The prefix of the history of a life.
    pub fn history(&self, life: &str) -> String {
        format!("{}{life}/", self.all_history())
    }

    /// The prefix of the history of all lives.
    pub fn all_history(&self) -> String {
        format!("{}history/", self.prefix)
    }

    /// The report that the program trains in a round.
    pub fn resumed_round(&self, life: &str, round: u64) -> String {
        format!("{}{round:010}", self.resumed(life))
    }

    /// The prefix of these reports of a life.
    pub fn resumed(&self, life: &str) -> String {
        format!("{}{life}/", self.all_resumed())
    }

    /// The prefix of these reports of all lives.
    pub fn all_resumed(&self) -> String {
        format!("{}resumed/", self.prefix)
    }

    /// The prefix of the store of a round.
    pub fn round_store(&self, life: &str, round: u64) -> String {
        format!("{}kv/{life}/{round:010}/", self.prefix)
    }

    /// The prefix of the run-wide store.
    pub fn run_store(&self, life: &str) -> String {
        format!("{}kv/{life}/run/", self.prefix)
    }

    /// The prefix of all stores of a life.
    pub fn stores(&self, life: &str) -> String {
        format!("{}kv/{life}/", self.prefix)
    }

    /// The prefix of the slots of all nodes.
    pub fn all_operations(&self) -> String {
        format!("{}ops/", self.prefix)
    }

    /// The slot of a node, which shows the last write that was made with it.
    pub fn operation(&self, id: NodeId, slot: u32) -> String {
        format!("{}{slot:06}", self.operations(id))
    }

    /// The prefix of the slots of a node.
    pub fn operations(&self, id: NodeId) -> String {
        format!("{}ops/{id}/", self.prefix)
    }

    /// The first key after the slots of all nodes.
    pub fn after_operations(&self) -> String {
        format!("{}ops0", self.prefix)
    }

    /// The first key after a node's slots.
    pub fn after_operations_of(&self, id: NodeId) -> Vec<u8> {
        format!("{}ops/{id}0", self.prefix).into_bytes()
    }

    /// The node that a slot, a key under [`RunKeys::all_operations`], belongs to.
    pub fn owner_of_operation(&self, key: &[u8]) -> Option<NodeId> {
        let own = key.strip_prefix(self.all_operations().as_bytes())?;
        NodeId::try_from(std::str::from_utf8(own).ok()?.split('/').next()?.to_owned()).ok()
    }

    /// The stores of a life's rounds before `round`.
    pub fn stores_before_round(&self, life: &str, round: u64) -> Keys {
        self.before_round("kv", life, round)
    }

    /// The plans of a life's rounds before `round`, the evidence of their losses, the suspicions, and the history and
    /// the reports of training older than the last hundred rounds.
    pub fn records_before_round(&self, life: &str, round: u64) -> Vec<Keys> {
        let mut keys: Vec<Keys> =
            ["plan", "lost", "suspects"].map(|part| self.before_round(part, life, round)).into();
        if let Some(oldest) = round.checked_sub(HISTORY_ROUNDS) {
            keys.extend(["history", "resumed"].map(|part| self.before_round(part, life, oldest)));
        }
        keys
    }

    fn before_round(&self, part: &str, life: &str, round: u64) -> Keys {
        let start = format!("{}{part}/{life}/", self.prefix);
        Keys::Span(format!("{start}{:010}", 0).into(), format!("{start}{round:010}").into())
    }
}

/// How many rounds of history a run keeps.
const HISTORY_ROUNDS: u64 = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_run_id_reaches_the_keys_of_another() {
        let plain = RunKeys::new("default", "a");
        for id in ["a/", "a/ctl", "../a", ".", "..", "a\n", "ä", "%61", "a b"] {
            let other = RunKeys::new("default", id);
            assert!(!other.prefix().starts_with(plain.prefix()), "{id}");
            assert_eq!(other.prefix().matches('/').count(), 5, "{id}");
        }
        assert_ne!(RunKeys::new("a/b", "c").prefix(), RunKeys::new("a", "b/c").prefix());
    }

    #[test]
    fn slots_name_their_node_and_lie_between_the_ends_of_all_slots() {
        let keys = RunKeys::new("default", "a");
        let (id, next) = (NodeId::from_random(6), NodeId::from_random(8));
        let slot = keys.operation(id, 7);
        assert_eq!(keys.owner_of_operation(slot.as_bytes()), Some(id));
        assert_eq!(keys.owner_of_operation(keys.node(id).as_bytes()), None);
        assert!(keys.all_operations() < slot && slot < keys.after_operations());
        let after = String::from_utf8(keys.after_operations_of(id)).unwrap();
        assert!(slot < after && after < keys.operation(next, 0));
    }

    #[test]
    fn what_lies_before_a_round_is_neither_the_round_nor_the_run_wide_store() {
        let keys = RunKeys::new("default", "a");
        let within = |key: &str| {
            let records = keys.records_before_round("life", 12);
            records.into_iter().chain([keys.stores_before_round("life", 12)]).any(|span| match span {
                Keys::Span(from, to) => from.as_slice() <= key.as_bytes() && key.as_bytes() < to.as_slice(),
                Keys::One(_) | Keys::Prefix(_) => false,
            })
        };
        assert!(within(&format!("{}x", keys.round_store("life", 11))));
        assert!(within(&keys.plan_shard("life", 2, "attempt", 0)));
        assert!(within(&keys.lost_node("life", 11, NodeId::from_random(2))));
        assert!(within(&keys.suspect("life", 11, NodeId::from_random(2))));
        assert!(!within(&keys.suspect("life", 12, NodeId::from_random(2))));
        assert!(!within(&keys.lost_node("life", 12, NodeId::from_random(2))));
        assert!(!within(&format!("{}x", keys.round_store("life", 12))));
        assert!(!within(&format!("{}x", keys.run_store("life"))));
        assert!(!within(&keys.plan_shard("life", 12, "attempt", 0)));
        assert!(!within(&keys.history_round("life", 3)));
        assert!(!within(&keys.resumed_round("life", 3)));
    }
}
