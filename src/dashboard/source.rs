//! The source of the runs of a dashboard: a service, through one connection for all runs, or a server of this process.

use std::{sync::Arc, time::Duration};

use tokio::{sync::Mutex, time::Instant};

use crate::{
    backend::Backend,
    error::Result,
    protocol::keys::RunKeys,
    run::Entropy,
    server::Server,
    settings::RunName,
    status::{
        ListedRun, Reader, Source,
        picture::ServiceStatus,
        reading::{list_runs, list_tenants},
    },
};

/// How long a read in this process may take.
const LOCAL_LIMIT: Duration = Duration::from_secs(5);
/// How long a failed attempt to connect applies to all callers.
const FAILURE_LASTS: Duration = Duration::from_millis(400);

/// The source of runs.
#[derive(Debug)]
pub struct RunSource {
    place: Place,
    entropy: Entropy,
}

#[derive(Debug)]
enum Place {
    /// The runs of one tenant at a service.
    Service { source: Box<Source>, tenant: String, found: Mutex<Found> },
    /// The runs of all tenants in a server of this process.
    Server { backend: Arc<dyn Backend>, endpoint: String, version: String },
}

/// The result of the last attempt to connect.
#[derive(Debug, Default)]
enum Found {
    #[default]
    Nothing,
    Connected(Arc<dyn Backend>),
    Failed(Instant, crate::Error),
}

impl RunSource {
    /// The runs of a tenant at a service.
    pub fn of_service(source: Source, tenant: String) -> Self {
        let entropy = source.entropy.clone();
        Self { place: Place::Service { source: Box::new(source), tenant, found: Mutex::default() }, entropy }
    }

    /// The runs in a server of this process.
    pub fn of_server(server: &Server) -> Self {
        let (endpoint, version) = (server.endpoint().to_owned(), server.version().to_owned());
        Self {
            place: Place::Server { backend: server.backend(), endpoint, version },
            entropy: Entropy::from_system(),
        }
    }

    /// How long reading a run may take.
    pub(super) fn limit(&self) -> Duration {
        match &self.place {
            Place::Service { source, .. } => source.limit,
            Place::Server { .. } => LOCAL_LIMIT,
        }
    }

    /// The wall clock.
    pub(super) fn now(&self) -> Duration {
        self.entropy.unix_time().unwrap_or_default()
    }

    /// The endpoint as far as it is known.
    pub(super) fn endpoint(&self) -> String {
        match &self.place {
            Place::Server { endpoint, .. } => endpoint.clone(),
            Place::Service { found, .. } => match found.try_lock().as_deref() {
                Ok(Found::Connected(backend)) => backend.endpoint(),
                _ => String::new(),
            },
        }
    }

    /// Names a server of this process as its clients see it.
    pub(super) fn label(&self, service: &mut ServiceStatus) {
        if let Place::Server { endpoint, version, .. } = &self.place {
            service.endpoint.clone_from(endpoint);
            service.version = Some(version.clone());
        }
    }

    /// Whether this is a tenant whose runs are shown.
    pub(super) fn has_tenant(&self, name: &str) -> bool {
        match &self.place {
            Place::Service { tenant, .. } => tenant == name,
            Place::Server { .. } => true,
        }
    }

    /// The connection, which all runs share.
    async fn backend(&self) -> Result<Arc<dyn Backend>> {
        let (source, tenant, found) = match &self.place {
            Place::Server { backend, .. } => return Ok(Arc::clone(backend)),
            Place::Service { source, tenant, found } => (source, tenant, found),
        };
        let mut found = found.lock().await;
        match &*found {
            Found::Connected(backend) => return Ok(Arc::clone(backend)),
            Found::Failed(at, error) if at.elapsed() < FAILURE_LASTS => return Err(error.clone()),
            _ => {}
        }
        match source.connect(&RunKeys::new(tenant, "")).await {
            Ok(backend) => {
                *found = Found::Connected(Arc::clone(&backend));
                Ok(backend)
            }
            Err(error) => {
                *found = Found::Failed(Instant::now(), error.clone());
                Err(error)
            }
        }
    }

    /// Reads a run.
    pub(super) async fn reader(&self, run: &RunName) -> Result<Reader> {
        let (backend, keys) = (self.backend().await?, RunKeys::new(&run.tenant, &run.run_id));
        Ok(Reader { backend, keys, run: run.clone(), entropy: self.entropy.clone() })
    }

    /// The runs that exist.
    pub(super) async fn list(&self) -> Result<Vec<(RunName, ListedRun)>> {
        let backend = self.backend().await?;
        let tenants = match &self.place {
            Place::Service { tenant, .. } => vec![tenant.clone()],
            Place::Server { .. } => list_tenants(backend.as_ref()).await?,
        };
        let mut runs = Vec::new();
        for tenant in tenants {
            for listed in list_runs(backend.as_ref(), &tenant).await? {
                runs.push((RunName { tenant: tenant.clone(), run_id: listed.run_id.clone() }, listed));
            }
        }
        Ok(runs)
    }
}
