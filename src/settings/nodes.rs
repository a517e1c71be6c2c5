//! How many nodes a world has.

use super::{
    input::{Input, conflict},
    parse::{self, setting},
};
use crate::error::{Error, Result};

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
                "how many nodes the run has is not said (`nnodes`); {}, `4` for a fixed size or `2:4` for an elastic \
                 one",
                self.ways("nnodes")
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::settings::Origin;
    use crate::settings::fixtures::*;

    #[test]
    fn a_number_of_nodes_that_makes_no_sense_names_value_source_and_form() {
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
    fn the_ends_of_the_number_of_nodes_may_be_said_apart() {
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
}
