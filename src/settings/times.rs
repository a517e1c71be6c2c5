//! Settings that are times, and their form in JSON: seconds.

use std::{ops::RangeInclusive, time::Duration};

use serde::{Serialize, Serializer};

use super::{LONGEST_SECONDS, input::Input, parse};
use crate::error::Result;

impl Input<'_> {
    pub(super) fn duration(&self, key: &str, bounds: RangeInclusive<f64>, default: f64) -> Result<Duration> {
        let read = self.read(key, |given| parse::duration(given, &bounds))?;
        Ok(read.unwrap_or(Duration::from_secs_f64(default)))
    }

    pub(super) fn spare_timeout(&self, default: Option<Duration>) -> Result<Option<Duration>> {
        let Some(given) = self.given("spare_timeout") else { return Ok(default) };
        if matches!(given.value.trim().to_ascii_lowercase().as_str(), "off" | "none") {
            return Ok(None);
        }
        parse::duration(&given, &(0.0..=LONGEST_SECONDS)).map(Some).map_err(|_| {
            given.wrong(
                &format!("`off`, or seconds as a decimal number from 0 to {LONGEST_SECONDS}"),
                "with `off`, a spare waits as long as the run lasts",
            )
        })
    }
}

pub(super) fn seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

#[expect(clippy::ref_option, reason = "serde passes a reference to the field")]
pub(super) fn optional_seconds<S: Serializer>(
    duration: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    duration.map(|duration| duration.as_secs_f64()).serialize(serializer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::fixtures::*;

    #[test]
    fn every_time_says_what_it_accepts() {
        let times = [
            "join_timeout",
            "spare_timeout",
            "settle_time",
            "last_call_timeout",
            "rejoin_timeout",
            "grow_delay",
            "reuse_delay",
            "close_timeout",
            "connect_timeout",
            "host_timeout",
            "lease_ttl",
            "timeout",
        ];
        for key in times {
            let from = format!("`{key}` of `--rdzv-conf`");
            let expected =
                if key == "lease_ttl" { "whole seconds from" } else { "seconds as a decimal number" };
            refused(run_with(CONF, &[(key, "10m")]), &[&from, expected, "`10m`"]);
            refused(run_with(CONF, &[(key, "-1")]), &[&from]);
            refused(run_with(CONF, &[(key, "inf")]), &[&from]);
        }
        refused(run_with(CONF, &[("lease_ttl", "1")]), &["from 2 to 3600", "such as `10`:", "`1`"]);
        refused(run_with(CONF, &[("lease_ttl", "2.5")]), &["whole seconds", "`2.5`"]);
        let settings = run_with(CONF, &[("settle_time", "0.25"), ("spare_timeout", "60")]).unwrap();
        assert_eq!(settings.settle_time, Duration::from_millis(250));
        assert_eq!(settings.spare_timeout, Some(Duration::from_secs(60)));
        assert_eq!(run_with(CONF, &[("spare_timeout", "off")]).unwrap().spare_timeout, None);
        let one = |more: &[(&str, &str)]| {
            let nodes = [("min_nodes", "1"), ("max_nodes", "1"), ("join_timeout", "7")];
            run_with(CONF, &[&nodes, more].concat()).unwrap().spare_timeout
        };
        assert_eq!(one(&[]), Some(Duration::from_secs(7)));
        assert_eq!(one(&[("spare_timeout", "60")]), Some(Duration::from_secs(60)));
        assert_eq!(one(&[("spare_timeout", "off")]), None);
    }

    #[test]
    fn last_call_ends_within_a_short_join_timeout_unless_it_was_passed() {
        let last_call = |passed: &[(&str, &str)]| run_with(CONF, passed).unwrap().last_call_timeout.as_secs();
        assert_eq!(last_call(&[("timeout", "900")]), 30);
        assert_eq!(last_call(&[("timeout", "10")]), 5);
        assert_eq!(last_call(&[("join_timeout", "45")]), 22);
        assert_eq!(last_call(&[("join_timeout", "10"), ("last_call_timeout", "20")]), 20);
    }

    #[test]
    fn join_timeout_that_was_passed_binds_spares_as_well() {
        let spare = |passed: &[(&str, &str)]| {
            run_with(CONF, passed).unwrap().spare_timeout.map(|time| time.as_secs())
        };
        assert_eq!(spare(&[("timeout", "900")]), None);
        assert_eq!(spare(&[("timeout", "120")]), Some(120));
        assert_eq!(spare(&[("join_timeout", "100")]), Some(100));
        assert_eq!(spare(&[("join_timeout", "100"), ("spare_timeout", "off")]), None);
        assert_eq!(spare(&[("join_timeout", "100"), ("spare_timeout", "7")]), Some(7));
    }
}
