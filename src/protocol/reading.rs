//! Records that a transaction reads. Each handle knows its key and its record, and finds its own response.

use std::marker::PhantomData;

use super::records::Record;
use crate::{
    backend::{Get, Txn, TxnResult},
    error::Result,
};

/// A record that a transaction reads in both branches.
#[derive(Clone, Debug)]
pub struct RecordGet<R> {
    key: String,
    get: Get,
    record: PhantomData<fn() -> R>,
}

impl<R: Record> RecordGet<R> {
    /// Begins a transaction with this read.
    pub fn first(key: String) -> (Txn, Self) {
        let (txn, get) = Txn::read(key.as_str());
        (txn, Self { key, get, record: PhantomData })
    }

    /// Adds this read to a transaction.
    pub fn next(txn: &mut Txn, key: String) -> Self {
        let get = txn.get(key.as_str());
        Self { key, get, record: PhantomData }
    }

    /// The record. `None` if it is absent.
    ///
    /// # Errors
    /// [`crate::Error::Record`] if the record exists and cannot be read.
    pub fn record(&self, answer: &TxnResult) -> Result<Option<R>> {
        self.get.item(answer).map(|item| R::decode(&self.key, &item.value)).transpose()
    }
}
