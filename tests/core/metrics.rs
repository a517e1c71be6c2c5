//! The metrics of the embedded server: their port, and whether metrics with etcd's names match those of etcd.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use lattice_rdzv::{
    backend::{
        Backend, Keys, Operation, Range, Txn,
        etcd::{EtcdBackend, EtcdOptions},
    },
    dashboard::{Dashboard, DashboardOptions, RunSource},
    server::{Server, ServerOptions, bind},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{embedded::Embedded, etcd::Etcd, within};

/// Sends one request, and returns the status and the body of the response.
async fn request(address: SocketAddr, method: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // HTTP/1.0, so that etcd does not send its page in chunks.
    let request = format!("{method} {path} HTTP/1.0\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

async fn page(address: SocketAddr, path: &str) -> (u16, String) {
    request(address, "GET", path).await
}

/// A server with a metrics port. Also returns the address of that port.
async fn with_metrics(options: ServerOptions) -> (Server, SocketAddr) {
    let mut server = Server::start(bind("127.0.0.1", 0).await.unwrap(), options).unwrap();
    let metrics = server.serve_metrics(bind("127.0.0.1", 0).await.unwrap(), None).unwrap();
    (server, address(&metrics))
}

fn address(endpoint: &str) -> SocketAddr {
    endpoint.trim_start_matches("http://").parse().unwrap()
}

/// The type of each metric.
fn types(text: &str) -> BTreeMap<&str, &str> {
    text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect()
}

fn value(text: &str, name: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
}

async fn put(backend: &EtcdBackend, key: &str) {
    let put = Operation::put(key, "1", 0);
    backend.txn(Txn::new(put)).await.unwrap();
}

#[tokio::test]
async fn metrics_port_serves_pages_and_no_calls() {
    let (server, metrics) = with_metrics(ServerOptions::default()).await;
    for path in ["/livez", "/readyz"] {
        assert_eq!(page(metrics, path).await, (200, "ok\n".to_owned()));
    }
    assert_eq!(page(metrics, "/health").await, page(server.address(), "/health").await);
    assert!(page(metrics, "/version").await.1.contains("etcdserver"));
    assert_eq!(page(metrics, "/missing").await.0, 404);
    let client = EtcdBackend::connect(EtcdOptions::new([format!("http://{metrics}")])).unwrap();
    assert!(client.range(Range::new(Keys::one("a"))).await.is_err());
    assert_eq!(request(metrics, "POST", "/etcdserverpb.KV/Range").await.0, 404);

    let client = EtcdBackend::connect(EtcdOptions::new([server.endpoint()])).unwrap();
    put(&client, "a").await;
    let (status, text) = page(metrics, "/metrics").await;
    assert_eq!(status, 200);
    for (name, wanted) in [
        ("etcd_server_has_leader", 1.0),
        ("etcd_debugging_mvcc_keys_total", 1.0),
        ("etcd_debugging_mvcc_current_revision", 2.0),
        // The client's connection, and none of those to the metrics port.
        ("lattice_rdzv_connections", 1.0),
        (
            r#"grpc_server_started_total{grpc_method="Txn",grpc_service="etcdserverpb.KV",grpc_type="unary"}"#,
            1.0,
        ),
    ] {
        assert!((value(&text, name) - wanted).abs() < f64::EPSILON, "{name}: {}", value(&text, name));
    }
    assert!(value(&text, "process_open_fds") > 3.0);
    assert!(value(&text, "process_resident_memory_bytes") < value(&text, "process_virtual_memory_bytes"));

    server.stop().await;
    assert!(TcpStream::connect(metrics).await.is_err());
}

#[tokio::test]
async fn metrics_with_etcds_names_have_etcds_types_and_values() {
    let Some(etcd) = Etcd::start().await else { return };
    let server = Embedded::start().await;
    for backend in [etcd.backend(), server.backend()] {
        for key in ["a", "b", "a"] {
            put(&backend, key).await;
        }
    }
    let (_, theirs) = page(address(etcd.endpoint()), "/metrics").await;
    let (_, ours) = page(address(&server.endpoint()), "/metrics").await;
    let (types_of_theirs, types_of_ours) = (types(&theirs), types(&ours));
    let shared = types_of_ours.iter().filter(|(name, _)| !name.starts_with("lattice_rdzv_"));
    let others: Vec<_> =
        shared.clone().filter(|(name, kind)| types_of_theirs.get(*name) != Some(kind)).collect();
    assert!(others.is_empty(), "{others:?}");
    assert!(shared.count() > 15);
    for name in
        ["etcd_server_has_leader", "etcd_debugging_mvcc_keys_total", "etcd_debugging_mvcc_current_revision"]
    {
        assert!((value(&ours, name) - value(&theirs, name)).abs() < f64::EPSILON, "{name}");
    }
}

#[tokio::test]
async fn documentation_lists_every_metric_and_no_other() {
    let server = Embedded::start().await;
    let (_, text) = page(address(&server.endpoint()), "/metrics").await;
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md")).unwrap();
    let documented: BTreeSet<&str> = page
        .split('`')
        .filter(|word| {
            ["etcd_", "grpc_", "process_", "lattice_rdzv_"].iter().any(|begin| word.starts_with(begin))
        })
        .collect();
    let exposed: BTreeSet<&str> = types(&text).into_keys().collect();
    assert_eq!(documented, exposed);
}

#[tokio::test]
async fn used_up_metrics_port_leaves_clients_alone() {
    let (server, metrics) = with_metrics(ServerOptions::default()).await;
    let mut silent = Vec::new();
    for _ in 0..300 {
        silent.push(TcpStream::connect(metrics).await.unwrap());
    }
    within("the connections beyond the limit are closed", async {
        for stream in silent.split_off(256) {
            let mut stream = stream;
            assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0);
        }
    })
    .await;
    let client = EtcdBackend::connect(EtcdOptions::new([server.endpoint()])).unwrap();
    put(&client, "a").await;
    drop(silent);
    within("the metrics port responds again", async {
        loop {
            let mut stream = TcpStream::connect(metrics).await.unwrap();
            let _ = stream.write_all(b"GET /livez HTTP/1.0\r\n\r\n").await;
            let mut answer = Vec::new();
            if stream.read_to_end(&mut answer).await.is_ok() && answer.starts_with(b"HTTP/1.0 200") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn star_listens_on_every_address() {
    let mut server = Server::start(bind("*", 0).await.unwrap(), ServerOptions::default()).unwrap();
    let metrics = address(&server.serve_metrics(bind("*", 0).await.unwrap(), None).unwrap());
    for port in [server.address().port(), metrics.port()] {
        assert_eq!(page(SocketAddr::from(([127, 0, 0, 1], port)), "/readyz").await.0, 200);
    }
    let error = bind("*", metrics.port()).await.unwrap_err().to_string();
    assert!(error.contains(&format!("cannot listen on port {} of `*`", metrics.port())), "{error}");
}

#[tokio::test]
async fn metrics_port_has_the_metrics_of_runs_when_there_is_a_dashboard() {
    let mut server = Server::start(bind("127.0.0.1", 0).await.unwrap(), ServerOptions::default()).unwrap();
    let source = RunSource::of_server(&server);
    let page_listener = bind("127.0.0.1", 0).await.unwrap();
    let dashboard = Dashboard::start(page_listener, source, DashboardOptions::default()).unwrap();
    let listener = bind("127.0.0.1", 0).await.unwrap();
    let metrics = address(&server.serve_metrics(listener, Some(dashboard.metrics())).unwrap());
    let (status, text) = page(metrics, "/metrics").await;
    assert_eq!(status, 200);
    let own: BTreeSet<&str> = types(&text).into_keys().collect();
    assert!(own.is_superset(&BTreeSet::from([
        "lattice_runs",
        "lattice_service_up",
        "lattice_rdzv_requests_total"
    ])));
    let declared = text.lines().filter(|line| line.starts_with("# TYPE ")).count();
    assert_eq!(declared, own.len(), "no metric is declared twice");
}
