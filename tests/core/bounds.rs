//! What hostile clients can make the embedded server buffer, and what nodes report about an etcd that is full.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use etcd_client::{Client, proto::PbRangeRequest, proto::PbRangeResponse};
use lattice_rdzv::{
    Error,
    backend::Backend,
    node::{Node, Place},
    run::Entropy,
    settings::{Arguments, Origin, Settings},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tonic::{
    Code,
    codegen::{Bytes, Service as _, http},
    transport::{Channel, Endpoint},
};

use crate::support::{embedded::Embedded, etcd::Etcd, unfinished::Unfinished, within};

const MIB: i64 = 1 << 20;
/// The minimum share of one connection for large messages, and the total for all connections.
const SHARE: i64 = 96 * MIB;

async fn channel(server: &Embedded) -> Channel {
    Endpoint::from_shared(server.endpoint()).unwrap().connect().await.unwrap()
}

async fn metric(server: &Embedded, name: &str) -> i64 {
    let mut stream = TcpStream::connect(server.server().address()).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let line = answer.lines().find_map(|line| line.strip_prefix(&format!("lattice_rdzv_{name} ")));
    line.unwrap_or_else(|| panic!("no {name} in {answer}")).parse().unwrap()
}

async fn until_nothing_is_buffered(server: &Embedded) {
    within("nothing to be buffered", async {
        while metric(server, "buffered_bytes").await > 64 * 1024 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

async fn others_are_served(server: &Embedded) {
    let mut client = Client::connect([server.endpoint()], None).await.unwrap();
    client.put("small", "1", None).await.unwrap();
    assert_eq!(client.get("small", None).await.unwrap().kvs()[0].value(), b"1");
    assert!(client.watch("small", None).await.unwrap().message().await.unwrap().unwrap().created());
}

#[tokio::test]
async fn answers_that_a_client_does_not_take_are_bounded() {
    let server = Embedded::start().await;
    let mut client = Client::connect([server.endpoint()], None).await.unwrap();
    for index in 0..40 {
        client.put(format!("large/{index}"), vec![b'x'; 1_400_000], None).await.unwrap();
    }
    let hostile = channel(&server).await;
    let all = PbRangeRequest { key: b"large/".to_vec(), range_end: b"large0".to_vec(), ..Default::default() };
    let mut held = Vec::new();
    let mut refused = 0;
    for _ in 0..20 {
        let mut grpc = tonic::client::Grpc::new(hostile.clone());
        grpc.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<PbRangeRequest, PbRangeResponse>::default();
        let request = tonic::Request::new(futures_util::stream::iter([all.clone()]));
        let path = "/etcdserverpb.KV/Range".parse().unwrap();
        match within("the head of an answer", grpc.streaming(request, path, codec)).await {
            // The body of the response is not read.
            Ok(answer) => held.push(answer),
            Err(status) => {
                assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
                assert!(status.message().contains("etcdserver: too many requests"), "{status}");
                refused += 1;
            }
        }
    }
    assert_eq!((held.len(), refused), (1, 19), "one of 56 MB fits into a connection's 96 MiB");
    let buffered = metric(&server, "buffered_bytes").await;
    assert!((50 * MIB..=SHARE).contains(&buffered), "{buffered}");
    others_are_served(&server).await;
    drop(held);
    until_nothing_is_buffered(&server).await;
    assert_eq!(client.get("large/1", None).await.unwrap().kvs().len(), 1);
}

#[tokio::test]
async fn keys_of_watches_are_bounded() {
    let server = Embedded::start().await;
    let mut hostile = Client::connect([server.endpoint()], None).await.unwrap();
    let mut watches = Vec::new();
    let mut refusal = None;
    for index in 0..40 {
        let key = format!("{index}{}", "k".repeat(1_000_000));
        match within("a watch", hostile.watch(key, None)).await {
            Err(error) => {
                refusal = Some(error.to_string());
                break;
            }
            Ok(mut watch) => {
                let answer = within("an answer", watch.message()).await.unwrap().unwrap();
                if answer.canceled() {
                    refusal = Some(answer.cancel_reason().to_owned());
                    break;
                }
                watches.push(watch);
            }
        }
    }
    let refusal = refusal.unwrap_or_else(|| panic!("{} watches were accepted", watches.len()));
    assert!(refusal.contains("too many requests"), "{refusal}");
    assert!(watches.len() > 3, "{}", watches.len());
    others_are_served(&server).await;
    drop((watches, hostile));
    until_nothing_is_buffered(&server).await;
}

#[tokio::test]
async fn requests_that_are_not_complete_are_bounded() {
    const BYTES: usize = 1_900_000;
    let server = Embedded::start().await;
    let hostile = channel(&server).await;
    let mut message = vec![0];
    message.extend(u32::try_from(BYTES).unwrap().to_be_bytes());
    message.resize(BYTES - 1000, 1);
    let message = Bytes::from(message);
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..150 {
        let mut hostile = hostile.clone();
        let body = tonic::body::Body::new(Unfinished(Some(message.clone())));
        calls.spawn(async move {
            std::future::poll_fn(|context| hostile.poll_ready(context)).await.unwrap();
            let request = http::Request::post("http://here/etcdserverpb.KV/Put")
                .header("content-type", "application/grpc")
                .body(body)
                .unwrap();
            hostile.call(request).await
        });
    }
    let answer = within("a refusal", calls.join_next()).await.unwrap().unwrap().unwrap();
    let status = tonic::Status::from_header_map(answer.headers()).unwrap();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    let buffered = metric(&server, "buffered_bytes").await;
    assert!(buffered <= SHARE + 8 * MIB, "{buffered}");
    others_are_served(&server).await;
    calls.abort_all();
    while calls.join_next().await.is_some() {}
    drop(hostile);
    until_nothing_is_buffered(&server).await;
    // The server still accepts the largest request that etcd accepts.
    let mut client = Client::connect([server.endpoint()], None).await.unwrap();
    client.put("large", vec![0; 1_500_000], None).await.unwrap();
}

#[tokio::test]
async fn node_that_cannot_join_a_full_etcd_says_so_in_etcds_words() {
    let Some(etcd) = Etcd::prepare("http", &["--quota-backend-bytes=1000000"]) else { return };
    let etcd = etcd.launch().await;
    let mut client = Client::connect([etcd.endpoint()], None).await.unwrap();
    within("etcd to be full", async { while client.put("fill", vec![0; 100_000], None).await.is_ok() {} })
        .await;
    let values = [
        ("run_id", "run"),
        ("nnodes", "1"),
        ("node_name", "a"),
        ("connect_timeout", "3"),
        ("lease_ttl", "3"),
    ];
    let values = BTreeMap::from(values.map(|(key, value)| (key.to_owned(), value.to_owned())));
    let arguments = Arguments { values, origin: Origin::Argument };
    let settings = Settings::resolve(&arguments, &BTreeMap::new()).unwrap();
    let backend: Arc<dyn Backend> = Arc::new(etcd.backend());
    let place = Place { address: "a.test".into(), port: 29500, host: None, lifelines: None };
    let joined = Node::join(backend, settings, Entropy::from_system(), place);
    let error = within("the end of joining", joined).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    assert!(error.to_string().contains("etcdserver: mvcc: database space exceeded"), "{error}");
}
