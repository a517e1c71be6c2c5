//! Which sizes a world may have, and how many nodes the first world waits for.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The sizes that a user sets besides the minimum and the maximum number of nodes. All nodes of a run have equal
/// values.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sizing {
    /// The allowed sizes in ascending order. If it is empty, every size is allowed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sizes: Vec<u32>,
    /// The allowed sizes are the multiples of this number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_unit: Option<u32>,
    /// The first world forms as soon as this number of nodes is present.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wanted: Option<u32>,
}

impl Sizing {
    /// Whether nothing is set.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// All settings of the size of worlds that the nodes of a run must agree on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorldSizes<'a> {
    /// The run's `min_nodes`.
    pub min: u32,
    /// The run's `max_nodes`.
    pub max: u32,
    /// Which sizes between them are allowed.
    pub sizing: &'a Sizing,
}

impl WorldSizes<'_> {
    /// Whether some sizes between `min` and `max` are not allowed. Nodes may then wait although the world is not full.
    pub fn is_restricted(&self) -> bool {
        !self.sizing.sizes.is_empty() || self.sizing.node_unit.is_some()
    }

    /// The largest allowed size that this number of nodes can fill.
    pub fn largest(&self, nodes: usize) -> Option<u32> {
        let most = u32::try_from(nodes).unwrap_or(u32::MAX).min(self.max);
        let size = match self.sizing.node_unit {
            _ if !self.sizing.sizes.is_empty() => *self.sizing.sizes.iter().rfind(|size| **size <= most)?,
            Some(unit) => most - most.checked_rem(unit)?,
            None => most,
        };
        (size >= self.min.max(1)).then_some(size)
    }

    /// The smallest size above this one.
    pub fn next_above(&self, size: u32) -> Option<u32> {
        let least = size.checked_add(1)?.max(self.min);
        let next = match self.sizing.node_unit {
            _ if !self.sizing.sizes.is_empty() => *self.sizing.sizes.iter().find(|size| **size >= least)?,
            Some(unit) => least.checked_next_multiple_of(unit)?,
            None => least,
        };
        (next <= self.max).then_some(next)
    }

    /// The smallest size. Settings that allow no size are rejected.
    pub fn smallest(&self) -> u32 {
        self.next_above(0).unwrap_or(self.min)
    }

    /// How many of the present nodes are in a world, and how many nodes the next size needs, if sizes are restricted.
    pub fn describe(&self, here: usize) -> Option<String> {
        if !self.is_restricted() {
            return None;
        }
        let used = self.largest(here).unwrap_or(0);
        let nodes = if here == 1 { "node" } else { "nodes" };
        Some(match self.next_above(used) {
            Some(next) => format!("{here} {nodes} here, {used} used, the next size is {next}"),
            None => format!("{here} {nodes} here, {used} used, the largest size"),
        })
    }
}

impl fmt::Display for WorldSizes<'_> {
    /// `2:4`, or `2:8 (sizes=2:4:8, wanted=4)`.
    fn fmt(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sizing { sizes, node_unit, wanted } = self.sizing;
        let listed = sizes.iter().map(ToString::to_string).collect::<Vec<_>>().join(":");
        let sizes = (!sizes.is_empty()).then(|| format!("sizes={listed}"));
        let unit = node_unit.map(|unit| format!("node_unit={unit}"));
        let wanted = wanted.map(|wanted| format!("wanted={wanted}"));
        let more: Vec<String> = sizes.into_iter().chain(unit).chain(wanted).collect();
        write!(text, "{}:{}", self.min, self.max)?;
        if more.is_empty() { Ok(()) } else { write!(text, " ({})", more.join(", ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn largest_smallest_and_next_size_follow_from_the_rules() {
        let list = Sizing { sizes: vec![2, 4, 8], ..Sizing::default() };
        let unit = Sizing { node_unit: Some(4), ..Sizing::default() };
        let any = Sizing { wanted: Some(3), ..Sizing::default() };
        for (min, max, sizing, smallest, largest) in [
            (
                1,
                8,
                &list,
                2,
                [None, None, Some(2), Some(2), Some(4), Some(4), Some(4), Some(4), Some(8), Some(8)],
            ),
            (3, 7, &list, 4, [None, None, None, None, Some(4), Some(4), Some(4), Some(4), Some(4), Some(4)]),
            (1, 8, &unit, 4, [None, None, None, None, Some(4), Some(4), Some(4), Some(4), Some(8), Some(8)]),
            (5, 9, &unit, 8, [None, None, None, None, None, None, None, None, Some(8), Some(8)]),
            (
                2,
                4,
                &any,
                2,
                [None, None, Some(2), Some(3), Some(4), Some(4), Some(4), Some(4), Some(4), Some(4)],
            ),
        ] {
            let sizes = WorldSizes { min, max, sizing };
            assert_eq!((0..10).map(|nodes| sizes.largest(nodes)).collect::<Vec<_>>(), largest, "{sizes}");
            assert_eq!(sizes.smallest(), smallest, "{sizes}");
            // The next size is the first larger one, and there is none above the largest.
            for size in 0..10 {
                let next = largest.into_iter().flatten().find(|next| *next > size);
                assert_eq!(sizes.next_above(size), next, "{sizes} above {size}");
            }
        }
    }

    #[test]
    fn wait_names_the_next_size() {
        let list = Sizing { sizes: vec![2, 4], ..Sizing::default() };
        let sizes = WorldSizes { min: 1, max: 4, sizing: &list };
        assert_eq!(sizes.describe(1).as_deref(), Some("1 node here, 0 used, the next size is 2"));
        assert_eq!(sizes.describe(3).as_deref(), Some("3 nodes here, 2 used, the next size is 4"));
        assert_eq!(sizes.describe(5).as_deref(), Some("5 nodes here, 4 used, the largest size"));
        assert_eq!(WorldSizes { sizing: &Sizing::default(), ..sizes }.describe(3), None);
    }

    #[test]
    fn text_shows_what_was_set() {
        let sizing = Sizing { sizes: vec![2, 4], node_unit: Some(2), wanted: Some(4) };
        let sizes = WorldSizes { min: 1, max: 4, sizing: &sizing };
        assert_eq!(sizes.to_string(), "1:4 (sizes=2:4, node_unit=2, wanted=4)");
        assert_eq!(WorldSizes { sizing: &Sizing::default(), ..sizes }.to_string(), "1:4");
    }
}
