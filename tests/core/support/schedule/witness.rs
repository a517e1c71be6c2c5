//! Watches the records of a schedule's run.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use lattice_rdzv::{
    backend::{Backend, Event, Keys, Range},
    protocol::{
        keys::RunKeys,
        records::{Phase, PlanShard, Record as _, RoundRecord},
    },
};
use tokio::time::sleep;

use super::keys;
use crate::support::book::Book;

/// The pause between two attempts to watch, which doubles with each failure.
const WITNESS_PAUSE: Duration = Duration::from_millis(50);

/// Watches the records of the run: each decision follows from the last one and is complete, and none follows a closing.
pub(super) async fn witness(client: Arc<dyn Backend>, book: Book) {
    let keys = keys();
    let mut restored = BTreeSet::new();
    let mut pause = WITNESS_PAUSE;
    loop {
        let (mut last, mut closed): (Option<RoundRecord>, bool) = (None, false);
        let Ok(mut watch) = client.watch(keys.control(), 0).await else {
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(1));
            continue;
        };
        pause = WITNESS_PAUSE;
        while let Ok(changes) = watch.next().await {
            let is_closed = |event: &Event| event.key() == keys.closed().as_bytes();
            // A new life is begun in the transaction that moves the closing away.
            let reopened: BTreeSet<i64> = changes
                .events
                .iter()
                .filter(|event| is_closed(event) && matches!(event, Event::Delete { .. }))
                .map(Event::revision)
                .collect();
            for event in changes.events {
                if is_closed(&event) {
                    closed = matches!(event, Event::Put(_));
                }
                if matches!(&event, Event::Delete { key, .. } if key == keys.round().as_bytes()) {
                    // No coordinator renewed the run's lease for a minute, which has the effect of a loss of all data.
                    last = None;
                    book.wiped();
                }
                let Event::Put(item) = event else { continue };
                if item.key == keys.round().as_bytes() {
                    let round = RoundRecord::decode("ctl/round", &item.value).expect("a record");
                    if closed && !reopened.contains(&item.mod_revision) {
                        book.broken(format!("round {} was written into a closed run", round.round));
                    }
                    if let Some(last) = last.as_ref().filter(|last| last.life == round.life) {
                        let same = (last.round, &last.world) == (round.round, &round.world);
                        if round.round < last.round || (round.round == last.round && !same) {
                            book.broken(format!("round {} follows round {}", round.round, last.round));
                        }
                        if same && last.change.is_some() && round.change != last.change {
                            book.broken(format!("the change of round {} was taken back", round.round));
                        }
                    }
                    if round.phase == Phase::Restoring {
                        restored.insert(round.world.clone());
                    }
                    if restored.contains(&round.world) {
                        // Its nodes return one by one, or not at all.
                        last = Some(round);
                        continue;
                    }
                    check_plan(client.as_ref(), &keys, &round, item.mod_revision, &book).await;
                    last = Some(round);
                }
            }
        }
    }
}

/// Checks that the whole plan of a round exists as soon as the round does.
async fn check_plan(client: &dyn Backend, keys: &RunKeys, round: &RoundRecord, revision: i64, book: &Book) {
    if !round.has_world() || book.ledger().wiped {
        return;
    }
    let plan = keys.plan(&round.life, round.round, &round.attempt);
    let range = Range { revision, ..Range::new(Keys::prefix(plan.as_str())) };
    // The data was compacted or lost just now.
    let Ok(found) = client.range(range).await else { return };
    let shards = found.items.iter().map(|item| PlanShard::decode(&plan, &item.value).expect("a shard"));
    let mut ranks: Vec<u32> = shards.flat_map(|shard| shard.nodes).map(|entry| entry.rank).collect();
    ranks.sort_unstable();
    if ranks.iter().copied().ne(0..round.size) && !book.ledger().wiped {
        book.broken(format!(
            "round {} of {} was committed with the ranks {ranks:?}",
            round.round, round.size
        ));
    }
}
