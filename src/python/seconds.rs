//! Timeouts as Python passes them.

use std::time::Duration;

use pyo3::{exceptions::PyValueError, prelude::*};

use crate::settings::LONGEST_SECONDS;

/// Converts seconds. Infinity, and values above the maximum of all settings, become that maximum.
///
/// # Errors
/// `ValueError` if it is not a number.
pub(super) fn duration(seconds: f64) -> PyResult<Duration> {
    if seconds.is_nan() {
        return Err(PyValueError::new_err("`timeout_seconds` must be a number, and is: nan"));
    }
    Ok(Duration::from_secs_f64(seconds.clamp(0.0, LONGEST_SECONDS)))
}

/// As [`duration`], for an optional limit.
pub(super) fn optional_duration(seconds: Option<f64>) -> PyResult<Option<Duration>> {
    seconds.map(duration).transpose()
}

/// As [`duration`], where `None` means no limit.
pub(super) fn limit(seconds: Option<f64>) -> PyResult<Duration> {
    duration(seconds.unwrap_or(f64::INFINITY))
}
