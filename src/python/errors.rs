//! Maps errors to exception classes. The classes are defined in Python, in `lattice_rdzv.errors`.

use pyo3::{import_exception, prelude::*};

use crate::{error::Error, protocol::printable::printable};

import_exception!(lattice_rdzv.errors, ClosedError);
import_exception!(lattice_rdzv.errors, JoinTimeoutError);
import_exception!(lattice_rdzv.errors, LeftError);
import_exception!(lattice_rdzv.errors, OutcomeUnknownError);
import_exception!(lattice_rdzv.errors, RecordError);
import_exception!(lattice_rdzv.errors, RendezvousError);
import_exception!(lattice_rdzv.errors, SettingsError);
import_exception!(lattice_rdzv.errors, StoreResetError);
import_exception!(lattice_rdzv.errors, StoreTimeoutError);
import_exception!(lattice_rdzv.errors, UnreachableError);

/// Imports the classes now. Otherwise the first use would import them and execute Python code, possibly in a daemon
/// thread while the interpreter exits.
pub(super) fn resolve(py: Python<'_>) -> PyResult<()> {
    py.import("lattice_rdzv.errors")?;
    let _ = (
        py.get_type::<ClosedError>(),
        py.get_type::<JoinTimeoutError>(),
        py.get_type::<LeftError>(),
        py.get_type::<OutcomeUnknownError>(),
        py.get_type::<RecordError>(),
        py.get_type::<RendezvousError>(),
        py.get_type::<SettingsError>(),
        py.get_type::<StoreResetError>(),
        py.get_type::<StoreTimeoutError>(),
        py.get_type::<UnreachableError>(),
    );
    Ok(())
}

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        // A message may repeat names and keys from other processes.
        let message = printable(&error.to_string()).into_owned();
        match error {
            Error::Setting { .. } | Error::Mismatch { .. } => SettingsError::new_err(message),
            Error::NotFound { .. }
            | Error::Unavailable { .. }
            | Error::NotEtcd { .. }
            | Error::Denied { .. } => UnreachableError::new_err(message),
            Error::Record { .. } => RecordError::new_err(message),
            Error::Closed { outcome, by, why, .. } => ClosedError::new_err((message, outcome, by, why)),
            Error::Timeout { .. } => JoinTimeoutError::new_err(message),
            Error::StoreReset { .. } => StoreResetError::new_err(message),
            Error::OutcomeUnknown { .. } => OutcomeUnknownError::new_err(message),
            Error::Left => LeftError::new_err(message),
            Error::LeaseNotFound { .. }
            | Error::LeaseExists { .. }
            | Error::Compacted { .. }
            | Error::FutureRevision
            | Error::Rejected { .. }
            | Error::Argument { .. } => RendezvousError::new_err(message),
        }
    }
}

/// Converts the errors of a store call, which has a separate exception for timeouts.
pub(super) fn store_error(error: Error) -> PyErr {
    match error {
        Error::Timeout { .. } => StoreTimeoutError::new_err(printable(&error.to_string()).into_owned()),
        other => other.into(),
    }
}
