//! etcd's Lease service.

use std::{sync::Arc, time::Duration};

use etcd_client::proto::{
    PbLeaseGrantRequest, PbLeaseGrantResponse, PbLeaseKeepAliveRequest, PbLeaseKeepAliveResponse,
    PbLeaseLeasesResponse, PbLeaseRevokeRequest, PbLeaseRevokeResponse, PbLeaseStatus,
    PbLeaseTimeToLiveRequest, PbLeaseTimeToLiveResponse,
};
use futures_util::{Stream, StreamExt};
use prost::Message;
use tonic::{Status, Streaming};

use super::{
    api::{Api, stopped},
    bodies::Meter,
};
use crate::run::Entropy;

impl Api {
    pub(super) fn lease_grant(&self, request: PbLeaseGrantRequest) -> Result<PbLeaseGrantResponse, Status> {
        let entropy = Entropy::from_system();
        let (id, ttl, revision) = self.access(|engine, now| {
            let mut id = request.id;
            while id == 0 {
                id = (entropy.bits() >> 1).cast_signed();
            }
            let ttl = engine.grant(now, id, request.ttl)?;
            Ok::<_, Status>((id, ttl, engine.revision()))
        })?;
        let header = self.header_at(revision);
        Ok(PbLeaseGrantResponse { header, id, ttl: seconds(ttl), error: String::new() })
    }

    pub(super) fn lease_revoke(
        &self,
        request: PbLeaseRevokeRequest,
    ) -> Result<PbLeaseRevokeResponse, Status> {
        let revision = self.access(|engine, _| engine.revoke(request.id).map(|()| engine.revision()))?;
        Ok(PbLeaseRevokeResponse { header: self.header_at(revision) })
    }

    /// Renews the lease for each request. A TTL of 0 in the response means that the lease has expired.
    pub(super) fn lease_keep_alive(
        self: Arc<Self>,
        requests: Streaming<PbLeaseKeepAliveRequest>,
        meter: Meter,
    ) -> impl Stream<Item = Result<PbLeaseKeepAliveResponse, Status>> + Send + 'static {
        let mut stopping = self.stopping.clone();
        let until = async move { stopped(&mut stopping).await };
        let renew = move |PbLeaseKeepAliveRequest { id }| {
            let (ttl, revision) = self.access(|engine, now| (engine.keep_alive(now, id), engine.revision()));
            let ttl = ttl.map_or(0, seconds);
            let answer = PbLeaseKeepAliveResponse { header: self.header_at(revision), id, ttl };
            // For a client that sends requests continuously and reads no responses.
            meter.count(answer.encoded_len()).map(|()| answer)
        };
        requests.map(move |request| request.and_then(&renew)).take_until(Box::pin(until))
    }

    pub(super) fn lease_time_to_live(&self, request: &PbLeaseTimeToLiveRequest) -> PbLeaseTimeToLiveResponse {
        let id = request.id;
        let (view, revision) = self.access(|engine, now| (engine.lease(now, id), engine.revision()));
        let header = self.header_at(revision);
        match view {
            Some(view) => PbLeaseTimeToLiveResponse {
                header,
                id,
                ttl: seconds(view.remaining),
                granted_ttl: seconds(view.granted),
                keys: if request.keys { view.keys } else { Vec::new() },
            },
            None => PbLeaseTimeToLiveResponse { header, id, ttl: -1, ..Default::default() },
        }
    }

    pub(super) fn lease_leases(&self) -> PbLeaseLeasesResponse {
        self.access(|engine, _| {
            let leases = engine.leases().map(|id| PbLeaseStatus { id }).collect();
            PbLeaseLeasesResponse { header: self.header_at(engine.revision()), leases }
        })
    }
}

fn seconds(ttl: Duration) -> i64 {
    i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX)
}
