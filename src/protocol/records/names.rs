//! Names and numbers of nodes in records and messages. There may be as many names as nodes.

/// The maximum number of names in a record or a message.
pub const NAMES: usize = 20;

/// Names for a message: the first few, and the number of further names.
pub fn some_names<'name>(names: impl IntoIterator<Item = &'name str>) -> String {
    let names: Vec<&str> = names.into_iter().collect();
    let shown = names.iter().take(NAMES).copied().collect::<Vec<_>>().join(", ");
    match names.len().checked_sub(NAMES) {
        Some(more) if more > 0 => format!("{shown} and {more} more"),
        _ => shown,
    }
}

/// Names for a message, of which only the first ones of `total` are known.
pub fn names_of(names: &[String], total: usize) -> String {
    let shown = some_names(names.iter().map(String::as_str));
    match total.saturating_sub(names.len()) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// A reason at the end of a message, or nothing without a reason.
pub(crate) fn after_colon(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(": {reason}") }
}

/// `1 node`, or `4 nodes`.
pub fn nodes_text(count: usize) -> String {
    if count == 1 { "1 node".to_owned() } else { format!("{count} nodes") }
}
