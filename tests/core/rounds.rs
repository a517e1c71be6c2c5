//! The life of a run through the public API, on the memory service with paused time.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use lattice_rdzv::{
    Error,
    backend::{Backend as _, Keys, Operation, Range, Txn, memory::MemoryService},
    node::{State, WorldFacts},
    protocol::{
        keys::RunKeys,
        records::{ChangeKind, Outcome, Record as _, ResumedRecord, WorldMembership},
    },
};
use tokio::time::{Instant, sleep};

use crate::support::nodes::{Agent, TTL, joined, settings};

async fn world(agent: &Agent) -> Arc<WorldFacts> {
    agent.node.next_world(Some(29500), None).await.expect("a world")
}

async fn ranks(agents: &[Agent]) -> Vec<u32> {
    let worlds = join_all(agents.iter().map(world)).await;
    let first = &worlds[0];
    for world in &worlds {
        assert_eq!((world.place.round, world.place.size), (first.place.round, first.place.size));
        assert_eq!(world.master_address, first.master_address);
    }
    worlds.iter().map(|world| world.place.rank).collect()
}

#[tokio::test(start_paused = true)]
async fn two_nodes_form_a_round_at_once() {
    let service = MemoryService::new();
    let agents = joined(&service, "2", &["a", "b"]).await;
    let began = Instant::now();
    assert_eq!(ranks(&agents).await, [0, 1]);
    assert!(began.elapsed() < Duration::from_secs(1));
    let world = agents[0].node.change();
    assert!(world.is_none() && agents[0].node.num_nodes_waiting() == 0);
}

#[tokio::test(start_paused = true)]
async fn run_grows_while_it_trains_and_ranks_are_kept() {
    let service = MemoryService::new();
    let mut agents = joined(&service, "2:4", &["a", "b"]).await;
    assert_eq!(ranks(&agents).await, [0, 1]);
    agents.push(Agent::join(&service, settings("c", "2:4", &[]), 30).await.unwrap());
    let (_, change) = agents[0].node.wait_change(Some(Duration::from_secs(10))).await.expect("told");
    assert_eq!((change.kind, change.names.as_slice()), (ChangeKind::Newcomers, ["c".to_owned()].as_slice()));
    assert_eq!(ranks(&agents).await, [0, 1, 2]);
    assert_eq!(agents[1].node.num_nodes_waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn store_of_the_last_round_can_be_read_in_the_next() {
    let limit = Duration::from_secs(10);
    let service = MemoryService::new();
    let mut agents = joined(&service, "1:2", &["a"]).await;
    assert_eq!(ranks(&agents).await, [0]);
    let first = agents[0].node.subscribe().borrow().world.clone().expect("a world");
    let store = agents[0].node.round_store(&first, true);
    store.set("step", b"41", limit).await.unwrap();
    agents.push(Agent::join(&service, settings("b", "1:2", &[]), 30).await.unwrap());
    assert_eq!(ranks(&agents).await, [0, 1]);
    assert_eq!(store.get("step", false, limit).await.unwrap(), Some(b"41".to_vec()));
    assert_eq!(store.get("never", true, limit).await.unwrap(), None, "its world has changed");
}

#[tokio::test(start_paused = true)]
async fn rank_0_reports_once_in_each_world_that_the_program_trains() {
    let service = MemoryService::new();
    let mut agents = joined(&service, "1:2", &["a"]).await;
    assert!(agents[0].node.resumption().is_none(), "there is no world yet");
    assert_eq!(ranks(&agents).await, [0]);
    let life = agents[0].node.returned().unwrap().life;
    let keys = RunKeys::new("default", "run");
    let after = async |round: u64| {
        let key = keys.resumed_round(&life, round);
        let found = service.connect().range(Range::new(Keys::one(key.as_str()))).await.unwrap();
        found.items.first().map(|item| ResumedRecord::decode(&key, &item.value).unwrap().after_seconds)
    };
    sleep(Duration::from_secs(2)).await;
    agents[0].node.resumption().expect("a report").write().await;
    assert_eq!(after(1).await, Some(2.0));
    assert!(agents[0].node.resumption().is_none(), "it was taken");

    let late = {
        agents.push(Agent::join(&service, settings("b", "1:2", &[]), 30).await.unwrap());
        assert_eq!(ranks(&agents).await, [0, 1]);
        assert!(agents[1].node.resumption().is_none(), "this is rank 1");
        agents[0].node.resumption().expect("a report")
    };
    agents[1].node.leave(None).await;
    assert_eq!(ranks(&agents[..1]).await, [0]);
    late.write().await;
    assert_eq!(after(2).await, None, "another world has formed");
}

#[tokio::test(start_paused = true)]
async fn loss_is_announced_to_survivors_within_the_ttl_and_they_keep_their_ranks() {
    let service = MemoryService::new();
    for lost in [0, 1, 2] {
        let mut agents = joined(&service, "2:4", &["a", "b", "c"]).await;
        assert_eq!(ranks(&agents).await.len(), 3);
        let began = Instant::now();
        drop(agents.remove(lost));
        let (_, change) = agents[0].node.wait_change(Some(Duration::from_secs(20))).await.expect("told");
        assert_eq!(change.kind, ChangeKind::Lost);
        assert!(began.elapsed() <= TTL + Duration::from_secs(1), "{:?}", began.elapsed());
        let mut ranks = ranks(&agents).await;
        ranks.sort_unstable();
        assert_eq!(ranks, [0, 1]);
        join_all(agents.iter().map(|agent| agent.node.leave(None))).await;
        sleep(Duration::from_secs(100)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn several_callers_may_wait_for_a_node_to_leave_or_to_close() {
    let service = MemoryService::new();
    let agents = joined(&service, "2:4", &["a", "b", "c"]).await;
    ranks(&agents).await;
    let [a, b, c] = &agents[..] else { panic!("three agents") };
    // All requests are received before the first one is done.
    let interrupted = async |agent: &Agent| {
        agent.link.cut();
        sleep(TTL / 3).await;
        agent.link.reconnect();
    };
    assert_eq!(tokio::join!(a.node.leave(None), a.node.leave(None), interrupted(a)), (true, true, ()));
    assert!(a.node.leave(None).await, "and a later caller, too");
    let first = b.node.close(Outcome::Succeeded, "first", None);
    let second = b.node.close(Outcome::Failed, "second", None);
    let said = tokio::join!(first, second, b.node.leave(None), interrupted(b));
    assert_eq!(said, (true, true, true, ()));
    let error = c.node.next_world(None, None).await.unwrap_err();
    assert!(matches!(error, Error::Closed { outcome, .. } if outcome == "succeeded"));
}

#[tokio::test(start_paused = true)]
async fn node_that_has_left_returns_no_world_that_it_had_before() {
    let service = MemoryService::new();
    let agents = joined(&service, "1", &["a"]).await;
    let node = &agents[0].node;
    let mut seen = node.subscribe();
    seen.wait_for(|seen| seen.world.is_some()).await.unwrap();
    assert!(node.leave(None).await);
    let world = node.next_world(None, None).await;
    assert!(matches!(world, Err(Error::Left)), "{world:?}");
}

#[tokio::test(start_paused = true)]
async fn follower_of_a_node_learns_of_its_end_however_it_ends() {
    let service = MemoryService::new();
    let agents = joined(&service, "1", &["a"]).await;
    world(&agents[0]).await;
    let mut seen = agents[0].node.subscribe();
    drop(agents);
    let end = seen.wait_for(|seen| seen.end.is_some()).await.expect("an end").state;
    assert_eq!(end, State::Left);
}

#[tokio::test(start_paused = true)]
async fn closing_is_abandoned_when_no_caller_waits_for_it() {
    let service = MemoryService::new();
    let agents = joined(&service, "1", &["a"]).await;
    world(&agents[0]).await;
    let node = &agents[0].node;
    agents[0].link.cut();
    let short = Some(Duration::from_millis(500));
    let longer = Some(Duration::from_secs(1));
    let both = tokio::join!(node.close(Outcome::Failed, "", short), node.close(Outcome::Failed, "", longer));
    assert_eq!(both, (false, false));
    // A request in flight may still be applied. After the duration of an attempt, there is none.
    sleep(TTL / 4).await;
    agents[0].link.reconnect();
    sleep(TTL).await;
    assert_eq!(node.subscribe().borrow().state, State::Member, "no caller requests it any more");

    agents[0].link.cut();
    let first = node.close(Outcome::Failed, "", short);
    let second = node.close(Outcome::Succeeded, "", Some(TTL));
    let reconnected = async {
        sleep(TTL / 2).await;
        agents[0].link.reconnect();
    };
    assert_eq!(tokio::join!(first, second, reconnected), (false, true, ()), "one still requests it");
}

#[tokio::test(start_paused = true)]
async fn caller_that_closes_after_an_abandoned_closing_has_its_own_reason() {
    let service = MemoryService::new();
    let agents = joined(&service, "1", &["a"]).await;
    world(&agents[0]).await;
    agents[0].link.cut();
    // Between two attempts, each of which takes a quarter of the lease.
    let limit = TTL / 4 + Duration::from_millis(5);
    assert!(!agents[0].node.close(Outcome::Failed, "", Some(limit)).await);
    let reconnected = async {
        sleep(TTL / 3).await;
        agents[0].link.reconnect();
    };
    let closing = agents[0].node.close(Outcome::Succeeded, "", None);
    assert_eq!(tokio::join!(closing, reconnected), (true, ()));
    let error = agents[0].node.next_world(None, None).await.unwrap_err();
    assert!(matches!(&error, Error::Closed { outcome, .. } if outcome == "succeeded"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn service_may_be_away_for_a_moment_however_long_a_join_has_lasted() {
    let service = MemoryService::new();
    let first = joined(&service, "1", &["a"]).await;
    world(&first[0]).await;
    assert!(first[0].node.close(Outcome::Failed, "", None).await);
    let conf = [("connect_timeout", "3"), ("reuse_delay", "8")];
    let joining = Agent::join(&service, settings("b", "1", &conf), 7);
    let away = async {
        // Later than the limit that starts at the beginning, while the node waits for the ID.
        sleep(Duration::from_secs(7)).await;
        service.stop();
        sleep(Duration::from_secs(2)).await;
        service.start();
    };
    let (joined, ()) = tokio::join!(joining, away);
    assert!(joined.is_ok(), "{:?}", joined.err());

    let second = Agent::join(&service, settings("c", "1", &conf), 8);
    let gone = async {
        service.stop();
    };
    let began = Instant::now();
    let (joined, ()) = tokio::join!(second, gone);
    assert!(matches!(joined, Err(Error::Unavailable { .. })));
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "but for no longer than the limit: {:?}",
        began.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn leaving_node_announces_its_departure_at_once() {
    let service = MemoryService::new();
    for leaver in [0, 2] {
        let mut agents = joined(&service, "2:4", &["a", "b", "c"]).await;
        ranks(&agents).await;
        let gone = agents.remove(leaver);
        let began = Instant::now();
        assert!(gone.node.leave(None).await);
        let (_, change) = agents[0].node.wait_change(Some(Duration::from_secs(20))).await.expect("told");
        assert_eq!(change.kind, ChangeKind::Leaving);
        assert!(began.elapsed() < Duration::from_millis(500));
        assert_eq!(ranks(&agents).await.len(), 2);
        join_all(agents.iter().map(|agent| agent.node.leave(None))).await;
        sleep(Duration::from_secs(100)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn spare_waits_and_gets_a_place_when_a_member_dies() {
    let service = MemoryService::new();
    let mut agents = joined(&service, "2", &["a", "b"]).await;
    ranks(&agents).await;
    let spare = Agent::join(&service, settings("c", "2", &[]), 30).await.unwrap();
    sleep(Duration::from_secs(700)).await;
    assert_eq!(spare.node.subscribe().borrow().state, State::Spare);
    assert_eq!(agents[0].node.num_nodes_waiting(), 0);
    drop(agents.remove(0));
    agents.push(spare);
    assert!(agents[0].node.wait_change(Some(Duration::from_secs(20))).await.is_some());
    assert_eq!(ranks(&agents).await, [1, 0]);
}

#[tokio::test(start_paused = true)]
async fn closing_is_final_for_a_life_and_another_submission_begins_the_next() {
    let service = MemoryService::new();
    let agents = joined(&service, "2", &["a", "b"]).await;
    ranks(&agents).await;
    assert!(agents[0].node.close(Outcome::Failed, "out of restarts", None).await);
    let (_, change) = agents[1].node.wait_change(Some(Duration::from_secs(5))).await.expect("told");
    assert_eq!(change.kind, ChangeKind::Closed);
    let error = agents[1].node.next_world(Some(1), None).await.unwrap_err();
    assert_eq!(error.to_string(), "run `run` was closed as failed by `a`: out of restarts");
    let life = agents[1].node.subscribe().borrow().world.clone().unwrap().place.life.clone();

    let new =
        |name: &'static str, seed| Agent::join(&service, settings(name, "2", &[("submission", "2")]), seed);
    let next = vec![new("x", 50).await.unwrap(), new("y", 51).await.unwrap()];
    assert_eq!(ranks(&next).await, [0, 1]);
    assert_ne!(next[0].node.subscribe().borrow().world.clone().unwrap().place.life, life);
    assert!(matches!(agents[0].node.next_world(None, None).await, Err(Error::Closed { .. })));
}

#[tokio::test(start_paused = true)]
async fn submission_that_succeeded_has_nothing_left_to_do() {
    let service = MemoryService::new();
    let only = Agent::join(&service, settings("a", "1", &[("submission", "s")]), 1).await.unwrap();
    world(&only).await;
    assert!(only.node.close(Outcome::Succeeded, "", None).await);
    assert_eq!(only.node.num_nodes_waiting(), 0);
    assert!(only.node.leave(None).await);
    let retried = Agent::join(&service, settings("a", "1", &[("submission", "s")]), 2).await;
    assert!(matches!(retried.err(), Some(Error::Closed { outcome, .. }) if outcome == "succeeded"));
}

#[tokio::test(start_paused = true)]
async fn run_is_restored_in_a_service_without_data_and_no_world_changes() {
    let service = MemoryService::new();
    let mut agents = joined(&service, "2:4", &["a", "b", "c"]).await;
    let before = ranks(&agents).await;
    service.wipe();
    sleep(TTL * 6).await;
    for agent in &agents {
        let seen = agent.node.subscribe().borrow().clone();
        assert_eq!(
            (seen.state, seen.resets, agent.node.num_nodes_waiting()),
            (State::Member, 1, 0),
            "{seen:?}"
        );
    }
    agents.push(Agent::join(&service, settings("d", "2:4", &[]), 30).await.unwrap());
    assert!(agents[0].node.wait_change(Some(Duration::from_secs(10))).await.is_some());
    let after = ranks(&agents).await;
    assert_eq!((&after[..3], after[3]), (before.as_slice(), 3));
}

#[tokio::test(start_paused = true)]
async fn unavailable_service_changes_nothing() {
    let service = MemoryService::new();
    let agents = joined(&service, "2:4", &["a", "b", "c"]).await;
    ranks(&agents).await;
    for pause in [TTL / 2, TTL * 3, Duration::from_secs(30)] {
        service.pause();
        sleep(pause).await;
        if pause > TTL {
            assert_eq!(agents[0].node.subscribe().borrow().state, State::Uncertain);
        }
        service.resume();
        sleep(TTL * 5).await;
        for agent in &agents {
            assert_eq!(agent.node.num_nodes_waiting(), 0, "{:?}", agent.node.change());
            assert_eq!(agent.node.subscribe().borrow().state, State::Member);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn node_that_was_cut_off_finds_that_the_world_has_moved_on_and_joins_as_new() {
    let service = MemoryService::new();
    let agents = joined(&service, "2:4", &["a", "b", "c"]).await;
    ranks(&agents).await;
    agents[2].link.cut();
    assert!(agents[0].node.wait_change(Some(Duration::from_secs(20))).await.is_some());
    assert_eq!(ranks(&agents[..2]).await.len(), 2);
    assert_eq!(agents[2].node.num_nodes_waiting(), 0, "it keeps training");
    agents[2].link.reconnect();
    let (_, change) = agents[2].node.wait_change(Some(Duration::from_secs(20))).await.expect("told");
    assert_eq!(change.kind, ChangeKind::Replaced);
    let again = tokio::join!(world(&agents[2]), async {
        agents[0].node.wait_change(None).await;
        ranks(&agents[..2]).await
    });
    assert_eq!(again.0.place.size, 3);
}

#[tokio::test(start_paused = true)]
async fn other_settings_and_unreadable_records_are_errors_that_say_so() {
    let service = MemoryService::new();
    let agents = joined(&service, "2", &["a", "b"]).await;
    ranks(&agents).await;
    let other = Agent::join(&service, settings("c", "2:4", &[]), 9).await.err().expect("an error");
    assert!(other.to_string().contains("nnodes 2:2, but this node has 2:4"), "{other}");

    let backend = service.connect();
    let put = |key: &str, value: &str| Txn::new(Operation::put(key, value, 0));
    backend.txn(put("/lattice/rdzv/default/run/nodes/00000000000000aa", "{}")).await.unwrap();
    sleep(TTL * 3).await;
    assert_eq!(agents[0].node.num_nodes_waiting(), 0, "invalid records of one node affect no other node");
    backend.txn(put("/lattice/rdzv/default/run/ctl/round", "{\"version\": 7}")).await.unwrap();
    let error = Agent::join(&service, settings("d", "2", &[]), 10).await.err().expect("an error").to_string();
    assert!(error.contains("ctl/round") && error.contains("major version 7"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn spare_gets_a_place_after_any_wait_and_an_outage() {
    let service = MemoryService::new();
    let mut agents = joined(&service, "2", &["a", "b"]).await;
    ranks(&agents).await;
    let spare = Arc::new(Agent::join(&service, settings("c", "2", &[]), 30).await.unwrap());
    let waiting = tokio::spawn({
        let spare = Arc::clone(&spare);
        async move { spare.node.next_world(None, None).await }
    });
    sleep(Duration::from_secs(3_000)).await;
    service.pause();
    sleep(TTL * 2).await;
    service.resume();
    sleep(TTL * 4).await;
    assert!(!waiting.is_finished(), "{:?}", spare.node.subscribe().borrow().state);
    drop(agents.remove(0));
    assert!(agents[0].node.wait_change(Some(Duration::from_secs(20))).await.is_some());
    assert_eq!(ranks(&agents).await, [1]);
    assert_eq!(waiting.await.unwrap().unwrap().place.rank, 0);
}

#[tokio::test(start_paused = true)]
async fn spare_whose_world_is_gone_waits_as_long_as_for_a_first_place() {
    let service = MemoryService::new();
    let agents = joined(&service, "2", &["a", "b"]).await;
    ranks(&agents).await;
    let spare = Agent::join(&service, settings("c", "2", &[("join_timeout", "60")]), 30).await.unwrap();
    drop(agents);
    let end = spare.node.next_world(None, None);
    let error =
        tokio::time::timeout(TTL * 3 + Duration::from_secs(61), end).await.expect("an end").unwrap_err();
    assert!(
        matches!(&error, Error::Timeout { .. }) && error.to_string().contains("1 of at least 2 nodes"),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn record_that_cannot_be_read_prevents_no_node_from_leaving() {
    let service = MemoryService::new();
    let agents = joined(&service, "2", &["a", "b"]).await;
    ranks(&agents).await;
    nonsense(&service, "ctl/round").await;
    let before = service.revision();
    assert!(!agents[0].node.close(Outcome::Failed, "", Some(Duration::from_secs(1))).await);
    assert!(agents[0].node.leave(Some(Duration::from_secs(1))).await);
    assert!(service.revision() - before < 10, "it does not try on and on");
}

#[tokio::test(start_paused = true)]
async fn node_that_was_dropped_from_a_run_that_then_closed_ends_with_it() {
    let service = MemoryService::new();
    let agents = joined(&service, "1:3", &["a", "b"]).await;
    join_all(agents.iter().map(world)).await;
    agents[1].link.cut();
    assert!(agents[0].node.wait_change(Some(Duration::from_secs(20))).await.is_some());
    world(&agents[0]).await;
    assert!(agents[0].node.close(Outcome::Succeeded, "", None).await);
    agents[1].link.reconnect();
    sleep(TTL * 2).await;
    let error = agents[1].node.next_world(None, Some(Duration::from_secs(100))).await.unwrap_err();
    assert!(matches!(error, Error::Closed { outcome, .. } if outcome == "succeeded"));
}

#[tokio::test(start_paused = true)]
async fn service_that_is_restored_from_a_backup_moves_no_node_back() {
    let service = MemoryService::new();
    let mut agents = joined(&service, "2:4", &["a", "b", "c"]).await;
    ranks(&agents).await;
    let backup = service.backup();
    // The backup contains neither the next round nor this node.
    agents.push(Agent::join(&service, settings("d", "2:4", &[]), 30).await.unwrap());
    assert!(agents[0].node.wait_change(Some(Duration::from_secs(10))).await.is_some());
    assert_eq!(ranks(&agents).await, [0, 1, 2, 3]);
    service.restore(backup);
    sleep(TTL * 6).await;
    for agent in &agents {
        let seen = agent.node.subscribe().borrow().clone();
        assert_eq!((seen.state, agent.node.num_nodes_waiting()), (State::Member, 0), "{seen:?}");
        assert_eq!(seen.round.map(|round| round.round), Some(2), "the later round was restored");
    }
    drop(agents.remove(3));
    assert!(agents[0].node.wait_change(Some(Duration::from_secs(20))).await.is_some());
    assert_eq!(ranks(&agents).await, [0, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn member_that_does_not_seek_again_in_time_is_excluded_learns_it_and_closes_nothing() {
    let service = MemoryService::new();
    let mut agents = Vec::new();
    for (name, seed) in [("a", 1), ("b", 2), ("c", 3)] {
        let times = [("last_call_timeout", "2"), ("rejoin_timeout", "1"), ("grow_delay", "1000")];
        agents.push(Agent::join(&service, settings(name, "2:3", &times), seed).await.expect("joined"));
    }
    assert_eq!(ranks(&agents).await, [0, 1, 2]);
    let late = agents.pop().expect("three");
    // Its agent is stuck, and then fails while the link is cut, which is for less time than its lease exists.
    late.link.cut();
    let (link, closing) =
        (Arc::clone(&late.link), async { late.node.close(Outcome::Failed, "failed", None).await });
    let others = async {
        assert_eq!(ranks(&agents).await, [0, 1]);
        link.reconnect();
    };
    let (closed, ()) = tokio::join!(closing, others);
    assert!(!closed, "the run is no longer its own");
    let why = agents[0].node.subscribe().borrow().world.clone().expect("a world").why.clone();
    assert!(why.ends_with("excluded, because they did not request the round in time: c"), "{why}");
    assert_eq!(late.node.change().map(|(_, change)| change.kind), Some(ChangeKind::Replaced));
    sleep(TTL * 2).await;
    for agent in &agents {
        assert_eq!(
            (agent.node.num_nodes_waiting(), agent.node.subscribe().borrow().state),
            (0, State::Member)
        );
    }
    assert_eq!(agents[0].node.subscribe().borrow().resets, 0);
}

#[tokio::test(start_paused = true)]
async fn waiting_for_a_change_ends_when_there_can_be_none_any_more() {
    let change_of = async |end: &str| {
        let service = MemoryService::new();
        let agents = joined(&service, "2", &["a", "b"]).await;
        ranks(&agents).await;
        let waiting = agents[1].node.wait_change(None);
        let ending = async {
            sleep(Duration::from_secs(1)).await;
            match end {
                "succeeded" => assert!(agents[0].node.close(Outcome::Succeeded, "", None).await),
                "left" => assert!(agents[1].node.leave(None).await),
                _ => nonsense(&service, "ctl/round").await,
            }
        };
        let waited = async { tokio::join!(waiting, ending).0 };
        tokio::time::timeout(Duration::from_secs(100), waited).await
    };
    for end in ["succeeded", "left", "an error"] {
        assert!(change_of(end).await.unwrap_or_else(|_| panic!("still waits: {end}")).is_none(), "{end}");
    }
}

/// Changes the data of the service, as an operator could.
async fn applied(service: &MemoryService, operation: Operation) {
    let txn = Txn::new(operation);
    service.connect().txn(txn).await.unwrap();
}

fn key(of_the_run: &str) -> String {
    format!("/lattice/rdzv/default/run/{of_the_run}")
}

/// Writes a record that cannot be decoded.
async fn nonsense(service: &MemoryService, of_the_run: &str) {
    applied(service, Operation::put(key(of_the_run), "no json", 0)).await;
}

#[tokio::test(start_paused = true)]
async fn members_of_a_world_are_those_of_one_attempt_at_its_plan() {
    let service = MemoryService::new();
    let mut agents = joined(&service, "2:4", &["a", "b", "c"]).await;
    let worlds = join_all(agents.iter().map(world)).await;
    // The first node that returns restores the world, with itself as the only member. The plan is written again when
    // all have returned.
    let later = &agents[1..];
    for agent in later {
        agent.link.cut();
    }
    service.wipe();
    sleep(TTL / 2).await;
    for agent in later {
        agent.link.reconnect();
    }
    sleep(TTL * 5).await;
    agents.push(Agent::join(&service, settings("d", "2:4", &[]), 30).await.unwrap());
    assert!(agents[0].node.wait_change(Some(Duration::from_secs(10))).await.is_some());
    assert_eq!(ranks(&agents).await.len(), 4);
    let members = agents[2].node.members(&worlds[2], TTL).await.expect("the plan of the last round");
    let names: Vec<_> = members.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "c"]);
    let other = WorldFacts { node: members[0].id, ..(*worlds[2]).clone() };
    assert!(matches!(agents[2].node.members(&other, TTL).await, Err(Error::Rejected { .. })));
}

#[tokio::test(start_paused = true)]
async fn members_that_are_not_done_are_unfinished_and_none_of_a_past_world() {
    let service = MemoryService::new();
    let mut agents = joined(&service, "2:4", &["a", "b", "c"]).await;
    let worlds = join_all(agents.iter().map(world)).await;
    let first = &worlds[0].place;
    assert_eq!(agents[0].node.unfinished(first).await.unwrap(), ["a", "b", "c"]);
    let store = agents[1].node.round_store(&worlds[1], false);
    store.add("exit", 1, true, TTL).await.unwrap();
    drop(agents.pop());
    assert!(agents[0].node.wait_change(Some(TTL * 4)).await.is_some());
    assert_eq!(agents[0].node.unfinished(first).await.unwrap(), ["a"]);

    let another = WorldMembership { world: "another".into(), ..first.clone() };
    assert!(agents[0].node.unfinished(&another).await.unwrap().is_empty(), "it is not in that one");
    applied(&service, Operation::Delete(Keys::prefix(key("plan/")))).await;
    assert!(agents[0].node.unfinished(first).await.unwrap().is_empty(), "the plan is gone");
    assert!(matches!(agents[0].node.members(&worlds[0], TTL).await, Err(Error::Rejected { .. })));
}

#[tokio::test(start_paused = true)]
async fn loss_that_is_ignored_changes_nothing_and_the_next_round_is_formed_without_the_lost() {
    let service = MemoryService::new();
    let mut agents = Vec::new();
    for (name, seed) in [("a", 1), ("b", 2), ("c", 3)] {
        let given = [("last_call_timeout", "2"), ("on_member_loss", "ignore")];
        agents.push(Agent::join(&service, settings(name, "2:4", &given), seed).await.unwrap());
    }
    ranks(&agents).await;
    drop(agents.remove(1));
    assert!(agents[0].node.wait_change(Some(TTL * 20)).await.is_none(), "{:?}", agents[0].node.change());
    // It is remembered: if a member requests the next round, the lost node is not in it.
    assert_eq!(ranks(&agents).await, [0, 1]);
    // If no member is left, it concerns the nodes that join.
    agents.clear();
    for (name, seed) in [("x", 11), ("y", 12)] {
        let given = [("last_call_timeout", "2"), ("on_member_loss", "ignore"), ("on_newcomer", "ignore")];
        agents.push(Agent::join(&service, settings(name, "2:4", &given), seed).await.unwrap());
    }
    assert_eq!(ranks(&agents).await, [0, 1]);
}

#[tokio::test(start_paused = true)]
async fn newcomers_that_are_ignored_wait_for_the_next_round() {
    let service = MemoryService::new();
    let mut agents = Vec::new();
    for (name, seed) in [("a", 1), ("b", 2), ("c", 3)] {
        let given = [("last_call_timeout", "2"), ("on_newcomer", "ignore"), ("grow_delay", "0")];
        agents.push(Agent::join(&service, settings(name, "2:4", &given), seed).await.unwrap());
        if name == "b" {
            ranks(&agents).await;
        }
    }
    assert!(agents[0].node.wait_change(Some(TTL * 20)).await.is_none(), "{:?}", agents[0].node.change());
    assert_eq!(ranks(&agents).await, [0, 1, 2]);
}

/// Settings of a node of this submission.
fn of(name: &str, nnodes: &str, submission: &str) -> lattice_rdzv::settings::Settings {
    settings(name, nnodes, &[("last_call_timeout", "2"), ("submission", submission)])
}

#[tokio::test(start_paused = true)]
async fn second_job_with_the_id_of_a_running_one_is_refused_and_the_first_is_not_disturbed() {
    for nnodes in ["2", "2:4"] {
        let service = MemoryService::new();
        let mut agents = Vec::new();
        for (name, seed) in [("a", 1), ("b", 2)] {
            agents.push(Agent::join(&service, of(name, nnodes, "one"), seed).await.unwrap());
        }
        assert_eq!(ranks(&agents).await, [0, 1]);
        let second = Agent::join(&service, of("x", nnodes, "two"), 30).await.unwrap();
        assert!(!second.node.close(Outcome::Failed, "", None).await, "it closes no run of another job");
        let began = Instant::now();
        let error = second.node.next_world(None, None).await.unwrap_err();
        assert!(matches!(error, Error::Mismatch { .. }), "{error}");
        let message = error.to_string();
        for part in ["run `run`", "submission `one` with the nodes a, b", "submission `two`", "--rdzv-id"] {
            assert!(message.contains(part), "{message}");
        }
        assert!(began.elapsed() >= TTL, "the first job might have been about to end");
        sleep(TTL * 2).await;
        assert_eq!(agents[0].node.num_nodes_waiting(), 0, "{:?}", agents[0].node.change());
        assert!(second.node.id().is_none(), "it keeps no record");
        // Each later attempt has a separate time to wait for the end of the first job.
        let again = Agent::join(&service, of("y", nnodes, "two"), 31).await.unwrap();
        let began = Instant::now();
        again.node.next_world(None, None).await.unwrap_err();
        assert!(began.elapsed() >= TTL);
        let _same = Agent::join(&service, of("c", nnodes, "one"), 32).await.unwrap();
        let change = agents[0].node.wait_change(Some(TTL)).await;
        assert_eq!(change.is_some(), nnodes == "2:4", "a newcomer of the first job is welcome");
    }
}

#[tokio::test(start_paused = true)]
async fn resubmission_gets_the_run_when_the_pods_of_the_first_have_ended() {
    for ends in ["leave", "die", "close"] {
        let service = MemoryService::new();
        let mut first = Vec::new();
        for (name, seed) in [("a", 1), ("b", 2)] {
            first.push(Agent::join(&service, of(name, "2", "one"), seed).await.unwrap());
        }
        assert_eq!(ranks(&first).await, [0, 1]);
        if ends == "die" {
            // Their leases are as new as possible when the other nodes arrive.
            first.clear();
        }
        let mut second = Vec::new();
        for (name, seed) in [("a", 11), ("b", 12)] {
            second.push(Agent::join(&service, of(name, "2", "two"), seed).await.unwrap());
        }
        let next = ranks(&second);
        let end = async {
            sleep(TTL / 2).await;
            match ends {
                "leave" => {
                    for agent in &first {
                        assert!(agent.node.mark_leaving(TTL).await);
                    }
                    sleep(TTL * 3).await;
                    join_all(first.iter().map(|agent| agent.node.leave(None))).await;
                }
                "close" => assert!(first[0].node.close(Outcome::Succeeded, "", None).await),
                _ => {}
            }
        };
        let (mut ranks, ()) = tokio::join!(next, end);
        ranks.sort_unstable();
        assert_eq!(ranks, [0, 1], "{ends}");
    }
}

#[tokio::test(start_paused = true)]
async fn outage_that_ends_every_lease_leaves_the_run_with_its_own_submission() {
    let service = MemoryService::new();
    let mut agents = Vec::new();
    for (name, seed) in [("a", 1), ("b", 2)] {
        agents.push(Agent::join(&service, of(name, "2", "one"), seed).await.unwrap());
    }
    assert_eq!(ranks(&agents).await, [0, 1]);
    let second = Agent::join(&service, of("x", "2", "two"), 30).await.unwrap();
    let third = Agent::join(&service, of("y", "2", "two"), 31).await.unwrap();
    // The members return last, long after their leases have expired.
    for agent in &agents {
        agent.link.cut();
    }
    service.pause();
    sleep(TTL * 3).await;
    service.resume();
    sleep(TTL).await;
    for agent in &agents {
        agent.link.reconnect();
    }
    let refused = join_all([&second, &third].map(|agent| agent.node.next_world(None, None))).await;
    assert!(refused.iter().all(|end| matches!(end, Err(Error::Mismatch { .. }))), "{refused:?}");
    for agent in &agents {
        let seen = agent.node.subscribe().borrow().clone();
        assert_eq!((seen.state, agent.node.num_nodes_waiting()), (State::Member, 0), "{seen:?}");
    }
}

/// Takes part in every world until the test ends.
fn trains(agent: Agent) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        while agent.node.next_world(Some(29500), None).await.is_ok() {
            agent.node.wait_change(None).await;
        }
    })
}

/// A node joins, gets a place, and leaves. Returns how long it waited for the place, and why the world was formed.
async fn fails(
    service: &MemoryService,
    settings: lattice_rdzv::settings::Settings,
    seed: u64,
) -> (f64, String) {
    let agent = Agent::join(service, settings, seed).await.expect("joined");
    let began = Instant::now();
    let world = world(&agent).await;
    agent.node.leave(None).await;
    // Until the other nodes have a world without it.
    sleep(Duration::from_secs(3)).await;
    (began.elapsed().as_secs_f64() - 3.0, world.why.clone())
}

#[tokio::test(start_paused = true)]
async fn node_that_joins_and_fails_in_a_loop_waits_longer_each_time() {
    let service = MemoryService::new();
    let mut training: Vec<_> = joined(&service, "2:4", &["a", "b"]).await.into_iter().map(trains).collect();
    sleep(Duration::from_secs(5)).await;
    let bad = |seed| fails(&service, settings("bad", "2:4", &[]), seed);
    for (seed, expected) in [(20, 0.0), (21, 0.0), (22, 0.0), (23, 10.0), (24, 20.0), (25, 40.0)] {
        let (waited, _) = bad(seed).await;
        // The wait starts when the departure is announced. Up to a second of `grow_delay` follows.
        assert!((expected - 3.5..expected + 2.0).contains(&waited), "attempt {seed} waited {waited} s");
    }
    // Another name does not wait, and neither the count nor the wait is lost with the coordinator.
    let (waited, why) = fails(&service, settings("good", "2:4", &[]), 30).await;
    assert!(waited < 2.0, "{waited}: {why}");
    training.push(trains(Agent::join(&service, settings("c", "2:4", &[]), 31).await.unwrap()));
    sleep(Duration::from_secs(5)).await;
    training.remove(0).abort();
    sleep(TTL * 3).await;
    let (waited, _) = bad(26).await;
    assert!((60.0..85.0).contains(&waited), "{waited}");
    // A node that stays for five minutes has not failed.
    let back = Agent::join(&service, settings("bad", "2:4", &[]), 27).await.unwrap();
    world(&back).await;
    sleep(Duration::from_secs(301)).await;
    back.node.leave(None).await;
    sleep(Duration::from_secs(3)).await;
    let (waited, _) = bad(28).await;
    assert!(waited < 2.0, "{waited}");
}

#[tokio::test(start_paused = true)]
async fn no_node_waits_if_the_run_would_have_too_few_nodes_without_it() {
    let service = MemoryService::new();
    let _training = joined(&service, "2", &["a"]).await.into_iter().map(trains).collect::<Vec<_>>();
    for seed in 20..26 {
        let (waited, _) = fails(&service, settings("bad", "2", &[]), seed).await;
        assert!(waited < 3.0, "attempt {seed} waited {waited} s");
    }
}
