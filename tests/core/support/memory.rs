//! Schedules on the memory backend: every call may be lost or delayed, and the service is paused, stopped, compacted,
//! restored from an older backup, or loses all data.

use std::{sync::Arc, time::Duration};

use lattice_rdzv::backend::{
    Backend,
    memory::{Call, Fate, MemoryBackend, MemoryService, engine::Engine},
};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use tokio::time::sleep;

use super::{
    nodes::TTL,
    schedule::{Ground, Schedule, Weather},
};

/// The service, and whether the connections to it are unreliable.
pub(crate) struct Memory {
    service: MemoryService,
    noise: bool,
    backup: Option<Engine>,
}

impl Ground for Memory {
    type Link = Arc<MemoryBackend>;

    async fn prepare(random: &mut StdRng, weather: Weather) -> Self {
        let noise = weather == Weather::Stormy && random.next_u64().is_multiple_of(2);
        Self { service: MemoryService::new(), noise, backup: None }
    }

    fn link(&mut self, _: &str, seed: u64) -> Self::Link {
        let link = Arc::new(self.service.connect_with(TTL / 4));
        if self.noise {
            let mut random = StdRng::seed_from_u64(seed);
            link.interfere(Some(Box::new(move |call| noise(&mut random, call))));
        }
        link
    }

    fn backend(link: &Self::Link) -> Arc<dyn Backend> {
        Arc::clone(link) as _
    }

    fn observer(&self) -> Arc<dyn Backend> {
        Arc::new(self.service.connect())
    }

    fn cut(&mut self, link: &Self::Link, _: u64) -> &'static str {
        link.cut();
        "cut off"
    }

    fn reconnect(&mut self, link: &Self::Link) {
        link.reconnect();
    }

    async fn clear(&mut self, links: &[&Self::Link]) {
        for link in links {
            link.reconnect();
            link.interfere(None);
        }
    }

    async fn befall(schedule: &mut Schedule<Self>, kind: u64) {
        if schedule.below(2) == 0 {
            schedule.book.write("service: backed up");
            schedule.ground.backup = Some(schedule.ground.service.backup());
        }
        match kind {
            0 => {
                if let Some(index) = schedule.one() {
                    let lost = usize::try_from(schedule.below(4)).unwrap();
                    let living = &schedule.agents[index];
                    schedule.book.write(format!("{}: loses {lost} answers", living.name));
                    living.link.lose_answers(lost);
                }
            }
            1 => {
                let restores = schedule.below(2) == 0;
                if let Some(backup) = schedule.ground.backup.clone().filter(|_| restores) {
                    schedule.happened("backups restored");
                    schedule.wiped(&format!("service: restored from revision {}", backup.revision()));
                    schedule.ground.service.restore(backup);
                } else {
                    schedule.wiped("service: wiped");
                    schedule.ground.service.wipe();
                }
                schedule.settled_weather().await;
            }
            2 | 3 => {
                let time = schedule.seconds(15.0);
                schedule.book.write(format!("service: paused for {:.1} s", time.as_secs_f64()));
                schedule.happened("pauses");
                schedule.ground.service.pause();
                sleep(time).await;
                schedule.check_uncertain(time);
                schedule.ground.service.resume();
                schedule.settled_weather().await;
            }
            4 => {
                let time = schedule.seconds(15.0);
                schedule.book.write(format!("service: down for {:.1} s", time.as_secs_f64()));
                schedule.happened("restarts");
                schedule.ground.service.stop();
                sleep(time).await;
                schedule.ground.service.start();
            }
            _ => {
                schedule.book.write("service: compacted");
                let _ = schedule.ground.service.compact(schedule.ground.service.revision());
            }
        }
    }
}

/// A network that works most of the time.
fn noise(random: &mut StdRng, call: Call) -> Fate {
    let mut delay = |most: u64| Duration::from_micros(random.next_u64() % (most * 1000));
    let mut fate = Fate { request_delay: delay(5), answer_delay: delay(5), ..Fate::default() };
    match random.next_u64() % 200 {
        0 => fate.request_lost = true,
        1 => fate.answer_lost = true,
        // Later than any attempt waits, so that it arrives long after its sender has given it up.
        2 if call.writes() => fate.request_delay = Duration::from_millis(random.next_u64() % 7_000),
        _ => {}
    }
    fate
}
