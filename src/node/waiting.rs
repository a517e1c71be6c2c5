//! What a waiting node logs: which nodes are present, how many are missing, and until when it waits.

use std::{pin::Pin, time::Duration};

use crate::{
    backend::{Keys, Range},
    error::Result,
    protocol::{
        records::{HistoryRecord, NAMES, NodeRecord, Record, RoundRecord, are_rivals, names_of},
        waiting::WaitingRecord,
    },
    run::{Context, decode_found},
};

/// How many records are read if no coordinator has described them.
const READ: i64 = 20;

/// When a waiting node logs its first line, unless [`Node::log_waiting_every`](super::Node::log_waiting_every) sets a
/// shorter interval.
pub(super) const FIRST_LINE: Duration = Duration::from_secs(5);
/// The default interval of the next lines.
pub(super) const NEXT_LINES: Duration = Duration::from_secs(30);

/// A log line that is being written.
pub(super) type Line<'node> = Pin<Box<dyn Future<Output = ()> + Send + 'node>>;

/// Continues to write the line until it is complete. Never returns if there is none. Cancel-safe.
pub(super) async fn finished(line: &mut Option<Line<'_>>) {
    match line {
        Some(line) => line.await,
        None => std::future::pending().await,
    }
}

/// Which nodes are present and how many are missing, as far as the service responds.
pub(super) async fn describe(context: &Context) -> String {
    let settings = &context.settings;
    let (min, max) = (settings.min_nodes, settings.max_nodes);
    let (waiting, more) = match read(context).await {
        Ok(read) => read,
        Err(error) => return format!("the nodes cannot be counted, because {error}"),
    };
    let now_ms = context.entropy.unix_time().and_then(|now| u64::try_from(now.as_millis()).ok());
    let full = Some(max).filter(|max| waiting.here < *max as usize);
    let start = start_text(&waiting.reason, waiting.ends_ms.zip(now_ms), full);
    let WaitingRecord { here, names, left_out, mut reasons, .. } = waiting;
    let count = if more { format!("more than {here}") } else { here.to_string() };
    let who = names_of(&names, here);
    let joined = if here < min as usize {
        format!("{count} of at least {min} nodes joined ({who})")
    } else {
        let sizes = settings.sizes().describe(here).map_or_else(String::new, |sizes| format!(", {sizes}"));
        format!("{count} of at most {max} nodes joined ({who}){sizes}")
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
    format!("{joined}{start}{left_out}{hint}{refused}")
}

/// The condition that the coordinator waits for, or the start of the round. `end` is the end of the wait and the
/// present time, both in milliseconds. `full` is the number of nodes with which the round starts at once, unless they
/// are present.
fn start_text(reason: &str, end: Option<(u64, u64)>, full: Option<u32>) -> String {
    let seconds = end.map(|(end, now)| end.saturating_sub(now).div_ceil(1000));
    match (reason, seconds) {
        ("", None) => String::new(),
        ("", Some(seconds)) => {
            let early = full.map_or_else(String::new, |max| format!(", or as soon as {max} nodes are here"));
            format!(", the round starts in {seconds} s{early}")
        }
        (reason, None) => format!("; {reason}"),
        (reason, Some(seconds)) => format!("; {reason}, for at most {seconds} s more"),
    }
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

/// The message that the run is full, for how long and with which nodes, as far as the service responds, and what to do
/// if that is not intended.
pub(super) async fn describe_full(context: &Context, round: &RoundRecord) -> String {
    let (run_id, submission) = (context.settings.run.run_id.as_str(), context.settings.submission.as_deref());
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
        return between_sizes(run_id, submission, round, history.as_ref(), here);
    }
    full(run_id, submission, round, history.as_ref(), seconds)
}

/// What to do if the run ID is that of another job by mistake.
const OTHER_JOB: &str =
    "if it belongs to another job, stop it and choose another run id (`--rdzv-id`, `run_id`)";

/// The names of a round's members, in parentheses, as far as the history keeps them.
fn members_of(round: &RoundRecord, history: Option<&HistoryRecord>) -> String {
    history
        .map_or_else(String::new, |history| format!(" ({})", names_of(&history.names, round.size as usize)))
}

/// That the round belongs to another submission than this node, if it does.
fn rivalry(round: &RoundRecord, submission: Option<&str>) -> Option<String> {
    let of_round = round.submission.as_deref();
    are_rivals(of_round, submission).then(|| {
        format!(
            "the run belongs to submission `{}`, and this node to submission `{}`; this node is refused unless the nodes of the \
             other submission end soon",
            of_round.unwrap_or_default(),
            submission.unwrap_or_default()
        )
    })
}

/// The message that this node is a spare until enough nodes wait for the next size.
fn between_sizes(
    run_id: &str,
    submission: Option<&str>,
    round: &RoundRecord,
    history: Option<&HistoryRecord>,
    here: Option<String>,
) -> String {
    let (RoundRecord { round: number, size, .. }, sizes) = (round, round.sizes());
    let names = members_of(round, history);
    let here = here.map_or_else(String::new, |here| format!(": {here}"));
    let advice = rivalry(round, submission).unwrap_or_else(|| OTHER_JOB.to_owned());
    format!(
        "run `{run_id}` has {size} of {sizes} nodes{names} in round {number}, and this node is a spare{here}; {advice}"
    )
}

fn full(
    run_id: &str,
    submission: Option<&str>,
    round: &RoundRecord,
    history: Option<&HistoryRecord>,
    seconds: Option<u64>,
) -> String {
    let RoundRecord { round: number, size, max, .. } = round;
    let names = members_of(round, history);
    let time = seconds.map_or_else(String::new, |seconds| format!(" for {seconds} s"));
    let advice = rivalry(round, submission).unwrap_or_else(|| {
        format!("this node waits as a spare until a member leaves or is lost; {OTHER_JOB}")
    });
    format!(
        "run `{run_id}` is full with {size} of at most {max} nodes{names} in round {number}{time}: {advice}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::sizing::Sizing;

    #[test]
    fn waiting_node_names_the_time_until_the_round_starts() {
        for (reason, end, full, text) in [
            (
                "",
                Some((61_500, 40_000)),
                Some(4),
                ", the round starts in 22 s, or as soon as 4 nodes are here",
            ),
            ("", Some((61_500, 61_499)), None, ", the round starts in 1 s"),
            ("", Some((40_000, 61_500)), None, ", the round starts in 0 s"),
            ("", None, Some(4), ""),
            (
                "waiting for n3 to request the next round",
                Some((90_000, 1_000)),
                Some(4),
                "; waiting for n3 to request the next round, for at most 89 s more",
            ),
            (
                "waiting for `a`, which hosts the service",
                None,
                None,
                "; waiting for `a`, which hosts the service",
            ),
        ] {
            assert_eq!(start_text(reason, end, full), text);
        }
    }

    #[test]
    fn full_run_is_described_as_far_as_it_is_known() {
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
            change: None,
            lost: Vec::new(),
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

    #[test]
    fn spare_between_two_sizes_is_told_the_next_one_and_whose_run_it_is() {
        let sizing = Sizing { sizes: vec![2, 4], ..Sizing::default() };
        let round = RoundRecord {
            round: 3,
            size: 2,
            sizing,
            submission: Some("one".into()),
            ..RoundRecord::forming("l".into(), 2, 4, "a".into())
        };
        let message = between_sizes("job", None, &round, None, Some("3 nodes here".into()));
        assert_eq!(
            message,
            "run `job` has 2 of 2:4 (sizes=2:4) nodes in round 3, and this node is a spare: 3 nodes here; if it belongs to \
             another job, stop it and choose another run id (`--rdzv-id`, `run_id`)"
        );
        let message = between_sizes("job", Some("two"), &round, None, None);
        assert!(message.contains("submission `one`") && message.contains("submission `two`"), "{message}");
    }
}
