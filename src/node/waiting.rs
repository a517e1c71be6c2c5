//! What a waiting node says: who is here, how many are missing, and until when it waits.

use std::time::Duration;

use crate::{
    backend::{Keys, Range},
    protocol::records::{NodeRecord, Record, some_names},
    run::Context,
};

/// How many records are read for a message.
const READ: i64 = 20;

/// When a waiting node speaks first, and after which time again.
pub(super) const FIRST_LINE: Duration = Duration::from_secs(5);
/// See [`FIRST_LINE`].
pub(super) const NEXT_LINES: Duration = Duration::from_secs(30);

/// Who is here and how many are missing, as far as the service answers.
pub(super) async fn describe(context: &Context) -> String {
    let settings = &context.settings;
    let (min, max) = (settings.min_nodes, settings.max_nodes);
    let range = Range { limit: READ, ..Range::new(Keys::prefix(context.keys.nodes())) };
    let (items, more) = match context.backend.range(range).await {
        Ok(answer) => (answer.items, answer.more),
        Err(error) => return format!("nobody can be counted, because {error}"),
    };
    let mut names = Vec::new();
    let mut others = Vec::new();
    for item in &items {
        match NodeRecord::decode(&String::from_utf8_lossy(&item.key), &item.value) {
            Ok(record) if (record.min, record.max) == (min, max) => names.push(record.name),
            Ok(record) => others.push(format!("{} with nnodes {}:{}", record.name, record.min, record.max)),
            Err(error) => others.push(error.to_string()),
        }
    }
    let here = names.len();
    let count = if more { format!("more than {here}") } else { here.to_string() };
    let who = some_names(names.iter().map(String::as_str));
    let missing = match (min as usize).checked_sub(here) {
        Some(missing) if missing > 0 => format!("{missing} missing of at least {min}"),
        _ => format!("at least {min} needed, at most {max} taken"),
    };
    let left_out =
        if others.is_empty() { String::new() } else { format!("; left out: {}", others.join("; ")) };
    let hint = if max == 1 && here > 1 {
        "; max_nodes is 1: for a job of several nodes give every agent the same `--nnodes`, as in `--nnodes 2`"
    } else {
        ""
    };
    let refused = context.refusals.describe();
    format!("{count} here ({who}), {missing}{left_out}{hint}{refused}")
}
