//! How many nodes a world has, and which numbers are allowed.

use super::{
    input::{Input, conflict},
    parse::{self, Given, setting},
};
use crate::{
    error::{Error, Result},
    protocol::sizing::{Sizing, WorldSizes},
};

impl Input<'_> {
    pub(super) fn nodes(&self) -> Result<(u32, u32)> {
        let both = self
            .passed
            .get("nnodes")
            .map(|given| Ok::<_, Error>((parse::nodes(given)?, given)))
            .transpose()?;
        let (mut smallest, mut largest) = both.map_or((None, None), |((smallest, largest), given)| {
            (Some((smallest, given)), Some((largest, given)))
        });
        for (end, key) in [(&mut smallest, "min_nodes"), (&mut largest, "max_nodes")] {
            let Some(given) = self.passed.get(key) else { continue };
            let count = parse::count(given)?;
            if let Some((_, other)) = end.filter(|(other, _)| *other != count) {
                return Err(conflict(other, given));
            }
            *end = Some((count, given));
        }
        let variable = self.given("nnodes").filter(|_| smallest.is_none() || largest.is_none());
        if let Some(given) = &variable {
            let (first, last) = parse::nodes(given)?;
            smallest = smallest.or(Some((first, given)));
            largest = largest.or(Some((last, given)));
        }
        match (smallest, largest) {
            (Some((smallest, from)), Some((largest, _))) if smallest > largest => Err(from.wrong(
                &format!("at most `{largest}`, the largest number of nodes"),
                "lower it, or pass both `min_nodes` and `max_nodes`",
            )),
            (Some((smallest, _)), Some((largest, _))) => Ok((smallest, largest)),
            (Some((smallest, _)), None) => Ok((smallest, smallest)),
            (None, Some((_, from))) => {
                Err(from.wrong("passed together with the smallest number of nodes", "pass `min_nodes`, too"))
            }
            (None, None) => Err(setting(format!(
                "the number of nodes is not set (`nnodes`); {}, `4` for a fixed size or `2:4` for an elastic one",
                self.ways("nnodes")
            ))),
        }
    }
    /// The allowed sizes, at least one of which is from `min` to `max`, and the number that the first world wants.
    pub(super) fn sizing(&self, min: u32, max: u32) -> Result<Sizing> {
        let (sizes, unit, wanted) = (self.given("sizes"), self.given("node_unit"), self.given("wanted"));
        if let (Some(sizes), Some(unit)) = (&sizes, &unit) {
            return Err(conflict(sizes, unit));
        }
        let sizing = Sizing {
            sizes: sizes.as_ref().map(parse::sizes).transpose()?.unwrap_or_default(),
            node_unit: unit.as_ref().map(parse::count).transpose()?,
            wanted: wanted.as_ref().map(parse::count).transpose()?,
        };
        let allowed = WorldSizes { min, max, sizing: &sizing };
        if let Some(given) = sizes.as_ref().or(unit.as_ref()).filter(|_| allowed.next_above(0).is_none()) {
            let expected = match sizing.node_unit {
                Some(_) => {
                    format!("a number that has a multiple from {min} to {max} (`nnodes`)")
                }
                None => format!("sizes of which at least one is from {min} to {max} (`nnodes`)"),
            };
            return Err(given.wrong(&expected, "change it or `nnodes`"));
        }
        if let (Some(given), Some(number)) = (&wanted, sizing.wanted) {
            check_wanted(given, number, allowed)?;
        }
        Ok(sizing)
    }
}

fn check_wanted(given: &Given, wanted: u32, allowed: WorldSizes<'_>) -> Result<()> {
    if allowed.largest(wanted as usize) == Some(wanted) {
        return Ok(());
    }
    let sizing = Sizing { wanted: None, ..allowed.sizing.clone() };
    let sizes = WorldSizes { sizing: &sizing, ..allowed };
    Err(given.wrong(&format!("a size that a world may have, which is {sizes}"), "change it or the sizes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Origin;
    use crate::settings::fixtures::*;

    #[test]
    fn number_of_nodes_that_makes_no_sense_names_value_source_and_form() {
        for (text, form) in [
            ("4:2", "smaller number first"),
            ("0", "1 or more"),
            ("two", "`2:4`"),
            ("1:2:3", "`2:4`"),
            ("-1", "`2:4`"),
        ] {
            let value = format!("`{text}`");
            refused(run_with(Origin::Argument, &[("nnodes", text)]), &["argument `nnodes`", &value, form]);
            refused(
                resolve(Origin::Argument, &[("run_id", "r")], &[("LATTICE_NNODES", text)]),
                &["environment variable `LATTICE_NNODES`", &value, form],
            );
        }
        refused(run_with(Origin::Argument, &[("nnodes", "")]), &["`nnodes`", "`LATTICE_NNODES`", "`2:4`"]);
        refused(run_with(CONF, &[("min_nodes", "3"), ("max_nodes", "2")]), &["`--nnodes`", "`3`", "`2`"]);
        refused(run_with(Origin::Argument, &[("max_nodes", "2")]), &["`max_nodes`", "`min_nodes`"]);
    }

    #[test]
    fn minimum_and_maximum_of_nodes_may_be_set_separately() {
        let ends = |passed: &[(&str, &str)]| {
            run_with(Origin::Argument, passed).map(|settings| (settings.min_nodes, settings.max_nodes))
        };
        assert_eq!(ends(&[("nnodes", "2:4")]).unwrap(), (2, 4));
        assert_eq!(ends(&[("nnodes", "3")]).unwrap(), (3, 3));
        assert_eq!(ends(&[("min_nodes", "3")]).unwrap(), (3, 3));
        assert_eq!(ends(&[("nnodes", "2:4"), ("min_nodes", "2"), ("max_nodes", "4")]).unwrap(), (2, 4));
        refused(
            run_with(Origin::Argument, &[("nnodes", "2:4"), ("max_nodes", "5")]),
            &["`nnodes`", "`max_nodes`", "contradict"],
        );
        let environment = [("LATTICE_NNODES", "1:8")];
        let passed = [("run_id", "run"), ("host_name", "host-1"), ("min_nodes", "2")];
        let settings = resolve(Origin::Argument, &passed, &environment).unwrap();
        assert_eq!((settings.min_nodes, settings.max_nodes), (2, 8));
        let passed = [("run_id", "run"), ("host_name", "host-1"), ("min_nodes", "9")];
        refused(resolve(Origin::Argument, &passed, &environment), &["argument `min_nodes`", "`8`", "`9`"]);
    }

    #[test]
    fn sizes_a_unit_and_a_wanted_number_are_read_from_every_source() {
        let sizing = |passed: &[(&str, &str)]| run_with(Origin::RdzvConf, passed).unwrap().sizing;
        let nodes = ("nnodes", "1:8");
        assert_eq!(sizing(&[nodes]), Sizing::default());
        assert_eq!(sizing(&[nodes, ("sizes", "8:2: 4 :2")]).sizes, [2, 4, 8]);
        assert_eq!(sizing(&[nodes, ("node_unit", "4"), ("wanted", "8")]).node_unit, Some(4));
        assert_eq!(sizing(&[nodes, ("wanted", "3")]).wanted, Some(3));
        // A list may contain sizes outside the limits of the run, for example if several jobs share it.
        assert_eq!(sizing(&[("nnodes", "3:5"), ("sizes", "2:4:8")]).sizes, [2, 4, 8]);
        let environment = [
            ("LATTICE_RDZV_ID", "r"),
            ("LATTICE_NNODES", "1:8"),
            ("LATTICE_RDZV_SIZES", "2:4"),
            ("LATTICE_RDZV_WANTED", "4"),
        ];
        let settings = resolve(Origin::Argument, &[("host_name", "h")], &environment).unwrap();
        assert_eq!((settings.sizing.sizes, settings.sizing.wanted), (vec![2, 4], Some(4)));
    }

    #[test]
    fn sizes_that_make_no_sense_name_value_source_and_form() {
        let conf = |key: &str| format!("`{key}` of `--rdzv-conf`");
        for (key, value, form) in [
            ("sizes", "2:four", "`2:4:8`"),
            ("sizes", "0:2", "1 or more"),
            ("sizes", "8:16", "at least one is from 2 to 4"),
            ("node_unit", "0", "1 or more"),
            ("node_unit", "5", "a multiple from 2 to 4"),
            ("node_unit", "two", "a number"),
            ("wanted", "5", "a size that a world may have, which is 2:4"),
            ("wanted", "1", "a size that a world may have, which is 2:4"),
        ] {
            let value_shown = format!("`{value}`");
            refused(run_with(Origin::RdzvConf, &[(key, value)]), &[&conf(key), form, &value_shown]);
        }
        refused(
            run_with(Origin::RdzvConf, &[("sizes", "2:4"), ("wanted", "3")]),
            &[&conf("wanted"), "2:4 (sizes=2:4)", "`3`"],
        );
        refused(
            run_with(Origin::Argument, &[("sizes", "2:4"), ("node_unit", "2")]),
            &["argument `sizes`", "argument `node_unit`", "contradict"],
        );
    }
}
