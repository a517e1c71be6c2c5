//! Who is in the next world, with which rank. Pure and deterministic: kept ranks win over everything, then a newcomer
//! that bears the name of a node that is gone takes its rank, then topology says who fills a hole.

use std::collections::{BTreeMap, BTreeSet};

use super::{identity::NodeId, records::PlanEntry};
use crate::backend::Revision;

/// A node that seeks and was not in the last world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Newcomer {
    /// The node.
    pub id: NodeId,
    /// What it calls itself.
    pub name: String,
    /// Its topology label.
    pub label: Option<String>,
    /// When it arrived: its record's create revision.
    pub arrived: Revision,
}

/// The next world, by rank: the members of the `last` one that are `seeking`, then newcomers by arrival, at most
/// `max_nodes` together.
pub fn rank(
    last: &[PlanEntry],
    seeking: &BTreeSet<NodeId>,
    mut newcomers: Vec<Newcomer>,
    max_nodes: u32,
) -> Vec<PlanEntry> {
    let (members, gone): (Vec<&PlanEntry>, Vec<&PlanEntry>) =
        last.iter().partition(|entry| seeking.contains(&entry.id));
    newcomers.sort_by_key(|newcomer| (newcomer.arrived, newcomer.id));
    newcomers.truncate((max_nodes as usize).saturating_sub(members.len()));

    let size = members.len() + newcomers.len();
    let mut places: Vec<Option<PlanEntry>> = vec![None; size];
    let mut displaced: Vec<&PlanEntry> = Vec::new();
    for member in members {
        match places.get_mut(member.rank as usize) {
            Some(place) if place.is_none() => *place = Some(member.clone()),
            _ => displaced.push(member),
        }
    }
    displaced.sort_by_key(|entry| entry.rank);

    let mut names = Names::of(places.iter().flatten().chain(displaced.iter().copied()));
    let mut unplaced = Vec::new();
    let mut heirs = gone.clone();
    heirs.sort_by_key(|entry| entry.rank);
    for newcomer in newcomers {
        let heir = heirs.iter().position(|entry| base_name(&entry.name) == base_name(&newcomer.name));
        let place = heir.and_then(|index| {
            let entry = heirs.remove(index);
            Some((places.get_mut(entry.rank as usize).filter(|place| place.is_none())?, entry))
        });
        match place {
            Some((place, former)) => {
                *place = Some(PlanEntry {
                    id: newcomer.id,
                    name: names.take(&former.name),
                    label: newcomer.label,
                    rank: former.rank,
                });
            }
            None => unplaced.push(newcomer),
        }
    }

    let mut unplaced = side_by_side(unplaced);
    let former_label: BTreeMap<u32, &str> =
        gone.iter().filter_map(|entry| Some((entry.rank, entry.label.as_deref()?))).collect();
    for (index, place) in places.iter_mut().enumerate().filter(|(_, place)| place.is_none()) {
        let rank = u32::try_from(index).unwrap_or(u32::MAX);
        let label = former_label.get(&rank).copied();
        let alike = |other: &Option<String>| label.is_some() && other.as_deref() == label;
        let newcomer = unplaced.iter().position(|newcomer| alike(&newcomer.label));
        let member = displaced.iter().rposition(|entry| alike(&entry.label));
        let (newcomer, member) = match (newcomer, member) {
            (Some(newcomer), _) => (Some(newcomer), None),
            (None, Some(member)) => (None, Some(member)),
            (None, None) if !displaced.is_empty() => (None, Some(displaced.len() - 1)),
            (None, None) => (Some(0), None),
        };
        *place = if let Some(member) = member {
            Some(PlanEntry { rank, ..displaced.remove(member).clone() })
        } else {
            newcomer.filter(|at| *at < unplaced.len()).map(|at| {
                let newcomer = unplaced.remove(at);
                let name = names.take(base_name(&newcomer.name));
                PlanEntry { id: newcomer.id, name, label: newcomer.label, rank }
            })
        };
    }
    places.into_iter().flatten().collect()
}

/// A name without the number that told it from its like.
pub fn base_name(name: &str) -> &str {
    match name.rsplit_once('#') {
        Some((base, number)) if !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()) => {
            base
        }
        _ => name,
    }
}

/// The names that are taken.
struct Names(BTreeSet<String>);

impl Names {
    fn of<'entry>(entries: impl Iterator<Item = &'entry PlanEntry>) -> Self {
        Self(entries.map(|entry| entry.name.clone()).collect())
    }

    fn take(&mut self, wanted: &str) -> String {
        let base = base_name(wanted);
        let numbered = (2u64..).map(|number| format!("{base}#{number}"));
        let free = [wanted.to_owned(), base.to_owned()].into_iter().chain(numbered);
        let name = free.into_iter().find(|name| !self.0.contains(name)).unwrap_or_default();
        self.0.insert(name.clone());
        name
    }
}

/// Newcomers with equal labels next to each other, labels and nodes by arrival.
fn side_by_side(newcomers: Vec<Newcomer>) -> Vec<Newcomer> {
    let mut order: BTreeMap<Option<String>, usize> = BTreeMap::new();
    for newcomer in &newcomers {
        let next = order.len();
        order.entry(newcomer.label.clone()).or_insert(next);
    }
    let mut newcomers = newcomers;
    newcomers.sort_by_key(|newcomer| order.get(&newcomer.label).copied());
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

    fn newcomer(number: u64, name: &str, label: Option<&str>) -> Newcomer {
        Newcomer {
            id: id(number),
            name: name.into(),
            label: label.map(Into::into),
            arrived: i64::try_from(number).unwrap(),
        }
    }

    fn names(world: &[PlanEntry]) -> Vec<&str> {
        world.iter().map(|entry| entry.name.as_str()).collect()
    }

    #[test]
    fn those_who_stay_keep_their_rank_and_a_hole_is_filled_from_the_end() {
        let last =
            [entry(1, "a", None, 0), entry(2, "b", None, 1), entry(3, "c", None, 2), entry(4, "d", None, 3)];
        let seeking = BTreeSet::from([id(1), id(3), id(4)]);
        assert_eq!(names(&rank(&last, &seeking, vec![], 4)), ["a", "d", "c"]);
    }

    #[test]
    fn a_newcomer_of_a_gone_name_takes_its_rank() {
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

    #[test]
    fn topology_brings_newcomers_together_and_fills_a_hole_with_its_like() {
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

    proptest! {
        #[test]
        fn ranks_are_dense_and_those_who_can_keep_theirs(
            size in 0_u64..20, kept in any::<u32>(), coming in 0_u64..20, max in 1_u32..24, labels in any::<u64>(),
        ) {
            let label = |number: u64| Some(if labels >> (number % 64) & 1 == 1 { "x" } else { "y" });
            let last: Vec<_> = (0..size.min(u64::from(max)))
                .map(|number| entry(number + 1, &format!("n{number}"), label(number), u32::try_from(number).unwrap()))
                .collect();
            let seeking: BTreeSet<_> = last.iter().filter(|e| kept >> e.rank & 1 == 1).map(|e| e.id).collect();
            let come: Vec<_> =
                (0..coming).map(|number| newcomer(100 + number, &format!("n{}", number * 2), label(number))).collect();
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
        }
    }
}
