//! Names in records and messages, of which there may be as many as nodes.

/// How many names a record or a message carries at most.
pub const NAMES: usize = 20;

/// Names for a message: the first few, and how many more.
pub fn some_names<'name>(names: impl IntoIterator<Item = &'name str>) -> String {
    let names: Vec<&str> = names.into_iter().collect();
    let shown = names.iter().take(NAMES).copied().collect::<Vec<_>>().join(", ");
    match names.len().checked_sub(NAMES) {
        Some(more) if more > 0 => format!("{shown} and {more} more"),
        _ => shown,
    }
}
