//! Assigns the ranks of the next world. Pure and deterministic. Members keep their ranks first. Then a new node that
//! has the name of a node that is gone takes its rank. Then topology decides which node gets a free rank. New nodes are
//! ordered by their index, if they have one, and otherwise by arrival.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
};

use super::{identity::NodeId, records::PlanEntry};
use crate::backend::Revision;

/// A node that waits for the round and was not in the last world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Newcomer<'a> {
    /// The node.
    pub id: NodeId,
    /// The name that it gives itself.
    pub name: &'a str,
    /// Its topology label.
    pub label: Option<&'a str>,
    /// Its index among the nodes of the job.
    pub index: Option<u32>,
    /// When it arrived: the create revision of its record.
    pub arrived: Revision,
}

impl Newcomer<'_> {
    /// New nodes with an index get the lower ranks, in the order of their indices. Nodes with equal indices and nodes
    /// without an index keep the order of arrival.
    fn order(&self) -> (bool, Option<u32>, Revision, NodeId) {
        (self.index.is_none(), self.index, self.arrived, self.id)
    }

    fn entry(&self, name: String, rank: u32) -> PlanEntry {
        PlanEntry { id: self.id, name, label: self.label.map(str::to_owned), rank }
    }
}

/// The next world, by rank: the members of the `last` world that are `seeking`, then new nodes, at most `max_nodes`
/// together. Arrival decides which new nodes get a place, and their indices decide their ranks. The time is
/// proportional to the number of nodes, except for sorting.
pub fn rank<'a>(
    last: impl IntoIterator<Item = &'a PlanEntry>,
    seeking: &BTreeSet<NodeId>,
    mut newcomers: Vec<Newcomer<'a>>,
    max_nodes: u32,
) -> Vec<PlanEntry> {
    let (members, mut gone): (Vec<&PlanEntry>, Vec<&PlanEntry>) =
        last.into_iter().partition(|entry| seeking.contains(&entry.id));
    let mut names = Names::of(&members);
    gone.sort_by_key(|entry| entry.rank);
    newcomers.sort_by_key(|newcomer| (newcomer.arrived, newcomer.id));
    newcomers.truncate((max_nodes as usize).saturating_sub(members.len()));
    newcomers.sort_by_key(Newcomer::order);

    let mut places = vec![None; members.len() + newcomers.len()];
    let displaced = keep(&mut places, members);
    let unplaced = inherit(&mut places, &mut names, &gone, newcomers);
    fill(&mut places, &mut names, &gone, displaced, unplaced);
    places.into_iter().flatten().collect()
}

/// Gives each member the rank that it had. Returns, by rank, the members whose ranks are too high now.
fn keep<'a>(places: &mut [Option<PlanEntry>], members: Vec<&'a PlanEntry>) -> Vec<&'a PlanEntry> {
    let mut displaced = Vec::new();
    for member in members {
        match places.get_mut(member.rank as usize) {
            Some(place) if place.is_none() => *place = Some(member.clone()),
            _ => displaced.push(member),
        }
    }
    displaced.sort_by_key(|entry| entry.rank);
    displaced
}

/// Gives new nodes the ranks of nodes of their names that are gone. Returns the other new nodes.
fn inherit<'a>(
    places: &mut [Option<PlanEntry>],
    names: &mut Names<'a>,
    gone: &[&'a PlanEntry],
    newcomers: Vec<Newcomer<'a>>,
) -> Vec<Newcomer<'a>> {
    let mut heirs: BTreeMap<&str, VecDeque<&PlanEntry>> = BTreeMap::new();
    for entry in gone {
        heirs.entry(base_name(&entry.name)).or_default().push_back(entry);
    }
    let mut unplaced = Vec::new();
    for newcomer in newcomers {
        let former = heirs.get_mut(base_name(newcomer.name)).and_then(VecDeque::pop_front);
        let place = former.and_then(|former| Some((former, places.get_mut(former.rank as usize)?)));
        match place {
            Some((former, place @ None)) => {
                let name = names.take(&former.name);
                *place = Some(newcomer.entry(name, former.rank));
            }
            _ => unplaced.push(newcomer),
        }
    }
    unplaced
}

/// Fills the free ranks: with a new node of the label of the node that had the rank, else with a displaced member of
/// that label, else with the displaced member of the highest rank, else with the first new node.
fn fill<'a>(
    places: &mut [Option<PlanEntry>],
    names: &mut Names<'a>,
    gone: &[&PlanEntry],
    displaced: Vec<&PlanEntry>,
    unplaced: Vec<Newcomer<'a>>,
) {
    let former_label: BTreeMap<u32, &str> =
        gone.iter().filter_map(|entry| Some((entry.rank, entry.label.as_deref()?))).collect();
    // The displaced member of the highest rank comes first.
    let mut displaced = Queue::of(displaced.into_iter().rev(), |entry| entry.label.as_deref());
    let mut unplaced = Queue::of(side_by_side(unplaced).into_iter(), |newcomer| newcomer.label);
    for (rank, place) in (0u32..).zip(places).filter(|(_, place)| place.is_none()) {
        let label = former_label.get(&rank).copied();
        let alike = label.and_then(|label| unplaced.take_with_label(label));
        let newcomer = match alike {
            Some(newcomer) => Some(newcomer),
            None => {
                match label.and_then(|label| displaced.take_with_label(label)).or_else(|| displaced.take()) {
                    Some(member) => {
                        *place = Some(PlanEntry { rank, ..member.clone() });
                        None
                    }
                    None => unplaced.take(),
                }
            }
        };
        if let Some(newcomer) = newcomer {
            *place = Some(newcomer.entry(names.take(base_name(newcomer.name)), rank));
        }
    }
}

/// Nodes in order. The first is taken, either of all nodes or of those with a given label.
struct Queue<'a, T> {
    nodes: Vec<Option<T>>,
    first: usize,
    by_label: HashMap<&'a str, VecDeque<usize>>,
}

impl<'a, T> Queue<'a, T> {
    fn of(nodes: impl Iterator<Item = T>, label: impl Fn(&T) -> Option<&'a str>) -> Self {
        let nodes: Vec<Option<T>> = nodes.map(Some).collect();
        let mut by_label: HashMap<&str, VecDeque<usize>> = HashMap::new();
        for (index, node) in nodes.iter().flatten().enumerate() {
            if let Some(label) = label(node) {
                by_label.entry(label).or_default().push_back(index);
            }
        }
        Self { nodes, first: 0, by_label }
    }

    fn take(&mut self) -> Option<T> {
        loop {
            let node = self.nodes.get_mut(self.first)?.take();
            self.first += 1;
            if node.is_some() {
                return node;
            }
        }
    }

    fn take_with_label(&mut self, label: &str) -> Option<T> {
        let indexes = self.by_label.get_mut(label)?;
        loop {
            // `take` may have taken it before.
            let node = self.nodes.get_mut(indexes.pop_front()?)?.take();
            if node.is_some() {
                return node;
            }
        }
    }
}

/// The name without the number that distinguishes nodes of equal names.
pub fn base_name(name: &str) -> &str {
    match name.rsplit_once('#') {
        Some((base, number)) if !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()) => {
            base
        }
        _ => name,
    }
}

/// The names that are taken.
struct Names<'a> {
    taken: HashSet<Cow<'a, str>>,
    /// The number to try next for a name whose lower numbers are all taken.
    next: HashMap<&'a str, u64>,
}

impl<'a> Names<'a> {
    fn of(entries: &[&'a PlanEntry]) -> Self {
        let taken = entries.iter().map(|entry| Cow::Borrowed(entry.name.as_str())).collect();
        Self { taken, next: HashMap::new() }
    }

    fn take(&mut self, wanted: &'a str) -> String {
        let base = base_name(wanted);
        for name in [wanted, base] {
            if self.taken.insert(Cow::Borrowed(name)) {
                return name.to_owned();
            }
        }
        let number = self.next.entry(base).or_insert(2);
        loop {
            let name = format!("{base}#{number}");
            *number += 1;
            if self.taken.insert(Cow::Owned(name.clone())) {
                return name;
            }
        }
    }
}

/// New nodes with equal labels next to each other, both labels and nodes in the order of the list.
fn side_by_side(mut newcomers: Vec<Newcomer<'_>>) -> Vec<Newcomer<'_>> {
    let mut order: HashMap<Option<&str>, usize> = HashMap::new();
    for newcomer in &newcomers {
        let next = order.len();
        order.entry(newcomer.label).or_insert(next);
    }
    newcomers.sort_by_cached_key(|newcomer| order.get(&newcomer.label).copied());
    newcomers
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(number: u64) -> NodeId {
        NodeId::from_random(number << 1)
    }

    fn entry(number: u64, name: &str, label: Option<&str>, rank: u32) -> PlanEntry {
        PlanEntry { id: id(number), name: name.into(), label: label.map(Into::into), rank }
    }

    fn newcomer<'a>(number: u64, name: &'a str, label: Option<&'a str>) -> Newcomer<'a> {
        Newcomer { id: id(number), name, label, index: None, arrived: i64::try_from(number).unwrap() }
    }

    fn names(world: &[PlanEntry]) -> Vec<&str> {
        world.iter().map(|entry| entry.name.as_str()).collect()
    }

    #[test]
    fn remaining_members_keep_their_ranks_and_a_free_rank_is_filled_from_the_end() {
        let last =
            [entry(1, "a", None, 0), entry(2, "b", None, 1), entry(3, "c", None, 2), entry(4, "d", None, 3)];
        let seeking = BTreeSet::from([id(1), id(3), id(4)]);
        assert_eq!(names(&rank(&last, &seeking, vec![], 4)), ["a", "d", "c"]);
    }

    #[test]
    fn newcomer_of_a_gone_name_takes_its_rank() {
        let last = [entry(1, "a", None, 0), entry(2, "b", None, 1), entry(3, "c", None, 2)];
        let seeking = BTreeSet::from([id(2), id(3)]);
        let world = rank(&last, &seeking, vec![newcomer(5, "x", None), newcomer(6, "a", None)], 4);
        assert_eq!(names(&world), ["a", "b", "c", "x"]);
        assert_eq!(world[0].id, id(6));
    }

    #[test]
    fn equal_names_are_numbered_and_pair_by_arrival() {
        let world = rank(&[], &BTreeSet::new(), vec![newcomer(1, "n", None), newcomer(2, "n", None)], 4);
        assert_eq!(names(&world), ["n", "n#2"]);
        let next = rank(&world, &BTreeSet::new(), vec![newcomer(3, "n", None), newcomer(4, "n", None)], 4);
        assert_eq!(names(&next), ["n", "n#2"]);
        assert_eq!(next[0].id, id(3));
    }

    fn indexed(number: u64, index: u32, label: Option<&str>) -> Newcomer<'_> {
        Newcomer { index: Some(index), ..newcomer(number, format!("i{index}").leak(), label) }
    }

    #[test]
    fn new_nodes_are_ranked_by_index_and_the_others_after_them_by_arrival() {
        let come = vec![
            newcomer(1, "a", None),
            indexed(2, 3, None),
            newcomer(3, "b", None),
            indexed(4, 0, None),
            indexed(5, 1, None),
        ];
        let world = rank(&[], &BTreeSet::new(), come, 5);
        assert_eq!(names(&world), ["i0", "i1", "i3", "a", "b"]);
    }

    #[test]
    fn equal_indices_keep_the_order_of_arrival() {
        let come = vec![indexed(3, 1, None), indexed(1, 1, None), indexed(4, 0, None), indexed(2, 1, None)];
        let world = rank(&[], &BTreeSet::new(), come, 4);
        assert_eq!(world.iter().map(|entry| entry.id).collect::<Vec<_>>(), [id(4), id(1), id(2), id(3)]);
        assert_eq!(names(&world), ["i0", "i1", "i1#2", "i1#3"]);
    }

    #[test]
    fn arrival_decides_which_new_nodes_get_a_place_and_their_indices_decide_the_ranks() {
        let come = vec![indexed(1, 2, None), indexed(2, 1, None), indexed(3, 0, None)];
        assert_eq!(names(&rank(&[], &BTreeSet::new(), come, 2)), ["i1", "i2"]);
    }

    #[test]
    fn index_orders_new_nodes_of_a_later_world_and_members_keep_their_ranks() {
        let last = [entry(1, "a", None, 0), entry(2, "b", None, 1), entry(3, "c", None, 2)];
        let seeking = BTreeSet::from([id(2)]);
        let come = vec![indexed(5, 9, None), indexed(6, 4, None), indexed(7, 7, None)];
        assert_eq!(names(&rank(&last, &seeking, come, 4)), ["i4", "b", "i7", "i9"]);
    }

    #[test]
    fn topology_groups_new_nodes_and_index_orders_the_groups_and_the_nodes_in_them() {
        let come = vec![
            indexed(1, 5, Some("x")),
            indexed(2, 4, Some("y")),
            indexed(3, 2, Some("x")),
            indexed(4, 0, Some("y")),
            newcomer(5, "late", Some("x")),
        ];
        let world = rank(&[], &BTreeSet::new(), come, 5);
        assert_eq!(names(&world), ["i0", "i4", "i2", "i5", "late"]);
    }

    #[test]
    fn topology_groups_newcomers_and_fills_a_free_rank_with_an_equal_label() {
        let come = vec![
            newcomer(1, "a", Some("x")),
            newcomer(2, "b", Some("y")),
            newcomer(3, "c", Some("x")),
            newcomer(4, "d", Some("y")),
        ];
        let world = rank(&[], &BTreeSet::new(), come, 4);
        assert_eq!(names(&world), ["a", "c", "b", "d"]);
        let seeking = BTreeSet::from([id(1), id(2), id(4)]);
        let next = rank(&world, &seeking, vec![newcomer(5, "e", Some("y")), newcomer(6, "f", Some("x"))], 5);
        assert_eq!(names(&next), ["a", "f", "b", "d", "e"]);
    }

    /// This takes a moment if the cost is proportional to the number of nodes. If it were quadratic, it would take many
    /// minutes.
    #[test]
    fn world_of_fifty_thousand_nodes_is_ranked_whichever_nodes_leave_and_join() {
        const SIZE: u64 = 50_000;
        // All nodes have one name, like containers that are all called `localhost`, or each node has a different name.
        for name in [|_: u64| "localhost".to_owned(), |number: u64| format!("n{number}")] {
            let joining = |numbers: std::ops::Range<u64>| {
                numbers.map(|number| newcomer(number, name(number).leak(), Some("rack"))).collect::<Vec<_>>()
            };
            let all = u32::try_from(SIZE).unwrap();
            let first = rank(&[], &BTreeSet::new(), joining(1..SIZE + 1), all);
            assert_eq!(first.len() as u64, SIZE);
            // Half of the nodes are replaced, by nodes of other names where names differ.
            let kept: BTreeSet<_> = first.iter().filter(|entry| entry.rank % 2 == 0).map(|e| e.id).collect();
            let second = rank(&first, &kept, joining(SIZE + 1..SIZE + SIZE / 2 + 1), all);
            assert_eq!(second.len() as u64, SIZE);
            assert!(second.iter().filter(|entry| kept.contains(&entry.id)).all(|entry| entry.rank % 2 == 0));
            // Half of the nodes leave. The members of high rank fill the free ranks.
            let kept: BTreeSet<_> = second.iter().filter(|entry| entry.rank % 2 == 1).map(|e| e.id).collect();
            assert_eq!(rank(&second, &kept, Vec::new(), all).len() as u64, SIZE / 2);
        }
    }

    proptest! {
        #[test]
        fn ranks_are_dense_and_kept_where_possible(
            size in 0_u64..20, kept in any::<u32>(), coming in 0_u64..20, max in 1_u32..24, labels in any::<u64>(),
            indices in proptest::collection::vec(proptest::option::of(0_u32..10), 20),
        ) {
            let label = |number: u64| Some(if labels >> (number % 64) & 1 == 1 { "x" } else { "y" });
            let last: Vec<_> = (0..size.min(u64::from(max)))
                .map(|number| entry(number + 1, &format!("n{number}"), label(number), u32::try_from(number).unwrap()))
                .collect();
            let seeking: BTreeSet<_> = last.iter().filter(|e| kept >> e.rank & 1 == 1).map(|e| e.id).collect();
            let come: Vec<_> =
                (0..coming).zip(&indices).map(|(number, index)| Newcomer {
                    index: *index,
                    ..newcomer(100 + number, format!("n{}", number * 2).leak(), label(number))
                }).collect();
            let world = rank(&last, &seeking, come.clone(), max);
            prop_assert_eq!(world.len(), (seeking.len() + come.len()).min(max as usize));
            for (index, entry) in world.iter().enumerate() {
                prop_assert_eq!(entry.rank as usize, index);
            }
            prop_assert_eq!(world.iter().map(|e| e.id).collect::<BTreeSet<_>>().len(), world.len());
            prop_assert_eq!(world.iter().map(|e| &e.name).collect::<BTreeSet<_>>().len(), world.len());
            for member in last.iter().filter(|e| seeking.contains(&e.id)) {
                let now = world.iter().find(|e| e.id == member.id);
                prop_assert!(now.is_some(), "a member that seeks is never left out");
                if (member.rank as usize) < world.len() {
                    prop_assert_eq!(now.map(|e| e.rank), Some(member.rank));
                }
            }
            if last.is_empty() {
                let of_world = come.iter().take(max as usize);
                let lowest = of_world.filter_map(|newcomer| newcomer.index).min();
                let first = world.first().and_then(|e| come.iter().find(|newcomer| newcomer.id == e.id));
                prop_assert_eq!(first.and_then(|newcomer| newcomer.index), lowest, "rank 0 has the lowest index");
            }
        }
    }
}
