//! `Settings`: the configuration of a run.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use pyo3::{
    exceptions::PyValueError,
    prelude::*,
    types::{PyMapping, PyString},
};

use crate::{
    discovery::{Source, candidates, pod_facts},
    hosting::hosted_at,
    run::Entropy,
    settings::{
        Arguments, Certificate, Credentials, NodeFailure, Origin, Settings as CoreSettings,
        unknown_variables, variables,
    },
    status,
};

/// The configuration of a run, validated and immutable.
#[derive(Debug)]
#[pyclass(frozen, module = "lattice_rdzv._core")]
pub(super) struct Settings {
    pub(super) core: CoreSettings,
    /// Kept because discovery reads it when it connects.
    pub(super) environment: BTreeMap<String, String>,
    endpoints: Vec<String>,
    endpoints_source: String,
    hosted_at: Option<String>,
    only_this_machine: bool,
}

impl Settings {
    /// How a run is read with these settings, within this time.
    pub(super) fn source(&self, limit: Duration) -> status::Source {
        let (connection, environment) = (self.core.connection.clone(), self.environment.clone());
        status::Source { connection, environment, entropy: Entropy::from_system(), limit }
    }
}

#[pymethods]
impl Settings {
    #[new]
    #[pyo3(signature = (arguments, environment, *, origin = "argument"))]
    fn new(
        arguments: &Bound<'_, PyMapping>,
        environment: &Bound<'_, PyMapping>,
        origin: &str,
    ) -> PyResult<Self> {
        let origin = match origin {
            "argument" => Origin::Argument,
            "--rdzv-conf" => Origin::RdzvConf,
            "command line" => Origin::CommandLine,
            other => {
                return Err(PyValueError::new_err(format!(
                    "`origin` must be `argument`, `--rdzv-conf` or `command line`, and is: `{other}`"
                )));
            }
        };
        let environment = texts(environment)?;
        let core = CoreSettings::resolve(&Arguments { values: texts(arguments)?, origin }, &environment)?;
        let discovery = candidates(&core.connection.asked(), &environment, &pod_facts(&environment))?;
        let source = discovery.sources.into_iter().next();
        // If the default outside a cluster does not respond, a node hosts at its other port.
        let hosted = source.as_ref().map(|source| source.otherwise.as_deref().unwrap_or(source));
        let (is_host, max_nodes) = (core.connection.is_host, core.max_nodes);
        let hosted = hosted.map(|source| hosted_at(source, is_host, max_nodes)).transpose()?.flatten();
        let hosted_at = hosted.map(ToString::to_string);
        let only_this_machine = source.as_ref().is_some_and(Source::is_this_machine);
        let (endpoints, endpoints_source) = source.map_or_else(Default::default, |source| {
            (source.endpoints.iter().map(ToString::to_string).collect(), source.name)
        });
        Ok(Self { core, environment, endpoints, endpoints_source, hosted_at, only_this_machine })
    }

    /// The environment variables that are read for settings that are not passed.
    #[staticmethod]
    fn variables() -> Vec<&'static str> {
        variables().collect()
    }

    /// The variables that are set, have no effect, and may be meant for this package, each with the most similar
    /// known variable.
    #[staticmethod]
    fn unknown_variables(
        environment: &Bound<'_, PyMapping>,
    ) -> PyResult<Vec<(String, Option<&'static str>)>> {
        let unknown = unknown_variables(&texts(environment)?);
        Ok(unknown.into_iter().map(|unknown| (unknown.name, unknown.meant)).collect())
    }

    #[getter]
    fn run_id(&self) -> &str {
        &self.core.run.run_id
    }

    #[getter]
    fn tenant(&self) -> &str {
        &self.core.run.tenant
    }

    #[getter]
    fn min_nodes(&self) -> u32 {
        self.core.min_nodes
    }

    #[getter]
    fn max_nodes(&self) -> u32 {
        self.core.max_nodes
    }

    #[getter]
    fn node_name(&self) -> &str {
        &self.core.node_name
    }

    #[getter]
    fn port(&self) -> Option<u16> {
        self.core.port
    }

    #[getter]
    fn port_range(&self) -> Option<(u16, u16)> {
        self.core.port_range
    }

    #[getter]
    fn lease_ttl_seconds(&self) -> f64 {
        Duration::as_secs_f64(&self.core.lease_ttl)
    }

    #[getter]
    fn join_timeout_seconds(&self) -> f64 {
        Duration::as_secs_f64(&self.core.join_timeout)
    }

    #[getter]
    fn close_timeout_seconds(&self) -> f64 {
        Duration::as_secs_f64(&self.core.close_timeout)
    }

    #[getter]
    fn leave_on_signal(&self) -> bool {
        self.core.leave_on_signal
    }

    #[getter]
    fn on_node_failure(&self) -> &'static str {
        match self.core.on_node_failure {
            NodeFailure::Close => "close",
            NodeFailure::Leave => "leave",
        }
    }

    /// The endpoints of the source that discovery chose, before names are resolved.
    #[getter]
    fn endpoints(&self) -> Vec<String> {
        self.endpoints.clone()
    }

    /// The endpoint at which a node would host the embedded server if no server responds there.
    #[getter]
    fn hosted_at(&self) -> Option<&str> {
        self.hosted_at.as_deref()
    }

    /// Whether these endpoints mean the local machine on every machine, so that no other machine can join.
    #[getter]
    fn only_this_machine(&self) -> bool {
        self.only_this_machine
    }

    /// The source of the endpoints, for example `environment LATTICE_RDZV_ENDPOINTS`.
    #[getter]
    fn endpoints_source(&self) -> &str {
        &self.endpoints_source
    }

    /// The files from which credentials are read when connecting, each with its setting.
    #[getter]
    fn credential_files(&self) -> Vec<(&'static str, PathBuf)> {
        let Credentials { cacert, certificate, login } = &self.core.connection.credentials;
        let mut files = Vec::new();
        files.extend(cacert.iter().map(|file| ("cacert", file.clone())));
        if let Some(Certificate { cert, key }) = certificate {
            files.extend([("cert", cert.clone()), ("key", key.clone())]);
        }
        files.extend(login.iter().map(|login| ("password_file", login.password_file.clone())));
        files
    }

    /// Settings of other backends that are accepted and have no effect here, each with its reason.
    #[getter]
    fn ignored(&self) -> Vec<(String, String)> {
        let ignored = self.core.ignored.iter();
        ignored.map(|ignored| (ignored.key.clone(), ignored.reason.clone())).collect()
    }

    fn __repr__(&self) -> String {
        let CoreSettings { run, min_nodes, max_nodes, .. } = &self.core;
        format!(
            "<Settings run_id={:?} tenant={:?} nnodes={min_nodes}:{max_nodes} endpoints={:?}>",
            run.run_id, run.tenant, self.endpoints
        )
    }
}

/// Returns the texts of a mapping. Bytes of the environment that are not UTF-8, which Python represents as
/// surrogates, become replacement characters. No variable that this package reads contains any.
fn texts(mapping: &Bound<'_, PyMapping>) -> PyResult<BTreeMap<String, String>> {
    let text = |value: Bound<'_, PyAny>| -> PyResult<String> {
        Ok(value.cast::<PyString>()?.to_string_lossy().into_owned())
    };
    let mut texts = BTreeMap::new();
    for item in mapping.items()?.iter() {
        let (key, value): (Bound<'_, PyAny>, Bound<'_, PyAny>) = item.extract()?;
        texts.insert(text(key)?, text(value)?);
    }
    Ok(texts)
}
