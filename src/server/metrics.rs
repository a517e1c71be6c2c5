//! The metrics of a server.
//!
//! A metric that means the same as one of etcd's has etcd's name, so that alerts and dashboards for etcd work. The others
//! begin with `lattice_rdzv_`. Some values have both names.

use std::sync::atomic::Ordering;

use super::{api::Api, budget::MOST_BYTES, process, requests::Call};
use crate::exposition::Page;

/// Returns the present value of every metric.
pub(super) fn text(api: &Api) -> String {
    let mut page = Page::default();
    of_etcd(api, &mut page);
    own(api, &mut page);
    calls(api, &mut page);
    process::write(&mut page);
    page.into_text()
}

fn of_etcd(api: &Api, page: &mut Page) {
    let live = &api.contents.live;
    let (usage, bounds, revision, compacted) =
        live.look(|engine, _| (engine.usage(), engine.bounds(), engine.revision(), engine.compacted()));
    page.gauge("etcd_server_has_leader", "1, because the server is the only member.", 1);
    page.gauge("etcd_server_is_leader", "1, because the server is the only member.", 1);
    page.family("etcd_server_id", "gauge", "The member ID.");
    page.sample("etcd_server_id", &[("server_id", &format!("{:x}", api.contents.member_id))], 1);
    page.family("etcd_server_version", "gauge", "The version that clients see.");
    page.sample("etcd_server_version", &[("server_version", &api.version)], 1);
    let size = usage.live_bytes + usage.history_bytes;
    page.gauge("etcd_mvcc_db_total_size_in_bytes", "Bytes of keys, values, leases and history.", size);
    page.gauge("etcd_mvcc_db_total_size_in_use_in_bytes", "Bytes of keys, values, leases and history.", size);
    page.gauge(
        "etcd_server_quota_backend_bytes",
        "Bytes beyond which writes are refused.",
        bounds.live_bytes,
    );
    page.gauge("etcd_debugging_mvcc_keys_total", "Current number of keys.", usage.keys);
    page.gauge("etcd_debugging_mvcc_current_revision", "Current revision.", revision);
    page.gauge("etcd_debugging_mvcc_compact_revision", "Revision of the last compaction.", compacted);
    page.gauge("etcd_debugging_mvcc_watcher_total", "Current number of watches.", live.watches());
    let streams = api.streams.load(Ordering::Relaxed);
    page.gauge("etcd_debugging_mvcc_watch_stream_total", "Current number of watch streams.", streams);
}

fn own(api: &Api, page: &mut Page) {
    let live = &api.contents.live;
    let (usage, bounds, revision, compacted) =
        live.look(|engine, _| (engine.usage(), engine.bounds(), engine.revision(), engine.compacted()));
    let connections = api.connections.load(Ordering::Relaxed);
    page.gauge("lattice_rdzv_revision", "The number of the last write.", revision);
    page.gauge("lattice_rdzv_compacted_revision", "The oldest revision that can be read.", compacted);
    page.gauge("lattice_rdzv_keys", "Current number of keys.", usage.keys);
    page.gauge("lattice_rdzv_leases", "Current number of leases.", usage.leases);
    page.gauge("lattice_rdzv_live_bytes", "Bytes of keys, values and leases.", usage.live_bytes);
    page.gauge("lattice_rdzv_live_bytes_limit", "Bytes beyond which writes are refused.", bounds.live_bytes);
    page.gauge("lattice_rdzv_history_bytes", "Bytes of overwritten or deleted values.", usage.history_bytes);
    page.gauge(
        "lattice_rdzv_history_bytes_limit",
        "Bytes beyond which history is compacted.",
        bounds.history_bytes,
    );
    page.gauge(
        "lattice_rdzv_history_revisions",
        "Revisions at which a watch can begin.",
        usage.history_revisions,
    );
    page.gauge("lattice_rdzv_watches", "Current number of watches.", live.watches());
    let streams = api.streams.load(Ordering::Relaxed);
    page.gauge("lattice_rdzv_watch_streams", "Current number of watch streams.", streams);
    page.gauge("lattice_rdzv_connections", "Current number of client connections.", connections);
    page.gauge(
        "lattice_rdzv_buffered_bytes",
        "Bytes that clients make the server buffer.",
        api.budget.used(),
    );
    page.gauge(
        "lattice_rdzv_buffered_bytes_limit",
        "Bytes beyond which requests are refused and watches wait.",
        MOST_BYTES,
    );
    page.gauge("lattice_rdzv_up_seconds", "Seconds since the server started.", api.began.elapsed().as_secs());
}

fn calls(api: &Api, page: &mut Page) {
    page.family("lattice_rdzv_requests_total", "counter", "Calls by kind.");
    for call in Call::ALL {
        page.sample("lattice_rdzv_requests_total", &[("call", call.name())], api.counters.of(*call));
    }
    page.family("grpc_server_started_total", "counter", "Calls by service, method and type.");
    for call in Call::ALL {
        let (service, method) = call.name().split_once('/').unwrap_or(("", call.name()));
        let service = format!("etcdserverpb.{service}");
        let kind = if call.streams() { "bidi_stream" } else { "unary" };
        page.sample(
            "grpc_server_started_total",
            &[("grpc_method", method), ("grpc_service", &service), ("grpc_type", kind)],
            api.counters.of(*call),
        );
    }
}
