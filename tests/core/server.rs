//! The embedded server beyond what a backend requires: other parts of etcd's API, authentication, pages over HTTP, and
//! clients that are stuck or silent or send invalid data.

use std::{collections::BTreeMap, path::Path, process::Command, time::Duration};

use etcd_client::proto::{PbWatchRequest, PbWatchResponse};
use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, Event, EventType, GetOptions, LeaseGrantOptions,
    LeaseTimeToLiveOptions, PutOptions, SortOrder, SortTarget, Txn, TxnOp, WatchFilterType, WatchOptions,
    WatchResponse, WatchStream,
};
use lattice_rdzv::{
    Error,
    backend::{
        Backend, Keys, Operation, Range,
        etcd::{EtcdBackend, EtcdOptions, Pem, TlsFiles},
    },
    hosting::hosted_run,
    node::{Node, Place, Search},
    protocol::keys::RunKeys,
    run::Entropy,
    server::{Bounds, Credentials, Server, ServerOptions, ServerTls, bind},
    settings::{Arguments, Origin, Settings},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::support::{embedded::Embedded, etcd::Etcd, within};

async fn client(server: &Embedded) -> Client {
    Client::connect([server.endpoint()], None).await.unwrap()
}

async fn started(options: ServerOptions) -> Embedded {
    Embedded::with(options).await
}

/// The page at a path: the status code and the text.
async fn page(server: &Embedded, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(server.server().address()).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// The value of a metric in `/metrics`.
async fn metric(server: &Embedded, name: &str) -> i64 {
    let (_, text) = page(server, "/metrics").await;
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("lattice_rdzv_{name} ")));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
}

async fn until_metric(server: &Embedded, name: &str, holds: impl Fn(i64) -> bool) {
    within(&format!("the right `{name}`"), async {
        while !holds(metric(server, name).await) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

async fn next(stream: &mut WatchStream) -> WatchResponse {
    within("an answer", stream.message()).await.unwrap().unwrap()
}

fn told(event: &Event) -> String {
    let (kind, item) = (event.event_type(), event.kv().unwrap());
    let previous = event.prev_kv().map_or("nothing", |item| item.value_str().unwrap());
    let value = if kind == EventType::Delete { "gone" } else { item.value_str().unwrap() };
    format!("{} {value} after {previous}", item.key_str().unwrap())
}

#[tokio::test]
async fn range_is_limited_sorted_counted_and_filtered() {
    let server = Embedded::start().await;
    let mut client = client(&server).await;
    for (key, value) in [("k/a", "3"), ("k/b", "1"), ("k/c", "2"), ("k/a", "4")] {
        client.put(key, value, None).await.unwrap();
    }
    let mut keys = async |options: GetOptions| {
        let answer = client.get("k/", Some(options.with_prefix())).await.unwrap();
        let keys: Vec<_> = answer.kvs().iter().map(|item| item.key_str().unwrap().to_owned()).collect();
        (keys.join(" "), answer.count(), answer.more())
    };
    let all = GetOptions::new;
    assert_eq!(keys(all().with_limit(2)).await, ("k/a k/b".into(), 3, true));
    assert_eq!(keys(all().with_count_only()).await, (String::new(), 3, false));
    let sorted = |target, order| all().with_sort(target, order);
    assert_eq!(keys(sorted(SortTarget::Key, SortOrder::Descend)).await.0, "k/c k/b k/a");
    assert_eq!(keys(sorted(SortTarget::Value, SortOrder::Ascend)).await.0, "k/b k/c k/a");
    assert_eq!(keys(sorted(SortTarget::Mod, SortOrder::Descend)).await.0, "k/a k/c k/b");
    assert_eq!(
        keys(sorted(SortTarget::Create, SortOrder::Ascend).with_limit(1)).await,
        ("k/a".into(), 3, true)
    );
    assert_eq!(keys(all().with_min_mod_revision(4)).await.0, "k/a k/c");
    assert_eq!(keys(all().with_max_create_revision(3)).await.0, "k/a k/b");
    assert_eq!(keys(all().with_revision(3)).await.0, "k/a k/b");
}

#[tokio::test]
async fn transactions_nest_and_are_judged_by_what_was_there_before() {
    let server = Embedded::start().await;
    let mut client = client(&server).await;
    client.put("a", "1", None).await.unwrap();
    let inner = Txn::new()
        .when([Compare::value("a", CompareOp::Equal, "1")])
        .and_then([TxnOp::put("b", "inner", None), TxnOp::get("a", None)])
        .or_else([TxnOp::put("b", "otherwise", None)]);
    let outer = Txn::new()
        .when([Compare::version("a", CompareOp::Greater, 0)])
        .and_then([TxnOp::put("a", "2", Some(PutOptions::new().with_prev_key())), TxnOp::txn(inner)]);
    let answer = client.txn(outer).await.unwrap();
    assert!(answer.succeeded());
    let text = format!("{:?}", answer.op_responses());
    assert!(text.contains("succeeded: true"), "{text}");
    assert_eq!(client.get("b", None).await.unwrap().kvs()[0].value(), b"inner");
    let twice = Txn::new()
        .and_then([TxnOp::put("c", "", None), TxnOp::txn(Txn::new().and_then([TxnOp::put("c", "", None)]))]);
    let error = client.txn(twice).await.unwrap_err().to_string();
    assert!(error.contains("etcdserver: duplicate key given in txn request"), "{error}");
}

#[tokio::test]
async fn one_stream_carries_many_watches() {
    let server = Embedded::start().await;
    let mut client = client(&server).await;
    client.put("a", "0", None).await.unwrap();
    let mut stream =
        client.watch("a", Some(WatchOptions::new().with_prev_key().with_watch_id(7))).await.unwrap();
    let created = next(&mut stream).await;
    assert!(created.created());
    assert_eq!(created.watch_id(), 7);
    let deletes = WatchOptions::new().with_prefix().with_filters([WatchFilterType::NoPut]).with_watch_id(8);
    stream.watch("", Some(deletes)).await.unwrap();
    assert_eq!(next(&mut stream).await.watch_id(), 8);
    stream.watch("a", Some(WatchOptions::new().with_watch_id(8))).await.unwrap();
    let refused = next(&mut stream).await;
    assert!(refused.created() && refused.canceled());
    assert_eq!(refused.cancel_reason(), "mvcc: duplicate watch ID provided on the WatchStream");
    stream.watch("b", Some(WatchOptions::new().with_range("a"))).await.unwrap();
    assert_eq!(next(&mut stream).await.cancel_reason(), "mvcc: watcher range is empty");

    client.put("a", "1", None).await.unwrap();
    let answer = next(&mut stream).await;
    assert_eq!((answer.watch_id(), told(&answer.events()[0])), (7, "a 1 after 0".to_owned()));
    client.delete("a", None).await.unwrap();
    let mut answers = [next(&mut stream).await, next(&mut stream).await];
    answers.sort_by_key(WatchResponse::watch_id);
    assert_eq!(
        answers.each_ref().map(|answer| told(&answer.events()[0])),
        ["a gone after 1", "a gone after nothing"]
    );

    stream.cancel(7).await.unwrap();
    let cancelled = next(&mut stream).await;
    assert!(cancelled.canceled() && cancelled.watch_id() == 7 && cancelled.cancel_reason().is_empty());
    client.put("a", "2", None).await.unwrap();
    stream.request_progress().await.unwrap();
    let progress = next(&mut stream).await;
    assert_eq!((progress.watch_id(), progress.events().len()), (-1, 0));
    assert_eq!(progress.header().unwrap().revision(), 5);
}

#[tokio::test]
async fn watch_behind_the_compacted_history_is_canceled() {
    let server = Embedded::start().await;
    let mut client = client(&server).await;
    for value in ["1", "2", "3"] {
        client.put("a", value, None).await.unwrap();
    }
    client.compact(4, None).await.unwrap();
    let mut stream = client.watch("a", Some(WatchOptions::new().with_start_revision(2))).await.unwrap();
    assert!(next(&mut stream).await.created());
    let cancelled = next(&mut stream).await;
    assert!(cancelled.canceled());
    assert_eq!(cancelled.compact_revision(), 4);
}

#[tokio::test]
async fn leases_are_reported() {
    let server = Embedded::start().await;
    let mut client = client(&server).await;
    let chosen = client.lease_grant(0, None).await.unwrap();
    assert!(chosen.id() > 0, "the server chooses");
    assert_eq!(chosen.ttl(), 2, "and none is shorter than etcd's");
    client.lease_grant(60, Some(LeaseGrantOptions::new().with_id(5))).await.unwrap();
    client.put("k", "", Some(PutOptions::new().with_lease(5))).await.unwrap();
    let view = client.lease_time_to_live(5, Some(LeaseTimeToLiveOptions::new().with_keys())).await.unwrap();
    assert_eq!((view.granted_ttl(), view.keys()), (60, [b"k".to_vec()].as_slice()));
    assert!((58..=60).contains(&view.ttl()));
    assert_eq!(client.lease_time_to_live(6, None).await.unwrap().ttl(), -1);
    let mut ids: Vec<_> =
        client.leases().await.unwrap().leases().iter().map(etcd_client::LeaseStatus::id).collect();
    ids.sort_unstable();
    let mut expected = [5, chosen.id()];
    expected.sort_unstable();
    assert_eq!(ids, expected);
    client.lease_revoke(5).await.unwrap();
    assert_eq!(client.get("k", None).await.unwrap().count(), 0);
}

#[tokio::test]
async fn calls_that_are_not_served_return_an_error_that_says_so() {
    let server = Embedded::start().await;
    let mut client = client(&server).await;
    for error in [
        client.auth_enable().await.unwrap_err().to_string(),
        client.defragment().await.unwrap_err().to_string(),
        client.lock("a", None).await.unwrap_err().to_string(),
    ] {
        assert!(error.contains("embedded server of lattice-rdzv"), "{error}");
    }
    let member = client.member_list().await.unwrap().members()[0].clone();
    assert_eq!(
        (member.id(), member.client_urls()),
        (server.server().member_id(), [server.endpoint()].as_slice())
    );
    let status = client.status().await.unwrap();
    assert_eq!(status.leader(), member.id());
    assert_eq!(status.header().unwrap().cluster_id(), server.server().cluster_id());
}

#[tokio::test]
async fn pages_for_probes_and_people() {
    let server = Embedded::start().await;
    assert_eq!(page(&server, "/health").await, (200, r#"{"health":"true","reason":""}"#.to_owned()));
    assert_eq!(page(&server, "/readyz").await.0, 200);
    assert!(page(&server, "/version").await.1.contains("etcdserver"));
    assert_eq!(page(&server, "/missing").await.0, 404);
    let backend = server.backend();
    let put = Operation::put("a", "1", 0);
    backend.txn(lattice_rdzv::backend::Txn::new(put)).await.unwrap();
    assert_eq!((metric(&server, "revision").await, metric(&server, "keys").await), (2, 1));
    assert_eq!(metric(&server, r#"requests_total{call="KV/Txn"}"#).await, 1);
}

#[tokio::test]
async fn renewals_of_a_client_share_one_stream() {
    let server = Embedded::start().await;
    let backend = server.backend();
    let ttl = Duration::from_secs(60);
    for lease in [7, 8] {
        backend.lease_grant(lease, ttl).await.unwrap();
    }
    for lease in [7, 8, 7, 8, 8] {
        assert_eq!(backend.lease_keep_alive(lease).await.unwrap(), ttl);
    }
    let error = backend.lease_keep_alive(9).await.unwrap_err();
    assert!(matches!(error, Error::LeaseNotFound { lease: 9 }), "{error:?}");
    assert_eq!(backend.lease_keep_alive(7).await.unwrap(), ttl);
    assert_eq!(metric(&server, r#"requests_total{call="Lease/LeaseKeepAlive"}"#).await, 1);
}

#[tokio::test]
async fn granting_the_lease_of_a_node_shows_that_the_service_responds() {
    let server = Embedded::start().await;
    let endpoint = server.endpoint();
    let values = [
        ("endpoint", endpoint.as_str()),
        ("run_id", "run"),
        ("nnodes", "1"),
        ("node_name", "a"),
        ("is_host", "false"),
    ];
    let values = values.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let settings =
        Settings::resolve(&Arguments { values, origin: Origin::Argument }, &BTreeMap::new()).unwrap();
    let entropy = Entropy::from_system();
    let keys = RunKeys::new(&settings.run.tenant, &settings.run.run_id);
    let environment = BTreeMap::new();
    let search = Search::of_node(&settings, &environment, &keys, &entropy);
    let (found, _) = search.connect_or_host().await.unwrap();
    let granted = found.granted.clone().expect("a lease");
    for (call, count) in [("Lease/LeaseGrant", 1), ("KV/Range", 0), ("KV/Txn", 0), ("Maintenance/Status", 0)]
    {
        assert_eq!(metric(&server, &format!("requests_total{{call=\"{call}\"}}")).await, count, "{call}");
    }
    let place = Place { address: "a.test".to_owned(), port: 29500, host: None, lifelines: None };
    let node = Node::join_found(found, settings, entropy, place).await.unwrap();
    assert_eq!(node.subscribe().borrow().node, Some(granted.id), "it joins under this lease");
    assert!(node.leave(None).await);
}

/// Opens a watch of `a` from revision 2 on with a client that sends no further requests, like `grpcurl`.
async fn told_without_asking_on(endpoint: &str, writes: &EtcdBackend) {
    // `create_request: {key: "a", start_revision: 2}` on the wire, because the inner message has no name outside
    // etcd-client.
    let request = <PbWatchRequest as prost::Message>::decode(&b"\x0a\x05\x0a\x01a\x18\x02"[..]).unwrap();
    let channel =
        tonic::transport::Endpoint::from_shared(endpoint.to_owned()).unwrap().connect().await.unwrap();
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.unwrap();
    let path = "/etcdserverpb.Watch/Watch".parse().unwrap();
    let codec = tonic_prost::ProstCodec::<PbWatchRequest, PbWatchResponse>::default();
    let requests = tonic::Request::new(futures_util::stream::iter([request]));
    let mut answers = grpc.streaming(requests, path, codec).await.unwrap().into_inner();
    let mut next = async || within("an answer", answers.message()).await.unwrap().unwrap();
    assert!(next().await.created);
    for revision in [2, 3] {
        let put = Operation::put("a", "1", 0);
        writes.txn(lattice_rdzv::backend::Txn::new(put)).await.unwrap();
        assert_eq!(next().await.header.unwrap().revision, revision);
    }
}

#[tokio::test]
async fn watch_continues_after_its_client_has_closed_its_side() {
    let server = Embedded::start().await;
    told_without_asking_on(&server.endpoint(), &server.backend()).await;
    let Some(etcd) = Etcd::start().await else { return };
    told_without_asking_on(etcd.endpoint(), &etcd.backend()).await;
}

#[tokio::test]
async fn hosted_server_only_reports_its_identity_until_it_is_admitted() {
    let hosted = Some("0123456789abcdef".to_owned());
    let server = started(ServerOptions { hosted, ..ServerOptions::default() }).await;
    let backend = server.backend();
    let status = backend.status().await.unwrap();
    assert_eq!(status.member_id, server.server().member_id());
    assert_eq!(hosted_run(&status.version), Some("0123456789abcdef"), "{}", status.version);
    let read = || backend.range(Range::new(Keys::one("a")));
    let error = read().await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    assert_eq!(page(&server, "/readyz").await.0, 503);
    server.server().admit();
    read().await.unwrap();
    assert_eq!(page(&server, "/readyz").await.0, 200);
}

#[tokio::test]
async fn one_user_may_ask() {
    let user = Some(Credentials { user: "node".into(), password: "right".into() });
    let server = started(ServerOptions { user, ..ServerOptions::default() }).await;
    let with = |password: &str| {
        let credentials = Some(Credentials { user: "node".into(), password: password.into() });
        EtcdBackend::connect(EtcdOptions { credentials, ..EtcdOptions::new([server.endpoint()]) }).unwrap()
    };
    let read = || Range::new(Keys::one("a"));
    with("right").range(read()).await.unwrap();
    let mut watch = with("right").watch(Keys::one("a"), 0).await.unwrap();
    let put = Operation::put("a", "1", 0);
    with("right").txn(lattice_rdzv::backend::Txn::new(put)).await.unwrap();
    within("changes", watch.next()).await.unwrap();
    let error = with("wrong").range(read()).await.unwrap_err();
    assert!(matches!(error, Error::Denied { .. }), "{error:?}");
    let error = server.backend().range(read()).await.unwrap_err();
    assert!(matches!(error, Error::Denied { .. }), "{error:?}");
    let shown = format!("{:?}", server.server());
    assert!(!shown.contains("right"), "{shown}");
    // If no password is required, the client continues without a token, as etcd's clients do.
    let open = Embedded::start().await;
    let options = ConnectOptions::new().with_user("node", "any");
    let error = Client::connect([open.endpoint()], Some(options)).await.err().unwrap().to_string();
    assert!(error.contains("authentication is not enabled"), "{error}");
}

fn openssl(directory: &Path, line: &str) {
    let output = Command::new("openssl").args(line.split(' ')).current_dir(directory).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// An authority in a separate directory, with a certificate for the server and one for a client.
fn authority(directory: &Path) -> impl Fn(&str) -> Pem + use<> {
    std::fs::create_dir(directory).unwrap();
    std::fs::write(directory.join("names"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    let new = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(directory, &format!("req -x509 {new} -keyout ca.key -out ca.pem -days 2 -subj /CN=authority"));
    for name in ["server", "client"] {
        openssl(directory, &format!("req {new} -keyout {name}.key -out {name}.csr -subj /CN={name}"));
        let signed = "x509 -req -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names";
        openssl(directory, &format!("{signed} -in {name}.csr -out {name}.pem"));
    }
    let directory = directory.to_owned();
    move |name| Pem::File(directory.join(name))
}

#[tokio::test]
async fn certificates() {
    let directory = tempfile::tempdir().unwrap();
    let ours = authority(&directory.path().join("ours"));
    let theirs = authority(&directory.path().join("theirs"));
    let tls =
        ServerTls { cert: ours("server.pem"), key: ours("server.key"), client_ca: Some(ours("ca.pem")) };
    let options = ServerOptions { tls: Some(tls.clone()), ..ServerOptions::default() };
    let server = Server::start(bind("127.0.0.1", 0).await.unwrap(), options).unwrap();
    let with = |ca: &Pem, cert: Option<&dyn Fn(&str) -> Pem>| {
        let tls = TlsFiles {
            ca: Some(ca.clone()),
            cert: cert.map(|authority| authority("client.pem")),
            key: cert.map(|authority| authority("client.key")),
        };
        let options = EtcdOptions { tls: Some(tls), ..EtcdOptions::new([server.endpoint()]) };
        EtcdBackend::connect(options).unwrap()
    };
    assert!(server.endpoint().starts_with("https://"));
    with(&ours("ca.pem"), Some(&ours)).range(Range::new(Keys::one("a"))).await.unwrap();
    for wrong in [
        with(&theirs("ca.pem"), Some(&ours)),
        with(&ours("ca.pem"), Some(&theirs)),
        with(&ours("ca.pem"), None),
    ] {
        let error = wrong.range(Range::new(Keys::one("a"))).await.unwrap_err();
        assert!(matches!(error, Error::Denied { .. } | Error::Unavailable { .. }), "{error:?}");
    }
    // Renewed, here by another authority, and then half written.
    let folder = |name: &str| directory.path().join(name);
    for name in ["server.pem", "server.key", "ca.pem"] {
        std::fs::copy(folder("theirs").join(name), folder("ours").join(name)).unwrap();
    }
    with(&theirs("ca.pem"), Some(&theirs)).range(Range::new(Keys::one("a"))).await.unwrap();
    std::fs::write(folder("ours").join("server.pem"), "half").unwrap();
    with(&theirs("ca.pem"), Some(&theirs)).range(Range::new(Keys::one("a"))).await.unwrap();
    let missing = ServerTls { cert: Pem::File("/nowhere".into()), ..tls };
    let options = ServerOptions { tls: Some(missing), ..ServerOptions::default() };
    let error = Server::start(bind("127.0.0.1", 0).await.unwrap(), options).unwrap_err().to_string();
    assert!(error.contains("`/nowhere`"), "{error}");
}

#[tokio::test]
async fn port_that_is_taken_is_named() {
    let server = Embedded::start().await;
    let port = server.server().address().port();
    let error = bind("127.0.0.1", port).await.unwrap_err().to_string();
    assert!(error.contains(&port.to_string()) && error.contains("in use"), "{error}");
    let error = bind("192.0.2.1", 0).await.unwrap_err().to_string();
    assert!(error.contains("192.0.2.1"), "{error}");
}

#[tokio::test]
async fn history_compacts_itself_and_what_is_too_much_is_refused() {
    let bounds =
        Bounds { live_bytes: 100_000, history_bytes: 50_000, history_revisions: 40, ..Bounds::default() };
    let server = started(ServerOptions { bounds, ..ServerOptions::default() }).await;
    let mut client = client(&server).await;
    let mut quiet = client.watch("quiet", None).await.unwrap();
    assert!(next(&mut quiet).await.created());
    for _ in 0..200 {
        client.put("a", vec![b'x'; 1000], None).await.unwrap();
    }
    client.put("quiet", "1", None).await.unwrap();
    assert_eq!(told(&next(&mut quiet).await.events()[0]), "quiet 1 after nothing", "it missed nothing");
    assert!(metric(&server, "compacted_revision").await > 150);
    assert!(metric(&server, "history_bytes").await <= 50_000);
    assert!(metric(&server, "history_revisions").await <= 40);
    let error = client.put("b", vec![b'x'; 100_000], None).await.unwrap_err().to_string();
    assert!(error.contains("etcdserver: mvcc: database space exceeded"), "{error}");
    client.put("a", "small", None).await.unwrap();
    for index in 0..20 {
        client.put(format!("many/{index}"), vec![b'x'; 4000], None).await.unwrap();
    }
    client.delete("many/", Some(etcd_client::DeleteOptions::new().with_prefix())).await.unwrap();
    client.put("b", vec![b'x'; 80_000], None).await.unwrap();
    assert!(metric(&server, "live_bytes").await < 100_000, "what was deleted makes room");
}

/// Frames of HTTP/2 that open a connection, and nothing more.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";

#[tokio::test]
async fn invalid_data_and_silence_do_not_stop_the_server() {
    let server = Embedded::start().await;
    let address = server.server().address();
    let mut silent = Vec::new();
    for bytes in [&b""[..], b"P", b"GET / HT", PREFACE] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        silent.push(stream);
    }
    let mut garbage = vec![0xff; 100_000];
    for (index, byte) in garbage.iter_mut().enumerate() {
        *byte = u8::try_from(index * 7919 % 251).unwrap();
    }
    for head in [&b""[..], b"\x16\x03\x01", b"GET / HTTP/1.1\r\n", PREFACE] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(head).await.unwrap();
        // The server may have closed the connection by then.
        let _ = stream.write_all(&garbage).await;
        let mut answer = Vec::new();
        // Whatever the server responds, it closes the connection, possibly with a reset.
        let _ = within("the end of the conversation", stream.read_to_end(&mut answer)).await;
    }
    let mut client = client(&server).await;
    let long = vec![b'k'; 1_000_000];
    client.put(long.clone(), "value", None).await.unwrap();
    assert_eq!(client.get(long, None).await.unwrap().kvs()[0].value(), b"value");
    let error = client.put("a", vec![0; 3_000_000], None).await.unwrap_err();
    assert!(error.to_string().contains("too large"), "{error}");
    client.put("a", "still", None).await.unwrap();
    // The silent connections remain, and the one that sent the preface does not.
    until_metric(&server, "connections", |connections| connections <= 3).await;
}

#[tokio::test]
async fn stuck_watcher_delays_no_client_and_gets_an_error_when_it_is_too_late() {
    let bounds = Bounds { history_bytes: 4 << 20, ..Bounds::default() };
    let server = started(ServerOptions { bounds, ..ServerOptions::default() }).await;
    let mut writer = client(&server).await;
    let mut stuck = client(&server).await.watch("k", None).await.unwrap();
    assert!(next(&mut stuck).await.created());
    let mut live = client(&server).await.watch("k", None).await.unwrap();
    assert!(next(&mut live).await.created());
    let mut seen = 0;
    for _ in 0..100 {
        writer.put("k", vec![b'x'; 100_000], None).await.unwrap();
        while seen < i64::MAX {
            let answer = next(&mut live).await;
            seen = answer.events().last().unwrap().kv().unwrap().mod_revision();
            if seen == answer.header().unwrap().revision() {
                break;
            }
        }
    }
    assert!(metric(&server, "history_bytes").await <= 4 << 20, "nothing waits for a stuck client");
    let last = within("the end of the watch", async {
        loop {
            let answer = next(&mut stuck).await;
            if answer.canceled() {
                return answer;
            }
        }
    });
    assert!(last.await.compact_revision() > 0);
}

#[tokio::test]
async fn ten_thousand_leases_end_at_once() {
    const LEASES: i64 = 10_000;
    let server = Embedded::start().await;
    let client = client(&server).await;
    let mut watch = client.watch_client().watch("n/", Some(WatchOptions::new().with_prefix())).await.unwrap();
    assert!(next(&mut watch).await.created());
    let tasks: Vec<_> = (0..10)
        .map(|task| {
            let mut client = client.clone();
            tokio::spawn(async move {
                for id in (1..=LEASES).filter(|id| id % 10 == task) {
                    client.lease_grant(4, Some(LeaseGrantOptions::new().with_id(id))).await.unwrap();
                    let options = PutOptions::new().with_lease(id);
                    client.put(format!("n/{id}"), "", Some(options)).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let mut gone = 0;
    while gone < LEASES {
        let answer = next(&mut watch).await;
        let deletes = answer.events().iter().filter(|event| event.event_type() == EventType::Delete).count();
        gone += i64::try_from(deletes).unwrap();
    }
    assert_eq!((metric(&server, "leases").await, metric(&server, "keys").await), (0, 0));
}

#[tokio::test]
async fn clients_are_notified_when_the_server_stops() {
    let mut server = Embedded::start().await;
    let mut client = client(&server).await;
    let mut watch = client.watch("a", None).await.unwrap();
    assert!(next(&mut watch).await.created());
    let (_keeper, mut answers) = {
        client.lease_grant(60, Some(LeaseGrantOptions::new().with_id(1))).await.unwrap();
        client.lease_keep_alive(1).await.unwrap()
    };
    server.stop().await;
    let error = within("the end of the watch", watch.message()).await.unwrap_err().to_string();
    assert!(error.contains("etcdserver: server stopped"), "{error}");
    let end = within("the end of the renewals", async { while let Ok(Some(_)) = answers.message().await {} });
    end.await;
}
