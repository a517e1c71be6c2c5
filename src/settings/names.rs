//! The names of a run and of a node, and the index of a node.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{
    Arguments, LONGEST_NODE_NAME_BYTES,
    input::Input,
    keys,
    parse::{self, setting},
};
use crate::error::Result;

/// The identity of a run.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct RunName {
    /// Separates the runs of one group from those of another: `tenant`, `LATTICE_RDZV_TENANT`. Default `default`.
    pub tenant: String,
    /// The run: `run_id`, `LATTICE_RDZV_ID`. torchrun's default `none` does not identify a run, and is accepted only
    /// if a node of this run hosts the service. At most [`super::LONGEST_NAME_BYTES`], no control characters.
    pub run_id: String,
}

impl RunName {
    /// Returns the identity of a run for a command that reads it without joining.
    ///
    /// # Errors
    ///
    /// As [`super::Settings::resolve`], for the settings that it reads.
    pub fn resolve(arguments: &Arguments, environment: &BTreeMap<String, String>) -> Result<Self> {
        Input::new(arguments, environment)?.run()
    }
}

impl Input<'_> {
    pub(super) fn run(&self) -> Result<RunName> {
        let tenant = self.name("tenant")?.unwrap_or_else(|| "default".to_owned());
        let Some(run_id) = self.name("run_id")? else {
            return Err(setting(format!(
                "the run has no id, by which its nodes find each other (`run_id`); {}, the same text on every node",
                self.ways("run_id")
            )));
        };
        Ok(RunName { tenant, run_id })
    }

    pub(super) fn node_name(&self) -> Result<String> {
        let Some(given) = self.given("node_name").or_else(|| self.given("host_name")) else {
            return Err(setting(format!(
                "this node has no name (`node_name`), and the host has none either; {}, another on every node",
                self.ways("node_name")
            )));
        };
        if given.value.contains('#') {
            return Err(given.wrong("without `#`", "`#2` distinguishes nodes of one name, so take it out"));
        }
        parse::name(&given, LONGEST_NODE_NAME_BYTES)
    }

    pub(super) fn node_index(&self) -> Result<Option<u32>> {
        let of_others = || keys::NODE_INDEX_VARIABLES.iter().find_map(|variable| self.variable(variable));
        self.given("node_index").or_else(of_others).as_ref().map(parse::index).transpose()
    }
}

#[cfg(test)]
mod tests {
    use crate::settings::{Origin, fixtures::*};

    #[test]
    fn error_for_a_run_without_an_id_names_where_to_set_it() {
        refused(resolve(Origin::Argument, &[], &[]), &["argument `run_id`", "`LATTICE_RDZV_ID`"]);
        refused(resolve(CONF, &[], &[("LATTICE_RDZV_ID", "")]), &["`--rdzv-id`", "`LATTICE_RDZV_ID`"]);
    }

    #[test]
    fn run_id_is_any_text_that_can_be_printed_and_is_not_too_long() {
        for id in ["lauf-ü-七", "team/run 7", "%2F", &"x".repeat(200)] {
            assert_eq!(run_with(Origin::Argument, &[("run_id", id)]).unwrap().run.run_id, id);
        }
        refused(
            run_with(Origin::Argument, &[("run_id", &"x".repeat(201))]),
            &["`run_id`", "at most 200", "201"],
        );
        refused(run_with(Origin::Argument, &[("run_id", "a\nb")]), &["`run_id`", "control", "`a\\nb`"]);
        refused(run_with(CONF, &[("run_id", "a\0b")]), &["`--rdzv-id`", "control"]);
    }

    #[test]
    fn node_has_a_name() {
        refused(
            resolve(Origin::Argument, &[("run_id", "r"), ("nnodes", "1")], &[]),
            &["`LATTICE_RDZV_NODE_NAME`"],
        );
        refused(run_with(Origin::Argument, &[("node_name", "a#2")]), &["`node_name`", "`#`", "`a#2`"]);
        assert_eq!(run_with(Origin::Argument, &[("node_name", "a")]).unwrap().node_name, "a");
    }

    #[test]
    fn node_index_is_the_first_one_that_is_set() {
        let sources = [
            ("LATTICE_NODE_INDEX", "2"),
            ("PET_NODE_RANK", "3"),
            ("JOB_COMPLETION_INDEX", "4"),
            ("SLURM_NODEID", "5"),
        ];
        let index = |passed: &[(&str, &str)], environment: &[(&str, &str)]| {
            let passed = [&[("run_id", "r"), ("nnodes", "2"), ("host_name", "h")], passed].concat();
            resolve(CONF, &passed, environment).unwrap().node_index
        };
        assert_eq!(index(&[("node_index", "1")], &sources), Some(1));
        assert_eq!(index(&[], &sources), Some(2));
        assert_eq!(index(&[], &sources[1..]), Some(3));
        assert_eq!(index(&[], &sources[2..]), Some(4));
        assert_eq!(index(&[], &sources[3..]), Some(5));
        assert_eq!(index(&[], &[("JOB_COMPLETION_INDEX", ""), ("SLURM_NODEID", "0")]), Some(0));
        assert_eq!(index(&[], &[]), None);
    }

    #[test]
    fn node_index_that_is_not_a_whole_number_is_an_error_that_names_its_source() {
        for wrong in ["-1", "+1", "1.0", "4294967296", "first"] {
            refused(
                run_with(CONF, &[("node_index", wrong)]),
                &["`node_index` of `--rdzv-conf`", wrong, "whole number"],
            );
        }
        let passed = [("run_id", "r"), ("nnodes", "2"), ("host_name", "h")];
        refused(
            resolve(CONF, &passed, &[("SLURM_NODEID", "x")]),
            &["environment variable `SLURM_NODEID`", "`x`"],
        );
    }
}
