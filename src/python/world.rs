//! `World`: the nodes of a completed round.

use std::sync::{Arc, OnceLock};

use pyo3::prelude::*;

use super::{calls::Call, joined::Joined, runtime::OfProcess, seconds::limit, store::Store, values::Member};
use crate::{node::WorldFacts, protocol::records::WorldMembership, store::Store as CoreStore};

/// The nodes of a completed round, as one of them sees it.
#[derive(Debug)]
#[pyclass(frozen, module = "lattice_rdzv._core")]
pub(super) struct World {
    run_id: String,
    facts: Arc<WorldFacts>,
    own: OfProcess<Own>,
}

/// The parts that a forked child must not use.
#[derive(Debug)]
struct Own {
    joined: Arc<Joined>,
    store: OnceLock<Arc<CoreStore>>,
    store_put_back: OnceLock<Arc<CoreStore>>,
}

impl World {
    pub(super) fn new(joined: Arc<Joined>, facts: Arc<WorldFacts>) -> Self {
        let run_id = joined.core.run_id().to_owned();
        let own = Own { joined, store: OnceLock::new(), store_put_back: OnceLock::new() };
        Self { run_id, facts, own: OfProcess::new(own) }
    }
}

#[pymethods]
impl World {
    /// Run ID, life, round, rank, size, master address, master port, and the reason for the round.
    fn fields(&self) -> (&str, &str, u64, u32, u32, &str, u16, &str) {
        let WorldFacts { place, master_address, master_port, why, .. } = &*self.facts;
        let WorldMembership { life, round, rank, size, .. } = place;
        (&self.run_id, life, *round, *rank, *size, master_address, *master_port, why)
    }

    #[getter]
    fn round(&self) -> u64 {
        self.facts.place.round
    }

    #[getter]
    fn rank(&self) -> u32 {
        self.facts.place.rank
    }

    #[getter]
    fn size(&self) -> u32 {
        self.facts.place.size
    }

    #[getter]
    fn master_address(&self) -> &str {
        &self.facts.master_address
    }

    #[getter]
    fn master_port(&self) -> u16 {
        self.facts.master_port
    }

    /// The store of this round.
    #[getter]
    fn store(&self) -> PyResult<Store> {
        let Own { joined, store, .. } = self.own.get()?;
        let store = store.get_or_init(|| joined.core.round_store(&self.facts, false));
        Ok(Store::of_round(Arc::clone(joined), Arc::clone(store)))
    }

    /// The store of this round, with its own writes restored if the service loses its data.
    fn store_put_back(&self) -> PyResult<Store> {
        let Own { joined, store_put_back, .. } = self.own.get()?;
        let store = store_put_back.get_or_init(|| joined.core.round_store(&self.facts, true));
        Ok(Store::of_round(Arc::clone(joined), Arc::clone(store)))
    }

    /// All members by rank, read from the service now.
    #[pyo3(signature = (*, timeout_seconds = 30.0))]
    fn members(&self, timeout_seconds: Option<f64>) -> PyResult<Call> {
        let limit = limit(timeout_seconds)?;
        let (joined, facts) = (Arc::clone(&self.own.get()?.joined), Arc::clone(&self.facts));
        let work = async move { joined.core.members(&facts, limit).await };
        Ok(Call::wait_for(work, |_, members| Ok(members?.into_iter().map(Member::from).collect::<Vec<_>>())))
    }

    fn __repr__(&self) -> String {
        let WorldMembership { round, rank, size, .. } = &self.facts.place;
        format!("<World run_id={:?} round={round} rank={rank} size={size}>", self.run_id)
    }
}
