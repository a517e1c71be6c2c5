//! A coordinator that was replaced changes nothing, however late its write arrives, and even if the service lost its
//! data since.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use lattice_rdzv::{
    Error,
    backend::{
        Backend as _, Keys, Operation, Range, Txn,
        memory::{Call, Fate, MemoryBackend, MemoryService},
    },
    coordinator::{TermFence, Written},
    error::Applied,
    node::Node,
    protocol::{
        identity::NodeId,
        records::{CoordinatorRecord, NodeRecord, Record as _},
        sizing::Sizing,
    },
    run::{Context, Entropy},
};
use tokio::time::sleep;

use crate::support::{
    nodes::{Agent, TTL, place, settings},
    tapped::Tapped,
};

/// The keys of a coordinator and of a round, written by `nonce` as the first keys of a service without data.
async fn term(
    context: &Context,
    link: &MemoryBackend,
    nonce: &str,
) -> Result<(TermFence, i64), lattice_rdzv::Error> {
    let key = context.keys.coordinator();
    let node = NodeId::from_random(2);
    let (name, nonce, sizing) = ("n".into(), nonce.into(), Sizing::default());
    let record = CoordinatorRecord { node, name, nonce, min: 1, max: 2, sizing };
    let put = |key: String, value: Vec<u8>| Txn::new(Operation::put(key, value, 0));
    link.txn(put(key.clone(), record.encode())).await?;
    let round = link.txn(put(context.keys.round(), b"{}".to_vec())).await?.header.revision;
    let found = link.range(Range::new(Keys::one(key.clone()))).await?.items;
    Ok((TermFence::of(&key, &found[0])?, round))
}

#[tokio::test(start_paused = true)]
async fn equal_revisions_after_a_loss_of_data_do_not_admit_an_old_coordinator()
-> Result<(), lattice_rdzv::Error> {
    let service = MemoryService::new();
    let link = Arc::new(service.connect());
    let context = Context::new(Arc::clone(&link) as _, settings("n", "1:2", &[]), Entropy::seeded(1));
    let (old, round) = term(&context, &link, "old").await?;
    let change = || vec![Operation::put(context.keys.round(), "late", 0)];

    service.wipe();
    let (new, same_round) = term(&context, &link, "new").await?;
    assert_eq!(round, same_round, "revisions begin again, so that only the nonce tells the two terms apart");
    assert!(matches!(old.write(&context, round, None, change()).await?, Written::TermLost(_)));

    assert!(matches!(new.write(&context, round - 1, None, change()).await?, Written::Stale));
    assert!(matches!(new.write(&context, round, None, change()).await?, Written::Done(_)));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn nothing_is_decided_in_a_closed_run() -> Result<(), lattice_rdzv::Error> {
    let service = MemoryService::new();
    let link = Arc::new(service.connect());
    let context = Context::new(Arc::clone(&link) as _, settings("n", "1:2", &[]), Entropy::seeded(1));
    let (term, round) = term(&context, &link, "only").await?;
    link.txn(Txn::new(Operation::put(context.keys.closed(), "{}", 0))).await?;
    let change = vec![Operation::put(context.keys.round(), "late", 0)];
    assert!(matches!(term.write(&context, round, None, change).await?, Written::TermLost(_)));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn decision_that_arrives_after_a_loss_of_data_changes_nothing() -> Result<(), lattice_rdzv::Error> {
    let service = MemoryService::new();
    let settings = |name| settings(name, "2:3", &[("last_call_timeout", "1")]);
    let link = Tapped::new(service.connect_with(TTL / 4));
    let backend = Arc::new(link.clone());
    let first = Node::join(backend, settings("a"), Entropy::seeded(1), place("a")).await?;
    let second = Agent::join(&service, settings("b"), 2).await?;
    let third = Agent::join(&service, settings("c"), 3).await?;
    let worlds = tokio::join!(
        first.next_world(None, None),
        second.node.next_world(None, None),
        third.node.next_world(None, None)
    );
    assert_eq!(worlds.0?.place.size, 3);

    // The coordinator's next decision, that the third node is lost, is in flight when the service loses its data.
    let caught = Arc::new(Mutex::new(None));
    let catch = Arc::clone(&caught);
    let round = "/lattice/rdzv/default/run/ctl/round";
    link.tap().refuses = Some(Box::new(move |txn| {
        let decision = txn.operations().iter().find_map(|operation| match operation {
            Operation::Put { key, lease, .. } if key == round.as_bytes() => Some(*lease),
            _ => None,
        });
        let lease = decision?;
        catch.lock().expect("whole").get_or_insert((txn.clone(), lease));
        Some(Error::Unavailable {
            endpoint: "memory".into(),
            cause: "late".into(),
            applied: Applied::Unknown,
        })
    }));
    drop(third);
    while caught.lock().expect("whole").is_none() {
        sleep(Duration::from_millis(10)).await;
    }
    link.tap().refuses = None;
    service.wipe();
    sleep(TTL * 6).await;

    // Everything except the fencing check would permit the write. Even the lease of the round exists.
    let (late, lease) = caught.lock().expect("whole").take().expect("a decision");
    let client = service.connect();
    client.lease_grant(lease, TTL * 10).await?;
    let read = async || client.range(Range::new(Keys::one(round))).await.map(|found| found.items);
    let before = read().await?;
    assert_eq!(before.len(), 1, "the world was restored");
    assert!(!client.txn(late).await?.succeeded, "it must be refused by what it compares");
    assert_eq!(read().await?, before);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn join_that_arrives_late_does_not_restore_an_old_record() -> Result<(), lattice_rdzv::Error> {
    let service = MemoryService::new();
    let link = Arc::new(service.connect_with(TTL / 4));
    let mut joins = 0;
    link.interfere(Some(Box::new(move |call| {
        joins += u32::from(call == Call::Txn);
        let late = call == Call::Txn && joins == 1;
        Fate { request_delay: if late { TTL } else { Duration::ZERO }, ..Fate::default() }
    })));
    let settings = settings("a", "1:2", &[("last_call_timeout", "0")]);
    let node = Node::join(Arc::clone(&link) as _, settings, Entropy::seeded(1), place("a")).await?;
    assert_eq!(node.next_world(None, None).await?.place.rank, 0);
    assert_eq!(node.next_world(Some(2), None).await?.place.round, 2);
    sleep(TTL * 2).await;
    let nodes = Keys::prefix("/lattice/rdzv/default/run/nodes/");
    let found = service.connect().range(Range::new(nodes)).await?.items;
    assert_eq!(found.len(), 1);
    assert_eq!(NodeRecord::decode("a", &found[0].value)?.port, 2);
    Ok(())
}
