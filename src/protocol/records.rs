//! What the records of a run say: versioned JSON. Fields that this version does not know are skipped; a major version
//! that it does not know is an error that names the key, because guessing would split the run.

use std::borrow::Cow;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{cooldown::FailureRecord, identity::NodeId, printable::printable, submission::RefusalRecord};
use crate::error::{Error, Result};

/// The major version of everything that this code writes.
pub const VERSION: u32 = 1;

/// No record is longer: a shard of a plan has 8 KiB, and a reason names 20 nodes at most.
pub const LONGEST_RECORD_BYTES: usize = 64 * 1024;
/// No name, address or label in a record is longer. Settings allow 253 bytes for names, and `#2` may follow.
pub const LONGEST_TEXT_BYTES: usize = 512;
/// No reason is longer.
pub const LONGEST_REASON_BYTES: usize = 16 * 1024;

/// A record that bears a version.
pub trait Record: Serialize + DeserializeOwned {
    /// Its JSON, with the version in it.
    fn encode(&self) -> Vec<u8> {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        texts(&mut value, "", &mut |field, text| {
            if field == "why" {
                let ends = (0..=LONGEST_REASON_BYTES.min(text.len())).rev();
                let end = ends.into_iter().find(|end| text.is_char_boundary(*end));
                text.truncate(end.unwrap_or(0));
            }
        });
        if let Some(fields) = value.as_object_mut() {
            fields.insert("version".to_owned(), VERSION.into());
        }
        value.to_string().into_bytes()
    }

    /// Reads what stands at `key`.
    ///
    /// # Errors
    /// [`Error::Record`] if it is no JSON, lacks a field, is too long or has another major version. Control characters
    /// in texts are escaped, so that whoever shows them need not think of it.
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

/// Who decides, at `ctl/coordinator`; goes with that node's lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoordinatorRecord {
    /// The node.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// This term of office, and no other.
    pub nonce: String,
    /// The run's `min_nodes`.
    pub min: u32,
    /// The run's `max_nodes`.
    pub max: u32,
}
impl Record for CoordinatorRecord {}

/// What a run is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// No world of this life is committed yet.
    Forming,
    /// A world is.
    Running,
    /// The world of before a loss of the store was put back; its nodes may return.
    Restoring,
}

/// What kind of change makes a world's nodes form again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    /// A member's lease ended.
    Lost,
    /// A member says that it is about to go.
    Leaving,
    /// A member asks for the next round.
    Seeking,
    /// Nodes wait that would fit in.
    Newcomers,
    /// The run was closed without success.
    Closed,
    /// A later round was formed without this node.
    Replaced,
}

/// That the world is about to be replaced, and why. Told once a round, never taken back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeRecord {
    /// Of which kind.
    pub kind: ChangeKind,
    /// The reason in words.
    pub why: String,
    /// The first names concerned.
    pub names: Vec<String>,
}

/// The round that a run is in, at `ctl/round`. Writing it commits a world.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundRecord {
    /// Which job under this run id.
    pub life: String,
    /// The number of the round; 0 while none was formed.
    pub round: u64,
    /// Which world of that number: after the loss of a store two can have been formed that did not know of each other.
    pub world: String,
    /// Which attempt at this round's plan counts.
    pub attempt: String,
    /// Into how many shards it is cut.
    pub shards: u32,
    /// How many nodes the world has; 0 while forming.
    pub size: u32,
    /// Where rank 0 is reached.
    pub master_address: String,
    /// The port that rank 0 serves.
    pub master_port: u16,
    /// The run's `min_nodes`.
    pub min: u32,
    /// The run's `max_nodes`.
    pub max: u32,
    /// What the run is doing.
    pub phase: Phase,
    /// Why the round was formed.
    pub why: String,
    /// The node that hosts the service, if one does: the world is lost with it, whoever else is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The submission of the world's nodes, if they name one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub submission: Option<String>,
    /// That nodes of other submissions are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<RefusalRecord>,
    /// How often in a row nodes have failed, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failures: Vec<FailureRecord>,
    /// That the world is about to be replaced.
    pub change: Option<ChangeRecord>,
}
impl Record for RoundRecord {}

impl RoundRecord {
    /// A round without a world.
    pub fn forming(life: String, min: u32, max: u32, attempt: String) -> Self {
        Self {
            life,
            round: 0,
            world: String::new(),
            attempt,
            shards: 0,
            size: 0,
            master_address: String::new(),
            master_port: 0,
            min,
            max,
            phase: Phase::Forming,
            why: String::new(),
            host: None,
            submission: None,
            refused: None,
            failures: Vec::new(),
            change: None,
        }
    }

    /// Whether a world is committed.
    pub fn has_world(&self) -> bool {
        self.size > 0
    }

    /// Whether a service that holds `found` as `ctl/round` has lost this record, which it held before.
    pub fn is_lost_in(&self, found: Option<&Self>) -> bool {
        found.is_none_or(|found| found.life == self.life && found.round < self.round)
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The job is done.
    Succeeded,
    /// The job failed for good.
    Failed,
    /// Somebody or something ended it before either.
    Ended,
}

impl Outcome {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Ended => "ended",
        }
    }
}

/// That a life is closed, at `ctl/closed`, later at `closed/<life>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClosedRecord {
    /// The life.
    pub life: String,
    /// The name of the node that closed it.
    pub by: String,
    /// Its reason.
    pub why: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Which submission it was, for example the uid of a Kubernetes Job.
    pub submission: Option<String>,
}
impl Record for ClosedRecord {}

impl ClosedRecord {
    /// The error that ends every call on the run.
    pub fn error(&self, run_id: &str) -> Error {
        let reason = if self.why.is_empty() { String::new() } else { format!(": {}", self.why) };
        Error::Closed {
            outcome: self.outcome.as_str().to_owned(),
            by: self.by.clone(),
            why: self.why.clone(),
            message: format!(
                "run `{run_id}` was closed as {} by `{}`{reason}",
                self.outcome.as_str(),
                self.by
            ),
        }
    }
}

/// The world that a node was in last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastWorld {
    /// Its life.
    pub life: String,
    /// Its round.
    pub round: u64,
    /// Which world of that number.
    pub world: String,
    /// The node's rank.
    pub rank: u32,
    /// The world's size.
    pub size: u32,
}

impl LastWorld {
    /// Of worlds that a store has lost, the one with the highest number is put back; of two with the same number their
    /// names decide, for any fixed rule will do.
    pub fn order(&self) -> (u64, &str, &str) {
        (self.round, &self.life, &self.world)
    }

    /// Whether another node's last world is this one.
    pub fn is_same_world(&self, other: &Self) -> bool {
        self.order() == other.order()
    }

    /// Whether this is the world that a round's record speaks of.
    pub fn is_of(&self, round: &RoundRecord) -> bool {
        self.order() == (round.round, &round.life, &round.world)
    }
}

/// A node, at `nodes/<id>`; goes with its lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// What people call it.
    pub name: String,
    /// Where it is reached.
    pub address: String,
    /// The port that it would serve as master.
    pub port: u16,
    /// Where it stands, for example a rack or a zone.
    pub topology: Option<String>,
    /// Its `min_nodes`.
    pub min: u32,
    /// Its `max_nodes`.
    pub max: u32,
    /// It wants a world of this round or a later one.
    pub seeks: u64,
    /// The world it was in when it wrote this.
    pub world: Option<LastWorld>,
    /// It is about to go.
    pub leaving: bool,
    /// It hosts the service.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hosts: bool,
    /// Which submission of the job it is of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub submission: Option<String>,
}
impl Record for NodeRecord {}

/// One node of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanEntry {
    /// The node.
    pub id: NodeId,
    /// Its name, unique in the world.
    pub name: String,
    /// Its topology label.
    pub label: Option<String>,
    /// Its rank.
    pub rank: u32,
}

/// A shard of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanShard {
    /// The nodes whose id hashes to it.
    pub nodes: Vec<PlanEntry>,
}
impl Record for PlanShard {}

/// Why and how a round was formed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HistoryRecord {
    /// The round.
    pub round: u64,
    /// Why it was formed.
    pub why: String,
    /// How long the run was without a world, in seconds: from the change, or from the first node that sought.
    pub took_seconds: f64,
    /// How many nodes it has.
    pub size: u32,
    /// How many of them are new in it.
    pub newcomers: u32,
    /// Who formed it.
    pub coordinator: String,
    /// The first names, by rank.
    pub names: Vec<String>,
    /// When it was formed, in seconds since 1970 by the clock of the coordinator's machine. For messages only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub formed_at: Option<u64>,
}
impl Record for HistoryRecord {}

/// How many names a record or a message carries at most.
pub const NAMES: usize = 20;

/// Names for a message: the first few, and how many more.
pub fn some_names<'name>(names: impl IntoIterator<Item = &'name str>) -> String {
    let names: Vec<&str> = names.into_iter().collect();
    let shown = names.iter().take(NAMES).copied().collect::<Vec<_>>().join(", ");
    match names.len().checked_sub(NAMES) {
        Some(more) if more > 0 => format!("{shown} and {more} more"),
        _ => shown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn a_field_of_a_later_minor_version_is_skipped() {
        let mut value: serde_json::Value = serde_json::from_slice(&closed().encode()).unwrap();
        value["of the future"] = 1.into();
        assert_eq!(ClosedRecord::decode("k", value.to_string().as_bytes()).unwrap(), closed());
    }

    #[test]
    fn a_field_that_is_too_long_is_an_error_that_names_it() {
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
