//! Locks that a panic of another thread does not make unusable.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a value that no thread leaves half written, because it is replaced as a whole or changed by operations that do
/// not panic. It can therefore be used after a panic of a thread that held the lock.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
