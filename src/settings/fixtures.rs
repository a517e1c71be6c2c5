//! Helpers of the tests of settings.

use std::collections::BTreeMap;

use super::{Arguments, Origin, Settings};
use crate::error::{Error, Result};

pub(super) const CONF: Origin = Origin::RdzvConf;

pub(super) fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

pub(super) fn resolve(
    origin: Origin,
    passed: &[(&str, &str)],
    environment: &[(&str, &str)],
) -> Result<Settings> {
    Settings::resolve(&Arguments { values: map(passed), origin }, &map(environment))
}

/// Settings that every run needs, together with those that the test is about.
pub(super) fn run_with(origin: Origin, passed: &[(&str, &str)]) -> Result<Settings> {
    let mut values = map(&[("run_id", "run"), ("host_name", "host-1")]);
    if !["nnodes", "min_nodes", "max_nodes"].iter().any(|key| map(passed).contains_key(*key)) {
        values.extend(map(&[("min_nodes", "2"), ("max_nodes", "4")]));
    }
    values.extend(map(passed));
    Settings::resolve(&Arguments { values, origin }, &BTreeMap::new())
}

#[track_caller]
pub(super) fn refused(result: Result<Settings>, parts: &[&str]) -> String {
    let Err(Error::Setting { message }) = result else { panic!("expected a setting error, got {result:?}") };
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
    message
}
