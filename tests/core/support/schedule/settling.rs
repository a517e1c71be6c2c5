//! The end of a schedule: all faults end, and what must hold then is checked.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use lattice_rdzv::{
    backend::{Keys, Range},
    node::State,
    protocol::records::{Outcome, Phase, Record as _, RoundRecord, WorldMembership},
};
use tokio::time::{Instant, sleep, timeout};

use super::{COUNT_LIMIT, Ground, Schedule, keys};
use crate::support::nodes::TTL;

impl<G: Ground> Schedule<G> {
    /// Waits until the remaining nodes belong to one submission, of which more may start.
    pub(super) async fn settle_submissions(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            self.remove_ended();
            self.serve_again().await;
            let submissions: BTreeSet<String> = {
                let ledger = self.book.ledger();
                self.agents.iter().map(|living| ledger.submissions[&living.name].clone()).collect()
            };
            if submissions.len() < 2 {
                if let Some(one) = submissions.first() {
                    self.submission = one.parse().expect("a number");
                }
                return;
            }
            if Instant::now() > deadline {
                self.book.broken(format!("nodes of the submissions {submissions:?} wait for each other"));
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// The present `ctl/round`.
    pub(super) async fn stored_round(&self) -> Option<RoundRecord> {
        let key = keys().round();
        let found = self.ground.observer().range(Range::new(Keys::one(key.as_str()))).await.ok()?;
        RoundRecord::decode(&key, &found.items.first()?.value).ok()
    }

    /// A node that has received nothing for longer than its lease exists must know that it may be lost, and must report
    /// to its owner that the node that hosts the service is lost.
    pub(crate) fn check_uncertain(&mut self, silence: Duration) {
        if silence < TTL * 2 {
            return;
        }
        let mut losses = 0;
        for living in &self.agents {
            let snapshot = living.node.subscribe().borrow().clone();
            let hosted = snapshot.world.as_ref().and_then(|world| world.host.clone());
            let elsewhere = !self.ground.is_hosted_by(&living.link) && snapshot.closed.is_none();
            if let Some(host) = hosted.filter(|_| elsewhere) {
                losses += 1;
                if snapshot.host_lost.as_ref().is_none_or(|lost| lost.host != host) {
                    self.book.broken(format!("{} did not learn that {host} is lost", living.name));
                }
            }
            if matches!(living.state(), State::Member | State::Seeking | State::Spare) {
                let state = living.state();
                self.book.broken(format!("{} is {state:?} after {silence:?} of silence", living.name));
            }
        }
        for _ in 0..losses {
            self.happened("times a host's loss was announced");
        }
    }

    /// Ends all faults, and checks that all remaining nodes settle within the configured times.
    pub(super) async fn settle(&mut self) {
        let links: Vec<_> = self.agents.iter().map(|living| &living.link).collect();
        self.ground.clear(&links).await;
        for living in &mut self.agents {
            living.cut = false;
        }
        self.book.write("all faults end");
        // By then, nodes that must learn of a closing have learned of it.
        sleep(TTL * 3).await;
        self.settle_submissions().await;
        // By then, what they had open is closed.
        sleep(Duration::from_millis(1)).await;
        while self.book.sizes().largest(self.agents.len()).is_none() || !self.ground.is_served() {
            self.start().await;
        }
        // The node that hosts the service leaves last.
        let ground = &self.ground;
        self.agents.sort_by_key(|living| ground.is_hosted_by(&living.link));
        // The last event may not have been noticed yet.
        sleep(TTL * 2).await;
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let unsettled = self.unsettled();
            if unsettled.is_empty() {
                self.check_ranks().await;
                self.check_count().await;
                break;
            }
            if Instant::now() > deadline {
                for living in &self.agents {
                    self.book.write(format!("{}: {:?}", living.name, *living.node.subscribe().borrow()));
                }
                self.book.broken(format!("not settled a minute after the last fault: {unsettled}"));
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    fn unsettled(&self) -> String {
        let expected = self.book.sizes().largest(self.agents.len()).map_or(0, |size| size as usize);
        let mut worlds = BTreeSet::new();
        let mut members = 0;
        for living in &self.agents {
            let seen = living.node.subscribe().borrow().clone();
            let is_restoring = seen.round.is_some_and(|round| round.phase == Phase::Restoring);
            if seen.state == State::Member && !is_restoring && living.node.num_nodes_waiting() == 0 {
                members += 1;
                worlds.extend(living.world.borrow().as_ref().map(|world| (world.life.clone(), world.round)));
            }
        }
        let states: Vec<_> =
            self.agents.iter().map(|living| (living.name.as_str(), living.state())).collect();
        if members == expected && worlds.len() == 1 {
            String::new()
        } else {
            format!("{members} of {expected} members in {} worlds: {states:?}", worlds.len())
        }
    }

    /// Checks that each rank was given once, and that all members read equal plans.
    async fn check_ranks(&self) {
        let members = || self.agents.iter().filter(|living| living.state() == State::Member);
        let places: Vec<WorldMembership> =
            members().filter_map(|living| living.world.borrow().clone()).collect();
        let mut ranks: Vec<u32> = places.iter().map(|place| place.rank).collect();
        ranks.sort_unstable();
        let size = u32::try_from(ranks.len()).unwrap();
        if ranks.iter().copied().ne(0..size) || places.iter().any(|place| place.size != size) {
            self.book.broken(format!("the places are not one each of {size}: {places:?}"));
        }
        let mut plans = BTreeSet::new();
        for living in members() {
            let Some(facts) = living.node.subscribe().borrow().world.clone() else { continue };
            match living.node.members(&facts, TTL).await {
                Ok(members) => {
                    plans.insert(members.iter().map(|entry| (entry.rank, entry.id)).collect::<Vec<_>>());
                }
                Err(error) => self.book.broken(format!("{} cannot read the plan: {error}", living.name)),
            }
        }
        if plans.len() != 1 || plans.iter().any(|plan| plan.len() != ranks.len()) {
            self.book.broken(format!("there is not one plan of {size}: {plans:?}"));
        }
    }

    /// Checks that the members have each counted themselves in the store of their world, once.
    async fn check_count(&self) {
        let members: Vec<_> = self.agents.iter().filter(|living| living.state() == State::Member).collect();
        let names = members.iter().map(|living| living.name.clone()).collect();
        let Some((living, facts)) = members.iter().find_map(|living| {
            let facts = living.node.subscribe().borrow().world.clone()?;
            Some((living, facts))
        }) else {
            return;
        };
        // The last of them may have received its world only a moment ago.
        sleep(COUNT_LIMIT).await;
        let store = living.node.round_store(&facts, true);
        match store.get_now(&["count"], COUNT_LIMIT).await {
            Ok(held) => {
                let text = held.into_iter().flatten().next().unwrap_or_else(|| b"0".to_vec());
                let sum = String::from_utf8(text).expect("text").parse().expect("a number");
                self.book.sum(&facts.place, &names, sum);
            }
            Err(error) => self.book.broken(format!("the count cannot be read: {error}")),
        }
    }

    /// All members of the world enter their exit barriers and leave. No node may start again because of that.
    pub(super) async fn finish(&mut self) {
        let members: Vec<_> = self.agents.iter().filter(|living| living.state() == State::Member).collect();
        for living in &members {
            let facts = living.node.subscribe().borrow().world.clone().expect("a member's world");
            let store = living.node.round_store(&facts, true);
            self.book.write(format!("{}: finishes", living.name));
            if let Err(error) = store.add("barrier", 1, true, Duration::from_secs(30)).await {
                self.book.broken(format!("{} cannot finish: {error}", living.name));
            }
        }
        let Some((last, others)) = members.split_last() else { return };
        for living in others {
            self.book.write(format!("{}: leaves, finished", living.name));
            living.task.abort();
            living.node.leave(None).await;
        }
        sleep(TTL * 2).await;
        if let Some((_, change)) = last.node.change() {
            self.book.broken(format!(
                "a change was announced to {} though all had finished: {}",
                last.name, change.why
            ));
        }
    }

    /// One node closes the run, all others end with it, and after some time nothing of the run remains.
    pub(super) async fn close(&mut self) {
        let Some(closer) = self
            .agents
            .iter()
            .find(|living| living.state() == State::Member)
            .map(|living| Arc::clone(&living.node))
        else {
            return;
        };
        let world = closer.subscribe().borrow().world.clone().expect("a member's world");
        self.book.closing();
        self.book.closed(&world.place.life, world.place.round);
        self.book.write("closing");
        if !closer.close(Outcome::Failed, "the end", None).await {
            self.book.broken("closing was not acknowledged".into());
        }
        for living in &mut self.agents {
            let seen = living.node.subscribe().borrow().clone();
            let of_this_life =
                seen.node.is_some() && seen.round.is_some_and(|round| round.life == world.place.life);
            let ended = timeout(Duration::from_secs(10), &mut living.task).await.is_ok();
            // A node that came too late for that life waits for the next one.
            if of_this_life && !ended {
                self.book.broken(format!("{} did not end when the run was closed", living.name));
            }
            if !living.node.leave(None).await {
                self.book.broken(format!("{} could not leave a closed run", living.name));
            }
        }
        if !self.ground.is_served() {
            return;
        }
        sleep(Duration::from_secs(1_000)).await;
        let left = self.ground.observer().range(Range::new(Keys::prefix("/"))).await.expect("a range").items;
        if let Some(item) = left.first() {
            let key = String::from_utf8_lossy(&item.key).into_owned();
            self.book.broken(format!("{} keys are left of the run, such as {key}", left.len()));
        }
    }
}
