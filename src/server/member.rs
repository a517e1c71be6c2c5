//! What the server says of itself in etcd's terms: `Maintenance.Status` and `Cluster.MemberList`. It is a cluster of one.

use etcd_client::proto::{PbMember, PbMemberListResponse, PbStatusResponse};

use super::{
    api::{Api, RAFT_TERM, VERSION},
    kv::number,
};

impl Api {
    pub(super) fn status(&self) -> PbStatusResponse {
        let (usage, bounds, revision) =
            self.contents.live.look(|engine, _| (engine.usage(), engine.bounds(), engine.revision()));
        let size = number(usage.live_bytes + usage.history_bytes);
        let full = usage.live_bytes >= bounds.live_bytes;
        let index = revision.unsigned_abs();
        PbStatusResponse {
            header: self.header_at(revision),
            version: VERSION.to_owned(),
            db_size: size,
            db_size_in_use: size,
            db_size_quota: number(bounds.live_bytes),
            leader: self.contents.member_id,
            raft_term: RAFT_TERM,
            raft_index: index,
            raft_applied_index: index,
            errors: if full { vec!["NOSPACE".to_owned()] } else { Vec::new() },
            ..Default::default()
        }
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
