//! Encodes and decodes records. Readers ignore unknown fields. An unknown major version is an error that names the key,
//! because a node that guesses would split the run.

use std::borrow::Cow;

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    error::{Error, Result},
    protocol::printable::printable,
};

/// The major version of everything that this code writes.
pub const VERSION: u32 = 1;

/// The maximum size of a record: a shard of a plan has 2 KiB, and a reason names 20 nodes at most.
pub const LONGEST_RECORD_BYTES: usize = 64 * 1024;
/// The maximum size of a name, an address, or a label in a record. Settings allow 253 bytes for names, and `#2` may
/// follow.
pub const LONGEST_TEXT_BYTES: usize = 512;
/// The maximum size of a reason.
pub const LONGEST_REASON_BYTES: usize = 16 * 1024;

/// A record with a version.
pub trait Record: Serialize + DeserializeOwned {
    /// The JSON of the record, including the version.
    fn encode(&self) -> Vec<u8> {
        let bytes = json(&Versioned { version: VERSION, record: self });
        // Only then can a reason in it be too long.
        if bytes.len() > LONGEST_REASON_BYTES { with_short_reasons(&bytes) } else { bytes }
    }

    /// Decodes the record at `key`.
    ///
    /// # Errors
    /// [`Error::Record`] if it is not JSON, has no value for a required field, is too long, or has another major
    /// version. Control characters in texts are escaped, so that they are safe to show.
    fn decode(key: &str, bytes: &[u8]) -> Result<Self> {
        let wrong = |why: String| Error::Record {
            key: printable(key).into_owned(),
            why: printable(&why).into_owned(),
        };
        if bytes.len() > LONGEST_RECORD_BYTES {
            return Err(wrong(format!("expected at most {LONGEST_RECORD_BYTES} bytes: {}", bytes.len())));
        }
        let mut value: serde_json::Value =
            serde_json::from_slice(bytes).map_err(|error| wrong(format!("expected JSON: {error}")))?;
        match value.get("version").and_then(serde_json::Value::as_u64) {
            Some(version) if version == u64::from(VERSION) => {}
            Some(version) => {
                return Err(wrong(format!(
                    "it has major version {version}, and this lattice-rdzv reads {VERSION}; use one version \
                     of lattice-rdzv in all nodes of a run"
                )));
            }
            None => return Err(wrong(format!("expected a `version` of {VERSION} in it"))),
        }
        let mut too_long = None;
        texts(&mut value, "", &mut |field, text| {
            let most = if field == "why" { LONGEST_REASON_BYTES } else { LONGEST_TEXT_BYTES };
            if text.len() > most {
                too_long = Some(format!("expected at most {most} bytes in `{field}`: {}", text.len()));
            }
            if let Cow::Owned(safe) = printable(text) {
                *text = safe;
            }
        });
        if let Some(why) = too_long {
            return Err(wrong(why));
        }
        serde_json::from_value(value).map_err(|error| wrong(error.to_string()))
    }
}

#[derive(Serialize)]
struct Versioned<'record, R> {
    version: u32,
    #[serde(flatten)]
    record: &'record R,
}

/// How many bytes the JSON of this part of a record has.
pub fn json_bytes(part: &impl Serialize) -> usize {
    json(part).len()
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).unwrap_or_default()
}

fn with_short_reasons(record: &[u8]) -> Vec<u8> {
    let mut value: serde_json::Value = serde_json::from_slice(record).unwrap_or_default();
    texts(&mut value, "", &mut |field, text| {
        if field == "why" {
            let ends = (0..=LONGEST_REASON_BYTES.min(text.len())).rev();
            let end = ends.into_iter().find(|end| text.is_char_boundary(*end));
            text.truncate(end.unwrap_or(0));
        }
    });
    json(&value)
}

/// Visits each text in a record, with the name of the field that it is in. A record is JSON of a bounded depth.
fn texts(value: &mut serde_json::Value, field: &str, visit: &mut dyn FnMut(&str, &mut String)) {
    match value {
        serde_json::Value::String(text) => visit(field, text),
        serde_json::Value::Array(values) => {
            for value in values {
                texts(value, field, visit);
            }
        }
        serde_json::Value::Object(fields) => {
            for (field, value) in fields {
                texts(value, field, visit);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::records::{ClosedRecord, Outcome};

    fn closed() -> ClosedRecord {
        ClosedRecord {
            life: "l".into(),
            by: "node-1".into(),
            why: "done".into(),
            outcome: Outcome::Succeeded,
            submission: None,
        }
    }

    #[test]
    fn field_of_a_later_minor_version_is_skipped() {
        let mut value: serde_json::Value = serde_json::from_slice(&closed().encode()).unwrap();
        value["of the future"] = 1.into();
        assert_eq!(ClosedRecord::decode("k", value.to_string().as_bytes()).unwrap(), closed());
    }

    #[test]
    fn field_that_is_too_long_is_an_error_that_names_it() {
        let with = |by: usize, why: usize| {
            let record = ClosedRecord { by: "n".repeat(by), why: "w".repeat(why), ..closed() };
            ClosedRecord::decode("/the/key", &record.encode())
        };
        assert!(with(LONGEST_TEXT_BYTES, LONGEST_REASON_BYTES).is_ok());
        let message = with(LONGEST_TEXT_BYTES + 1, 0).unwrap_err().to_string();
        assert!(message.contains("512 bytes in `by`: 513"), "{message}");
        let message = with(1_000_000, 0).unwrap_err().to_string();
        assert!(message.len() < 200 && message.contains("65536 bytes"), "{message}");
        let reason = with(1, LONGEST_REASON_BYTES + 1).unwrap().why;
        assert_eq!(reason.len(), LONGEST_REASON_BYTES, "a reason is cut where it is written");
    }

    #[test]
    fn no_text_of_a_record_and_no_key_moves_a_terminals_cursor() {
        let record = ClosedRecord { by: "\x1b[2J".into(), why: "a\nb".into(), ..closed() };
        let read = ClosedRecord::decode("k", &record.encode()).unwrap();
        assert_eq!((read.by.as_str(), read.why.as_str()), ("\\u{1b}[2J", "a\\u{a}b"));
        let bytes = String::from_utf8(closed().encode()).unwrap().replace("succeeded", "\\u001b[2J");
        let message = ClosedRecord::decode("k\r", bytes.as_bytes()).unwrap_err().to_string();
        assert!(!message.contains(char::is_control) && message.contains("k\\u{d}"), "{message}");
    }

    #[test]
    fn what_cannot_be_read_is_an_error_that_names_the_key() {
        let mut future: serde_json::Value = serde_json::from_slice(&closed().encode()).unwrap();
        future["version"] = 2.into();
        let future = future.to_string();
        for (bytes, expected) in [
            ("no json", "expected JSON"),
            ("{}", "expected a `version`"),
            (r#"{"version": 1}"#, "missing field"),
            (future.as_str(), "major version 2"),
        ] {
            let message = ClosedRecord::decode("/the/key", bytes.as_bytes()).unwrap_err().to_string();
            assert!(message.contains("/the/key") && message.contains(expected), "{message}");
        }
    }
}
