//! A server of this process: how callers wait for its end, and how it is stopped once.

use std::sync::{Arc, Mutex};

use pyo3::prelude::*;
use tokio::{sync::watch, time::timeout};

use super::{calls::Call, errors::LeftError, runtime::OfProcess, seconds::optional_duration};
use crate::lock::lock;

/// A server until it is stopped. A forked child has none.
#[derive(Debug)]
pub(super) struct Served<T>(OfProcess<Own<T>>);

#[derive(Debug)]
struct Own<T> {
    server: Mutex<Option<T>>,
    stopped: Arc<watch::Sender<bool>>,
}

/// Notifies waiting callers that the server has stopped, even if the stop was interrupted.
struct Stopping(Arc<watch::Sender<bool>>);

impl Drop for Stopping {
    fn drop(&mut self) {
        self.0.send_replace(true);
    }
}

impl<T: Send + 'static> Served<T> {
    pub(super) fn new(server: T) -> Self {
        Self(OfProcess::new(Own { server: Mutex::new(Some(server)), stopped: Arc::default() }))
    }

    /// Waits until it is stopped. False if the time limit expires first.
    pub(super) fn wait(&self, timeout_seconds: Option<f64>) -> PyResult<Call> {
        let limit = optional_duration(timeout_seconds)?;
        let Some(own) = self.0.in_this_process() else {
            return Err(LeftError::new_err("this server runs in another process, which started it"));
        };
        let mut stopped = own.stopped.subscribe();
        let work = async move {
            let stopped = stopped.wait_for(|stopped| *stopped);
            match limit {
                None => stopped.await.is_ok(),
                Some(limit) => timeout(limit, stopped).await.is_ok(),
            }
        };
        Ok(Call::wait_for(work, |_, stopped| Ok(stopped)))
    }

    /// Stops it, unless this is a forked child or it was stopped before.
    pub(super) fn stop<F>(&self, stop: impl FnOnce(T) -> F + Send + 'static) -> Call
    where
        F: Future<Output = ()> + Send,
    {
        let own = self.0.in_this_process();
        let taken = own.and_then(|own| Some((lock(&own.server).take()?, Stopping(Arc::clone(&own.stopped)))));
        let work = async move {
            if let Some((server, _stopping)) = taken {
                stop(server).await;
            }
        };
        Call::write(work, |_, ()| Ok(()))
    }
}
