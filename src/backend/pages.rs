//! Reads many keys at one revision, page by page, so that no response is larger than a client accepts.

use super::{Backend, KeyValue, Keys, Range, Revision};
use crate::error::{Error, Result};

/// Reads the keys of a range, at most `limit` at a time. Also returns the revision. A page whose values are larger than a
/// response is read again with half as many keys.
///
/// # Errors
/// Those of reading. [`Error::FutureRevision`] if the history was compacted between two pages, so that another attempt
/// must start with the first page.
pub async fn read_pages(backend: &dyn Backend, mut range: Range) -> Result<(Vec<KeyValue>, Revision)> {
    let mut items: Vec<KeyValue> = Vec::new();
    loop {
        let mut page = match backend.range(range.clone()).await {
            Err(Error::Compacted { .. }) => return Err(Error::FutureRevision),
            Err(Error::Rejected { .. }) if !range.keys_only && range.limit > 1 => {
                range.limit /= 2;
                continue;
            }
            page => page?,
        };
        if range.revision == 0 {
            range.revision = page.header.revision;
        }
        items.append(&mut page.items);
        let Some(last) = items.last().filter(|_| page.more) else { return Ok((items, range.revision)) };
        let next = [last.key.as_slice(), &[0]].concat();
        range.keys = Keys::Span(next, range.keys.end());
    }
}
