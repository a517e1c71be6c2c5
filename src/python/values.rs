//! `Member`, `Change` and `Closed`: what a node learns, as values that Python can compare, hash and pickle.

use pyo3::{exceptions::PyIndexError, prelude::*, types::PyType};

use crate::protocol::records::{ChangeKind, ChangeRecord, ClosedRecord, PlanEntry, WorldMembership};

/// One node of a world.
#[derive(Debug, PartialEq, Eq, Hash)]
#[pyclass(frozen, eq, hash, get_all, module = "lattice_rdzv")]
pub(super) struct Member {
    /// Rank of the node, from 0 to the size of its world - 1.
    rank: u32,
    /// Name of the node, with `#2` and so on if another node of the world has the same name.
    name: String,
    /// Random id of the node, which no other node has.
    node_id: String,
    /// Label of the node's place, such as a rack, or `None`.
    topology: Option<String>,
}

impl From<PlanEntry> for Member {
    fn from(entry: PlanEntry) -> Self {
        Self { rank: entry.rank, name: entry.name, node_id: entry.id.to_string(), topology: entry.label }
    }
}

#[pymethods]
impl Member {
    #[new]
    #[pyo3(signature = (rank, name, node_id, topology = None))]
    fn new(rank: u32, name: String, node_id: String, topology: Option<String>) -> Self {
        Self { rank, name, node_id, topology }
    }

    fn __reduce__<'py>(
        slf: &Bound<'py, Self>,
    ) -> (Bound<'py, PyType>, (u32, String, String, Option<String>)) {
        let Self { rank, name, node_id, topology } = slf.get();
        (slf.get_type(), (*rank, name.clone(), node_id.clone(), topology.clone()))
    }

    fn __repr__(&self) -> String {
        format!("<Member rank={} name={:?}>", self.rank, self.name)
    }
}

/// Why the world that a node is in is about to be replaced.
#[derive(Debug, PartialEq, Eq, Hash)]
#[pyclass(frozen, eq, hash, get_all, module = "lattice_rdzv")]
pub(super) struct Change {
    /// Number of the round that is about to be replaced.
    round: u64,
    /// Kind of the change: `lost`, `leaving`, `seeking`, `newcomers`, `closed` or `replaced`.
    kind: String,
    /// Reason in words, such as `lost node-3` or `2 nodes want to join: node-4, node-5`.
    why: String,
    /// Names of the first nodes that the change is about.
    nodes: Vec<String>,
}

impl From<(WorldMembership, ChangeRecord)> for Change {
    fn from((world, record): (WorldMembership, ChangeRecord)) -> Self {
        let kind = match record.kind {
            ChangeKind::Lost => "lost",
            ChangeKind::Leaving => "leaving",
            ChangeKind::Seeking => "seeking",
            ChangeKind::Newcomers => "newcomers",
            ChangeKind::Closed => "closed",
            ChangeKind::Replaced => "replaced",
        };
        Self { round: world.round, kind: kind.to_owned(), why: record.why, nodes: record.names }
    }
}

#[pymethods]
impl Change {
    #[new]
    fn new(round: u64, kind: String, why: String, nodes: Vec<String>) -> Self {
        Self { round, kind, why, nodes }
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> (Bound<'py, PyType>, (u64, String, String, Vec<String>)) {
        let Self { round, kind, why, nodes } = slf.get();
        (slf.get_type(), (*round, kind.clone(), why.clone(), nodes.clone()))
    }

    fn __repr__(&self) -> String {
        format!("<Change round={} kind={:?} why={:?}>", self.round, self.kind, self.why)
    }
}

/// How a run was closed. Also a sequence of the three fields.
#[derive(Debug, PartialEq, Eq, Hash)]
#[pyclass(frozen, eq, hash, get_all, module = "lattice_rdzv")]
pub(super) struct Closed {
    /// Outcome of the run: `succeeded`, `failed` or `ended`.
    outcome: String,
    /// Name of the node or command that closed the run.
    by: String,
    /// Reason that it gave, or an empty string.
    why: String,
}

impl From<ClosedRecord> for Closed {
    fn from(closed: ClosedRecord) -> Self {
        Self { outcome: closed.outcome.as_str().to_owned(), by: closed.by, why: closed.why }
    }
}

#[pymethods]
impl Closed {
    #[new]
    fn new(outcome: String, by: String, why: String) -> Self {
        Self { outcome, by, why }
    }

    /// Makes `outcome, by, why = run.closed` possible.
    fn __getitem__(&self, index: usize) -> PyResult<&str> {
        let fields = [&self.outcome, &self.by, &self.why];
        fields.get(index).map(|field| field.as_str()).ok_or_else(|| PyIndexError::new_err(index))
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> (Bound<'py, PyType>, (String, String, String)) {
        let Self { outcome, by, why } = slf.get();
        (slf.get_type(), (outcome.clone(), by.clone(), why.clone()))
    }

    fn __repr__(&self) -> String {
        format!("<Closed outcome={:?} by={:?} why={:?}>", self.outcome, self.by, self.why)
    }
}
