//! What a waiting node logs: which nodes are there, how many are missing, and until when it waits.

use std::{pin::Pin, time::Duration};

use crate::{
    backend::{Keys, Range},
    error::Result,
    protocol::{
        records::{HistoryRecord, NAMES, NodeRecord, Record, RoundRecord, some_names},
        submission::are_rivals,
        waiting::WaitingRecord,
    },
    run::{Context, decode_found},
};

/// How many records are read where no coordinator has described them.
const READ: i64 = 20;

/// When a waiting node speaks first, and after which time again.
pub(super) const FIRST_LINE: Duration = Duration::from_secs(5);
/// See [`FIRST_LINE`].
pub(super) const NEXT_LINES: Duration = Duration::from_secs(30);

/// A log line that is being written.
pub(super) type Line<'node> = Pin<Box<dyn Future<Output = ()> + Send + 'node>>;

/// Continues to write the line until it is complete; waits without end if there is none. Cancel-safe.
pub(super) async fn finished(line: &mut Option<Line<'_>>) {
    match line {
        Some(line) => line.await,
        None => std::future::pending().await,
    }
}

/// Which nodes are there and how many are missing, as far as the service answers.
pub(super) async fn describe(context: &Context) -> String {
    let settings = &context.settings;
    let (min, max) = (settings.min_nodes, settings.max_nodes);
    let (waiting, more) = match read(context).await {
        Ok(read) => read,
        Err(error) => return format!("nobody can be counted, because {error}"),
    };
    let WaitingRecord { here, names, left_out, mut reasons } = waiting;
    let count = if more { format!("more than {here}") } else { here.to_string() };
    let mut who = some_names(names.iter().map(String::as_str));
    if here > names.len() {
        who = format!("{who} and {} more", here - names.len());
    }
    let missing = match (min as usize).checked_sub(here) {
        Some(missing) if missing > 0 => format!("{missing} missing of at least {min}"),
        _ => match settings.sizes().describe(here) {
            Some(sizes) => sizes,
            None => format!("at least {min} needed, at most {max} taken"),
        },
    };
    if reasons.len() == NAMES && left_out > NAMES {
        reasons.push(format!("and {} more", left_out - NAMES));
    }
    let left_out =
        if reasons.is_empty() { String::new() } else { format!("; left out: {}", reasons.join("; ")) };
    let hint = if max == 1 && here > 1 {
        "; max_nodes is 1: for a job of several nodes give every agent the same `--nnodes`, as in `--nnodes 2`"
    } else {
        ""
    };
    let refused = context.refusals.describe();
    format!("{count} here ({who}), {missing}{left_out}{hint}{refused}")
}

/// Reads the coordinator's description, or, if there is none, some records, and whether there are more of them.
async fn read(context: &Context) -> Result<(WaitingRecord, bool)> {
    let key = context.keys.waiting();
    let described = context.backend.range(Range::new(Keys::one(key.clone()))).await?;
    if let Some(Ok(record)) = described.items.first().map(|item| WaitingRecord::decode(&key, &item.value)) {
        return Ok((record, false));
    }
    let settings = &context.settings;
    let range = Range { limit: READ, ..Range::new(Keys::prefix(context.keys.nodes())) };
    let answer = context.backend.range(range).await?;
    let mut waiting = WaitingRecord::default();
    for item in &answer.items {
        match NodeRecord::decode(&String::from_utf8_lossy(&item.key), &item.value) {
            Ok(record) => waiting.count(&record, settings.sizes()),
            Err(error) => waiting.leave_out(error.to_string()),
        }
    }
    Ok((waiting, answer.more))
}

/// That the run is full, for how long and with which nodes, as far as the service answers, and what to do if that is not
/// meant.
pub(super) async fn describe_full(context: &Context, round: &RoundRecord) -> String {
    let key = context.keys.history_round(&round.life, round.round);
    let found = context.backend.range(Range::new(Keys::one(key.as_str()))).await;
    let history: Option<HistoryRecord> =
        found.ok().and_then(|found| decode_found(&key, &found.items).ok().flatten());
    let formed_at = history.as_ref().and_then(|history| history.formed_at);
    let seconds =
        context.entropy.unix_seconds().zip(formed_at).map(|(now, formed)| now.saturating_sub(formed));
    let sizes = round.sizes();
    if round.size < round.max && sizes.is_restricted() {
        let here = read(context).await.ok().and_then(|(waiting, _)| sizes.describe(waiting.here));
        return between_sizes(&context.settings.run.run_id, round, here);
    }
    full(
        &context.settings.run.run_id,
        context.settings.submission.as_deref(),
        round,
        history.as_ref(),
        seconds,
    )
}

/// That this node is a spare until enough nodes wait for the next size.
fn between_sizes(run_id: &str, round: &RoundRecord, here: Option<String>) -> String {
    let RoundRecord { round: number, size, .. } = round;
    let sizes = round.sizes();
    let here = here.map_or_else(String::new, |here| format!(": {here}"));
    format!("run `{run_id}` has {size} of {sizes} nodes in round {number}, and this node is a spare{here}")
}

fn full(
    run_id: &str,
    submission: Option<&str>,
    round: &RoundRecord,
    history: Option<&HistoryRecord>,
    seconds: Option<u64>,
) -> String {
    let RoundRecord { round: number, size, max, .. } = round;
    let names = history.map_or_else(String::new, |history| {
        let more = (*size as usize).saturating_sub(history.names.len());
        let more = if more == 0 { String::new() } else { format!(" and {more} more") };
        format!(" ({}{more})", history.names.join(", "))
    });
    let time = seconds.map_or_else(String::new, |seconds| format!(" for {seconds} s"));
    let advice = match (round.submission.as_deref(), submission) {
        (one, other) if are_rivals(one, other) => format!(
            "it belongs to submission `{}`, and this node, of submission `{}`, is refused unless those nodes end soon",
            one.unwrap_or_default(),
            other.unwrap_or_default()
        ),
        _ => "this node is a spare, which gets a place when another node goes; if it belongs to another job, stop it and \
              choose another run id (`--rdzv-id`, `run_id`)"
            .to_owned(),
    };
    format!(
        "run `{run_id}` is full with {size} of at most {max} nodes{names} in round {number}{time}: {advice}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_run_is_described_as_far_as_it_is_known() {
        let round = RoundRecord {
            round: 3,
            size: 2,
            submission: Some("one".into()),
            ..RoundRecord::forming("l".into(), 2, 2, "a".into())
        };
        let history = HistoryRecord {
            round: 3,
            why: String::new(),
            took_seconds: 0.0,
            size: 2,
            newcomers: 0,
            coordinator: "a".into(),
            names: vec!["a".into(), "b".into()],
            formed_at: Some(1_795_923_612),
        };
        let message = full("job", None, &round, Some(&history), Some(340));
        let begin = "run `job` is full with 2 of at most 2 nodes (a, b) in round 3 for 340 s: ";
        assert!(message.starts_with(begin) && message.contains("`--rdzv-id`"), "{message}");
        let message = full("job", Some("two"), &round, None, None);
        assert!(message.starts_with("run `job` is full with 2 of at most 2 nodes in round 3: "), "{message}");
        assert!(message.contains("submission `one`") && message.contains("submission `two`"), "{message}");
        let many = full("job", Some("one"), &RoundRecord { size: 30, ..round }, Some(&history), None);
        assert!(many.contains("(a, b and 28 more)") && many.contains("spare"), "{many}");
    }
}
