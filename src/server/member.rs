//! The state that the server reports in etcd's terms: `Maintenance.Status`, the query part of `Maintenance.Alarm`,
//! and `Cluster.MemberList`. The cluster has one member.

use etcd_client::proto::{
    PbAlarmMember, PbAlarmRequest, PbAlarmResponse, PbMember, PbMemberListResponse, PbStatusResponse,
};
use tonic::Status;

use super::{
    api::{Api, RAFT_TERM},
    dispatch::unserved,
    kv::number,
};
use crate::backend::memory::engine::{Bounds, Usage};

/// etcd's alarm for a full database.
const NO_SPACE: i32 = 1;

impl Api {
    pub(super) fn status(&self) -> PbStatusResponse {
        let (usage, bounds, revision) =
            self.contents.live.look(|engine, _| (engine.usage(), engine.bounds(), engine.revision()));
        let size = number(usage.live_bytes + usage.history_bytes);
        let index = revision.unsigned_abs();
        PbStatusResponse {
            header: self.header_at(revision),
            version: self.version.clone(),
            db_size: size,
            db_size_in_use: size,
            db_size_quota: number(bounds.live_bytes),
            leader: self.contents.member_id,
            raft_term: RAFT_TERM,
            raft_index: index,
            raft_applied_index: index,
            errors: if is_full(usage, bounds) { vec!["NOSPACE".to_owned()] } else { Vec::new() },
            ..Default::default()
        }
    }

    /// Lists the active alarms. Clients cannot raise or clear alarms.
    pub(super) fn alarm(&self, request: &PbAlarmRequest) -> Result<PbAlarmResponse, Status> {
        if request.action != 0 {
            return Err(unserved("Maintenance/Alarm, but to list"));
        }
        let full = self.contents.live.look(|engine, _| is_full(engine.usage(), engine.bounds()));
        let alarm = PbAlarmMember { member_id: self.contents.member_id, alarm: NO_SPACE };
        Ok(PbAlarmResponse { header: self.header(), alarms: if full { vec![alarm] } else { Vec::new() } })
    }

    pub(super) fn member_list(&self) -> PbMemberListResponse {
        let member = PbMember {
            id: self.contents.member_id,
            name: "lattice-rdzv".to_owned(),
            peer_ur_ls: Vec::new(),
            client_ur_ls: vec![self.endpoint.clone()],
            is_learner: false,
        };
        PbMemberListResponse { header: self.header(), members: vec![member] }
    }
}

/// Whether there is almost no room for another key.
fn is_full(usage: Usage, bounds: Bounds) -> bool {
    usage.live_bytes > bounds.live_bytes / 100 * 99
}
