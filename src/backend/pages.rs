//! Reads all keys with a prefix at one revision, page by page, so that no response is larger than a client accepts.

use super::{Backend, KeyValue, Keys, Range, Revision};
use crate::error::{Error, Result};

/// Reads the keys under `prefix`, which ends in `/`, at a revision (0: the latest). Also returns the revision.
///
/// # Errors
/// Those of reading. [`Error::FutureRevision`] if the history was compacted between two pages, so that another attempt
/// must start with the first page.
pub async fn read_pages(
    backend: &dyn Backend,
    prefix: String,
    revision: Revision,
    keys_only: bool,
    page: i64,
) -> Result<(Vec<KeyValue>, Revision)> {
    // `0` comes after `/` in ASCII.
    let end = format!("{}0", prefix.trim_end_matches('/')).into_bytes();
    let mut from = prefix.into_bytes();
    let mut at = revision;
    let mut items: Vec<KeyValue> = Vec::new();
    loop {
        let range =
            Range { keys: Keys::Span(from.clone(), end.clone()), revision: at, limit: page, keys_only };
        let answer = match backend.range(range).await {
            Err(Error::Compacted { .. }) => return Err(Error::FutureRevision),
            answer => answer?,
        };
        if at == 0 {
            at = answer.header.revision;
        }
        items.extend(answer.items);
        match items.last() {
            Some(last) if answer.more => {
                from.clone_from(&last.key);
                from.push(0);
            }
            _ => return Ok((items, at)),
        }
    }
}
