//! What a node does for its coordinator with its lifelines: it greets the members of the world, and asks suspects, and
//! the members around a dead one, whether they are alive.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::lifeline_events::{Greeting, LifelineEvent};
use crate::{
    backend::Backend,
    coordinator::{Inquiry, Suspicious},
    lifeline::{Questions, Suspicion, Verdict},
    protocol::{
        identity::NodeId,
        neighbors::around,
        records::{Neighbor, SuspectVerdict},
    },
};

/// Members are greeted only after this time, which their world has to begin its work. Those that do not respond are
/// greeted again after twice the time, and so on.
const GREETING_DELAY: Duration = Duration::from_secs(1);
/// How many members are asked at once.
const AT_ONCE: usize = 64;

/// How long a member may take to respond. A member that takes longer does not end the walk, and is not reported.
const ANSWER_LIMIT: Duration = Duration::from_millis(50);

/// How long a suspect may take to respond.
const SUSPECT_LIMIT: Duration = Duration::from_secs(1);

/// A node that asks others for its coordinator.
pub(super) struct Inquirer {
    pub(super) questions: Arc<dyn Questions>,
    /// Its id.
    pub(super) own: NodeId,
    /// The random name of its world.
    pub(super) world: u64,
    /// The addresses at which members have greeted.
    pub(super) greeted: Arc<BTreeMap<NodeId, SocketAddr>>,
    pub(super) backend: Arc<dyn Backend>,
}

impl Inquirer {
    pub(super) async fn inquire(self, inquiry: Inquiry) -> LifelineEvent {
        match inquiry {
            Inquiry::Greet(members) => self.greet(Greeting { members, delay: GREETING_DELAY }).await,
            Inquiry::Walk { dead, members } => {
                let walks = dead.iter().map(|rank| self.walk_around(*rank, &members));
                LifelineEvent::Suspicions(join_all(walks).await.concat())
            }
            Inquiry::Examine(member, suspect) => {
                LifelineEvent::Suspicions(self.examine(member, suspect).await)
            }
        }
    }

    /// Greets members that have not responded before.
    pub(super) async fn greet(self, greeting: Greeting) -> LifelineEvent {
        sleep(greeting.delay).await;
        let Self { questions, own, world, greeted, .. } = self;
        let ids: BTreeSet<NodeId> = greeting.members.iter().map(|member| member.id).collect();
        let kept = greeted.iter().filter(|(id, _)| ids.contains(id));
        let mut greeted: BTreeMap<NodeId, SocketAddr> = kept.map(|(id, address)| (*id, *address)).collect();
        let is_missing = |member: &&Neighbor| !greeted.contains_key(&member.id);
        let mut rest: Vec<Neighbor> = greeting.members.iter().filter(is_missing).cloned().collect();
        let mut asked = JoinSet::new();
        loop {
            while let Some(member) = rest.pop_if(|_| asked.len() < AT_ONCE) {
                let questions = Arc::clone(&questions);
                asked.spawn(async move { Some((member.id, questions.greet(&member, own, world).await?)) });
            }
            match asked.join_next().await {
                Some(answer) => greeted.extend(answer.ok().flatten()),
                None => return LifelineEvent::Greeted { again: greeting.again(&greeted), greeted },
            }
        }
    }

    /// Asks a suspect. Returns it if it refuses at the address at which it greeted. Otherwise writes the verdict.
    async fn examine(&self, neighbor: Neighbor, suspect: Suspicious) -> Vec<Suspicion> {
        let verdict = if let Some(address) = self.greeted.get(&neighbor.id) {
            let sign = format!("suspected by {}: {}", suspect.record.by, suspect.record.why);
            let suspicion =
                Suspicion { world: self.world, neighbor, address: *address, sign, at: Instant::now() };
            match timeout(SUSPECT_LIMIT, self.questions.confirm(&suspicion, self.own)).await {
                Ok(Verdict::Dead) => return vec![suspicion],
                Ok(Verdict::Alive) => SuspectVerdict::Alive,
                Ok(Verdict::Unknown) | Err(_) => SuspectVerdict::Unknown,
            }
        } else {
            // A refusal at an address that never greeted is no sign of a death.
            let greeting = self.questions.greet(&neighbor, self.own, self.world);
            match timeout(SUSPECT_LIMIT, greeting).await {
                Ok(Some(_)) => SuspectVerdict::Alive,
                Ok(None) | Err(_) => SuspectVerdict::Unknown,
            }
        };
        suspect.answer(self.backend.as_ref(), verdict).await;
        Vec::new()
    }

    /// Asks the members around a dead one.
    async fn walk_around(&self, rank: u32, members: &[Neighbor]) -> Vec<Suspicion> {
        let (forwards, backwards) = (around(rank, members), around(rank, members).rev());
        let (forwards, backwards) = tokio::join!(self.walk(forwards), self.walk(backwards));
        [forwards, backwards].concat()
    }

    /// Asks members in this order until one is alive. Returns those that refuse at the address at which they greeted.
    async fn walk<'member>(&self, mut members: impl Iterator<Item = &'member Neighbor>) -> Vec<Suspicion> {
        let (mut dead, mut batch) = (Vec::new(), 1);
        loop {
            let next: Vec<&Neighbor> = members.by_ref().take(batch).collect();
            if next.is_empty() {
                return dead;
            }
            let mut asked = JoinSet::new();
            for (position, member) in next.into_iter().enumerate() {
                let Some(address) = self.greeted.get(&member.id) else { continue };
                let (neighbor, address, world) = (member.clone(), *address, self.world);
                let (sign, at) = ("its neighbor died".to_owned(), Instant::now());
                let suspicion = Suspicion { world, neighbor, address, sign, at };
                let (questions, own) = (Arc::clone(&self.questions), self.own);
                asked.spawn(async move {
                    let verdict = timeout(ANSWER_LIMIT, questions.confirm(&suspicion, own)).await;
                    (position, suspicion, verdict.unwrap_or(Verdict::Unknown))
                });
            }
            let mut answers: Vec<_> = asked.join_all().await;
            answers.sort_unstable_by_key(|(position, ..)| *position);
            for (_, suspicion, verdict) in answers {
                match verdict {
                    Verdict::Alive => return dead,
                    Verdict::Dead => dead.push(suspicion),
                    Verdict::Unknown => {}
                }
            }
            batch = (2 * batch).min(AT_ONCE);
        }
    }
}
