//! Time-outs as Python passes them.

use std::time::Duration;

use pyo3::{exceptions::PyValueError, prelude::*};

use crate::settings::LONGEST_SECONDS;

/// From seconds; infinity, and what is longer than any setting may be, is the longest.
///
/// # Errors
/// `ValueError` for what is no number.
pub(super) fn duration(seconds: f64) -> PyResult<Duration> {
    if seconds.is_nan() {
        return Err(PyValueError::new_err("`timeout_seconds` must be a number, and is: nan"));
    }
    Ok(Duration::from_secs_f64(seconds.clamp(0.0, LONGEST_SECONDS)))
}

/// The same where no limit may be given.
pub(super) fn optional_duration(seconds: Option<f64>) -> PyResult<Option<Duration>> {
    seconds.map(duration).transpose()
}

/// The same where `None` means no limit.
pub(super) fn limit(seconds: Option<f64>) -> PyResult<Duration> {
    duration(seconds.unwrap_or(f64::INFINITY))
}
