//! Parses texts. Every parser takes a [`Given`] and returns the value, or a message with the expected form, the
//! source of the text, and the text.

use std::{ops::RangeInclusive, time::Duration};

use crate::{
    discovery::{Host, Scheme, excerpt, parse_port},
    error::{Error, Result},
    protocol::printable::printable,
};

/// A text, and its source as messages name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) from: String,
    pub(super) value: String,
}

impl Given {
    /// Whether the value is a certificate or a private key instead of its path. Such a value is never repeated.
    pub(super) fn holds_a_files_content(&self) -> bool {
        self.value.contains("-----BEGIN") || self.value.contains('\n')
    }

    /// Formats ``<source> must be <expected>; <fix>: `<value>` ``.
    pub(super) fn wrong(&self, expected: &str, advice: &str) -> Error {
        setting(format!("{} must be {expected}; {advice}: `{}`", self.from, excerpt(&self.value)))
    }
}

pub(super) fn setting(message: String) -> Error {
    Error::Setting { message }
}

/// Parses seconds, as a decimal number within bounds.
pub(super) fn duration(given: &Given, bounds: &RangeInclusive<f64>) -> Result<Duration> {
    seconds(given, bounds, "seconds as a decimal number", "write it without a unit, such as `30` or `0.5`")
}

fn seconds(given: &Given, bounds: &RangeInclusive<f64>, expected: &str, advice: &str) -> Result<Duration> {
    given
        .value
        .trim()
        .parse::<f64>()
        .ok()
        .filter(|seconds| bounds.contains(seconds))
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| {
            given.wrong(&format!("{expected} from {} to {}", bounds.start(), bounds.end()), advice)
        })
}

/// Parses whole seconds within bounds, the unit of an etcd lease.
pub(super) fn whole_seconds(given: &Given, bounds: &RangeInclusive<f64>) -> Result<Duration> {
    let (expected, advice) = ("whole seconds", "write it without a unit, such as `10`");
    let duration = seconds(given, bounds, expected, advice)?;
    if duration.subsec_nanos() == 0 { Ok(duration) } else { Err(given.wrong(expected, advice)) }
}

/// Parses a truth value as torch does.
pub(super) fn boolean(given: &Given) -> Result<bool> {
    match given.value.trim().to_ascii_lowercase().as_str() {
        "1" | "true" | "t" | "yes" | "y" | "on" => Ok(true),
        "0" | "false" | "f" | "no" | "n" | "off" => Ok(false),
        _ => Err(given.wrong("a truth value", "write `true` or `false`")),
    }
}

/// Parses one of a few words.
pub(super) fn word<T: Copy>(given: &Given, words: &[(&str, T)]) -> Result<T> {
    words.iter().find(|(word, _)| *word == given.value.trim()).map(|(_, value)| *value).ok_or_else(|| {
        let known: Vec<String> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
        given.wrong(&known.join(" or "), "nothing else is known to this version")
    })
}

/// Parses a number for which torch itself requires a positive whole number.
pub(super) fn positive_whole_number(given: &Given) -> Result<u64> {
    let number = given.value.trim().parse().ok().filter(|number| *number > 0);
    number.ok_or_else(|| {
        given.wrong("a positive whole number, as for torch's own backends", "correct it or omit it")
    })
}

/// Parses a number of nodes.
pub(super) fn count(given: &Given) -> Result<u32> {
    number_of_nodes(given.value.trim())
        .ok_or_else(|| given.wrong("a number of nodes of 1 or more", "write it in digits, such as `4`"))
}

/// Parses "2:4" or "2".
pub(super) fn nodes(given: &Given) -> Result<(u32, u32)> {
    let text = given.value.trim();
    let (least, most) = text.split_once(':').unwrap_or((text, text));
    match (number_of_nodes(least.trim()), number_of_nodes(most.trim())) {
        (Some(least), Some(most)) if least <= most => Ok((least, most)),
        (Some(least), Some(most)) => Err(given.wrong(
            "`min:max` with the smaller number first",
            &format!("write `{most}:{least}` if that is what is meant"),
        )),
        _ => Err(given.wrong(
            "a number of nodes or `min:max`, each 1 or more",
            "write `4` for a fixed size or `2:4` for an elastic one",
        )),
    }
}

/// Parses "2:4:8", in any order.
pub(super) fn sizes(given: &Given) -> Result<Vec<u32>> {
    let sizes: Option<Vec<u32>> = given.value.split(':').map(|size| number_of_nodes(size.trim())).collect();
    let mut sizes = sizes.ok_or_else(|| {
        given.wrong("numbers of nodes, each 1 or more, separated by colons", "write it such as `2:4:8`")
    })?;
    sizes.sort_unstable();
    sizes.dedup();
    Ok(sizes)
}

fn number_of_nodes(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|count| digits && *count > 0)
}

/// Parses a port for the workers' store.
pub(super) fn port(given: &Given) -> Result<u16> {
    parse_port(given.value.trim())
        .map_err(|_| given.wrong("a port from 1 to 65535", "omit it to use any free port"))
}

/// Parses the index of a node.
pub(super) fn index(given: &Given) -> Result<u32> {
    let text = given.value.trim();
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| digits).ok_or_else(|| {
        given.wrong(&format!("a whole number from 0 to {}", u32::MAX), "omit it to order nodes by arrival")
    })
}

/// Parses "29500:29600", both ends included.
pub(super) fn port_range(given: &Given) -> Result<(u16, u16)> {
    given
        .value
        .split_once([':', '-'])
        .and_then(|(first, last)| Some((parse_port(first.trim()).ok()?, parse_port(last.trim()).ok()?)))
        .filter(|(first, last)| first <= last)
        .ok_or_else(|| {
            given.wrong(
                "`first:last`, ports from 1 to 65535 with the smaller one first",
                "write such as `29500:29600`",
            )
        })
}

/// Parses a name for a key of the service or a record: a printable text of limited length.
pub(super) fn name(given: &Given, longest: usize) -> Result<String> {
    let value = &given.value;
    if *value != printable(value) {
        return Err(given.wrong(
            "text without control characters",
            "remove them (line breaks and text-direction marks are control characters)",
        ));
    }
    if value.len() > longest {
        return Err(given.wrong(
            &format!("at most {longest} bytes long"),
            &format!("shorten it, it has {}", value.len()),
        ));
    }
    Ok(value.clone())
}

/// Parses an address of this node to which other nodes can connect: an IP address or a host name, without a port.
///
/// A dual-stack pod has two addresses (`status.podIPs` is a comma-separated list). The first belongs to the primary
/// family of the cluster, which every pod has, so peers receive the first.
pub(super) fn address(given: &Given) -> Result<String> {
    let mut hosts = given.value.split(',').map(|text| one_address(given, text.trim()));
    let first = hosts.next().unwrap_or_else(|| one_address(given, ""))?;
    for other in hosts {
        other?;
    }
    Ok(first.to_string())
}

fn one_address(given: &Given, text: &str) -> Result<Host> {
    let host = Host::parse(text).map_err(|why| {
        given.wrong("an address or a host name without a port", &format!("{why}, correct it or omit it"))
    })?;
    let unspecified = match &host {
        Host::V4(address) => address.is_unspecified(),
        Host::V6(address) => address.is_unspecified(),
        Host::Name(_) => false,
    };
    if unspecified {
        return Err(given.wrong(
            "an address that other nodes can connect to",
            "omit it to use the address from which this node reaches the service",
        ));
    }
    Ok(host)
}

/// Parses the path of a file. The file is checked when it is read.
pub(super) fn path(given: &Given) -> Result<std::path::PathBuf> {
    if given.holds_a_files_content() {
        return Err(setting(format!(
            "{} must be the path of a file, but holds a file's content; write it to a file that only this user can \
             read, and pass its path",
            given.from
        )));
    }
    Ok(given.value.trim().into())
}

/// Parses a user name without a password.
pub(super) fn user(given: &Given) -> Result<String> {
    // In `etcdctl --user name:password`, the part after the colon is the secret.
    if given.value.contains(':') {
        return Err(setting(format!(
            "{} must be the user's name alone, but has a `:` as in `name:password`; put the password into a file that \
             only this user can read, and pass its path as `password_file`",
            given.from
        )));
    }
    name(given, 200)
}

/// Parses http or https.
pub(super) fn scheme(given: &Given) -> Result<Scheme> {
    let lower = Given { value: given.value.to_ascii_lowercase(), from: given.from.clone() };
    word(&lower, &[("http", Scheme::Http), ("https", Scheme::Https)])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn given(value: &str) -> Given {
        Given { from: "argument `x`".to_owned(), value: value.to_owned() }
    }

    proptest! {
        #[test]
        fn any_text_is_a_value_or_an_error(text in ".{0,40}") {
            let given = given(&text);
            let _ = duration(&given, &(0.0..=10.0));
            let _ = whole_seconds(&given, &(2.0..=3600.0));
            let _ = (nodes(&given), port(&given), port_range(&given), address(&given), boolean(&given));
        }

        #[test]
        fn seconds_within_the_bounds_are_taken_as_written(millis in 0_u64..31_536_000_000) {
            let text = format!("{}.{:03}", millis / 1000, millis % 1000);
            let parsed = duration(&given(&text), &(0.0..=31_536_000.0)).unwrap();
            let error = parsed.abs_diff(Duration::from_millis(millis));
            prop_assert!(error < Duration::from_micros(10), "{} became {:?}", text, parsed);
        }

        #[test]
        fn nodes_are_decoded_as_written(smallest in 1_u32.., more in 0_u32..1000) {
            let largest = smallest.saturating_add(more);
            prop_assert_eq!(nodes(&given(&format!("{smallest}:{largest}"))).unwrap(), (smallest, largest));
            prop_assert_eq!(nodes(&given(&smallest.to_string())).unwrap(), (smallest, smallest));
        }
    }

    #[test]
    fn time_that_is_no_number_of_seconds_is_refused() {
        for text in ["-1", "inf", "NaN", "infinity", "10s", "ten", "1,5", "1e300", "11", "0x5", "- 1"] {
            let message = duration(&given(text), &(0.0..=10.0)).unwrap_err().to_string();
            assert!(message.contains(&format!("`{text}`")), "{message}");
            assert!(message.contains("from 0 to 10"), "{message}");
        }
        assert_eq!(duration(&given(" 1e-05 "), &(0.0..=10.0)).unwrap(), Duration::from_micros(10));
    }

    #[test]
    fn truth_is_read_as_torch_reads_it() {
        for text in ["1", "true", "True", "t", "YES", "y"] {
            assert!(boolean(&given(text)).unwrap());
        }
        for text in ["0", "false", "False", "F", "no", "N"] {
            assert!(!boolean(&given(text)).unwrap());
        }
        assert!(boolean(&given("2")).is_err());
    }

    #[test]
    fn ports_are_numbers_in_order() {
        assert_eq!(port_range(&given("29500:29600")).unwrap(), (29_500, 29_600));
        assert_eq!(port_range(&given("29500-29500")).unwrap(), (29_500, 29_500));
        for text in ["29600:29500", "0:10", "29500", "1:65536", "a:b", "1:2:3"] {
            assert!(port_range(&given(text)).is_err(), "{text}");
        }
        for text in ["0", "65536", "+80", "80.0", "x"] {
            assert!(port(&given(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn address_is_one_that_others_can_connect_to() {
        assert_eq!(address(&given("10.0.0.7")).unwrap(), "10.0.0.7");
        assert_eq!(address(&given("[fd00::7]")).unwrap(), "fd00::7");
        assert_eq!(address(&given("Node-7.example")).unwrap(), "node-7.example");
        assert_eq!(address(&given("10.0.0.7,fd00::7")).unwrap(), "10.0.0.7");
        assert_eq!(address(&given("fd00::7, 10.0.0.7")).unwrap(), "fd00::7");
        for text in
            ["0.0.0.0", "::", "10.0.0.7:80", "http://x", "a b", "300.1.1.1", "10.0.0.7,", "10.0.0.7,a b"]
        {
            assert!(address(&given(text)).is_err(), "{text}");
        }
    }
}
