//! The facts about a run that need no judgment. Pure.

use super::{
    picture::{CoordinatorFacts, Loss, RoundStatus, RunFacts},
    records::{Observation, RunRecords, Scene},
};
use crate::protocol::records::{HistoryRecord, Phase};

pub(super) fn run_facts(records: &RunRecords, observation: &Observation) -> RunFacts {
    let mut facts = RunFacts {
        id: observation.run_id.clone(),
        tenant: observation.tenant.clone(),
        life: records.life().map(str::to_owned),
        closed: records.closed.as_ref().map(Into::into),
        coordinator: records.coordinator.as_ref().map(|(record, _)| CoordinatorFacts {
            name: record.name.clone(),
            id: record.node.to_string(),
            last_seen: None,
        }),
        ..RunFacts::default()
    };
    if let Some(round) = &records.round {
        let world = round.has_world().then_some(round);
        facts.phase = Some(match round.phase {
            _ if records.closed.is_some() => "closed",
            Phase::Forming => "forming",
            Phase::Restoring => "restoring",
            Phase::Running if round.change.is_some() => "changing",
            Phase::Running => "running",
        });
        facts.round = Some(round.round);
        facts.size = Some(round.size);
        facts.min_nodes = Some(round.min);
        facts.max_nodes = Some(round.max);
        facts.sizing = Some(round.sizing.clone());
        facts.why = world.map(|round| round.why.clone());
        facts.master_address = world.map(|round| round.master_address.clone());
        facts.master_port = world.map(|round| round.master_port);
        facts.host.clone_from(&round.host);
        facts.submission.clone_from(&round.submission);
        facts.change.clone_from(&round.change);
    }
    facts
}

pub(super) fn round_status(record: &HistoryRecord, resumed: Option<f64>) -> RoundStatus {
    let change = record.change.as_ref();
    RoundStatus {
        round: record.round,
        formed_at: record.formed_at,
        took_seconds: record.took_seconds,
        stood_still_seconds: change.map(|_| record.took_seconds),
        resumed_after_seconds: resumed,
        size: record.size,
        newcomers: record.newcomers,
        cause: change.map(|change| change.kind),
        why: record.why.clone(),
        coordinator: record.coordinator.clone(),
        names: record.names.clone(),
        lost: record
            .lost
            .iter()
            .map(|loss| Loss {
                name: loss.name.clone(),
                evidence: loss.evidence.clone(),
                told_seconds: loss.told_seconds,
            })
            .collect(),
    }
}

#[expect(clippy::cast_precision_loss, reason = "seconds since 1970 are far below 2^52")]
pub(super) fn phase_since(records: &RunRecords, scene: Option<&Scene>) -> Option<f64> {
    if records.closed.is_some() {
        return None;
    }
    let scene = scene?;
    let round = records.round.as_ref()?;
    if round.has_world() && round.change.is_none() {
        return records.history.get(&round.round)?.formed_at.map(|formed| formed as f64);
    }
    let wanted = scene.roster.change_told.or(scene.roster.wanted_since);
    wanted.filter(|_| scene.has_clocks).map(|since| since.as_secs_f64())
}
