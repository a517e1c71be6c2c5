//! What only a real etcd can show: endpoints that are dead, unresponsive, or belong to something else, users,
//! certificates, and clusters that lose members.

use std::{
    io::{Read, Write},
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use etcd_client::{Client, Permission, PermissionType};
use lattice_rdzv::{
    Error, Result,
    backend::{
        Backend, Keys, Operation, Range, Txn,
        etcd::{Credentials, EtcdBackend, EtcdOptions, Pem, TlsFiles},
        limits::Limits,
        retry::{RetryPolicy, retry},
        watcher::{Watched, Watcher},
    },
    error::Applied,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::watch,
    time::{Instant, sleep},
};

use crate::support::{
    etcd::{Etcd, PATIENCE, free_port},
    within,
};

/// Options with attempts of half a second.
fn hasty(endpoints: impl IntoIterator<Item = impl Into<String>>) -> EtcdOptions {
    EtcdOptions { limits: Limits::for_ttl(Duration::from_secs(2)), ..EtcdOptions::new(endpoints) }
}

fn connect(options: EtcdOptions) -> EtcdBackend {
    EtcdBackend::connect(options).unwrap()
}

fn a_write() -> Txn {
    Txn::new(Operation::put("a", "1", 0))
}

fn a_read() -> Range {
    Range::new(Keys::one("a"))
}

/// A server that does this to each of its connections.
fn server(serve: impl FnMut(std::net::TcpStream) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || listener.incoming().flatten().for_each(serve));
    endpoint
}

/// A relay to an etcd, which holds responses back while `held` is true.
async fn relay(etcd: &Etcd, held: watch::Receiver<bool>) -> String {
    let address = etcd.endpoint().trim_start_matches("http://").to_owned();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let service = tokio::net::TcpStream::connect(&address).await.unwrap();
            let (mut requests, mut to_client) = client.into_split();
            let (mut responses, mut to_service) = service.into_split();
            tokio::spawn(async move { tokio::io::copy(&mut requests, &mut to_service).await });
            let mut held = held.clone();
            tokio::spawn(async move {
                let mut piece = [0; 4096];
                while let Ok(read @ 1..) = responses.read(&mut piece).await {
                    let released = held.wait_for(|held| !held).await.is_ok();
                    if !released || to_client.write_all(&piece[..read]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    endpoint
}

fn silent_server() -> String {
    let mut held = Vec::new();
    server(move |stream| held.push(stream))
}

#[tokio::test]
async fn no_server_listens() {
    let endpoint = format!("http://127.0.0.1:{}", free_port());
    let backend = connect(EtcdOptions::new([endpoint.as_str()]));
    let error = backend.txn(a_write()).await.unwrap_err();
    let Error::Unavailable { endpoint: named, cause, applied: Applied::No } = &error else {
        panic!("{error:?}")
    };
    assert_eq!(*named, endpoint);
    assert!(cause.contains("Connection refused"), "{cause}");
    assert!(error.is_transient());
    assert_eq!(backend.connection(), 2);
    assert!(backend.watch(Keys::one("a"), 0).await.unwrap_err().is_transient());
    assert!(backend.status().await.unwrap_err().is_transient());
}

#[tokio::test]
async fn name_that_does_not_exist() {
    let backend = connect(EtcdOptions::new(["http://missing.invalid:2379"]));
    let error = backend.range(a_read()).await.unwrap_err();
    let Error::Unavailable { cause, .. } = &error else { panic!("{error:?}") };
    assert!(cause.contains("dns error") || cause.contains("no answer"), "{cause}");
}

#[tokio::test]
async fn server_that_does_not_respond() {
    let backend = Arc::new(connect(hasty([silent_server()])));
    let began = Instant::now();
    let (one, two, write) = tokio::join!(backend.range(a_read()), backend.status(), backend.txn(a_write()));
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(450) && took < Duration::from_secs(3), "{took:?}");
    assert!(matches!(one.unwrap_err(), Error::Unavailable { applied: Applied::No, .. }));
    assert!(two.unwrap_err().is_transient());
    assert!(matches!(write.unwrap_err(), Error::Unavailable { applied: Applied::Unknown, .. }));
    assert_eq!(backend.connection(), 1, "three calls that waited at the same time are one observation");
    assert!(backend.lease_grant(1, Duration::from_secs(2)).await.unwrap_err().is_transient());
    assert_eq!(backend.connection(), 2, "the call after them was late as well");
    assert!(backend.lease_keep_alive(1).await.unwrap_err().is_transient());
    assert!(backend.watch(Keys::one("a"), 0).await.unwrap_err().is_transient());
    assert_eq!(backend.connection(), 3);
}

#[tokio::test]
async fn web_server_is_no_etcd() {
    let endpoint = server(|mut stream| {
        let mut bytes = [0; 4096];
        let _ = stream.read(&mut bytes);
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 3\r\n\r\nno\n");
        // Reads to the end. If the connection were closed while the client still writes, it would break, and the
        // response would be lost.
        while matches!(stream.read(&mut bytes), Ok(1..)) {}
    });
    let backend = connect(hasty([endpoint.as_str()]));
    let error = backend.range(a_read()).await.unwrap_err();
    assert!(matches!(&error, Error::NotEtcd { endpoint: named, .. } if *named == endpoint), "{error:?}");
    assert!(!error.is_transient());
}

#[tokio::test]
async fn options_that_contradict_each_other() {
    let message = |options| match EtcdBackend::connect(options) {
        Err(Error::Setting { message }) => message,
        other => panic!("{other:?}"),
    };
    assert!(message(EtcdOptions::default()).contains("no endpoint"));
    let tls = Some(TlsFiles::default());
    let plain = EtcdOptions { tls, ..EtcdOptions::new(["http://localhost:1"]) };
    assert!(message(plain).ends_with("`http://localhost:1`"));
    let half = Some(TlsFiles { cert: Some(Pem::Bytes(Vec::new())), ..TlsFiles::default() });
    assert!(
        message(EtcdOptions { tls: half, ..EtcdOptions::new(["localhost:1"]) }).contains("needs its key")
    );
    let lost = Some(TlsFiles { ca: Some(Pem::File("/nowhere/ca.pem".into())), ..TlsFiles::default() });
    let backend = connect(EtcdOptions { tls: lost, ..EtcdOptions::new(["localhost:1"]) });
    assert_eq!(backend.endpoint(), "https://localhost:1");
    let error = backend.range(a_read()).await.unwrap_err();
    assert!(
        matches!(&error, Error::Setting { message } if message.contains("`/nowhere/ca.pem`")),
        "{error:?}"
    );
    let error = connect(EtcdOptions::new(["http://no port:x"])).range(a_read()).await.unwrap_err();
    assert!(matches!(&error, Error::Setting { .. }), "{error:?}");
}

/// Retries as reads and repeatable writes are retried.
async fn retried<T, F: Future<Output = Result<T>>>(attempt: impl FnMut() -> F) -> Result<T> {
    retry(RetryPolicy::default(), 1, Instant::now() + PATIENCE, attempt).await
}

#[tokio::test]
async fn one_of_three_endpoints_is_dead() {
    let Some(mut cluster) = Etcd::cluster(3).await else { return };
    let endpoints = cluster.iter().map(|etcd| etcd.endpoint().to_owned()).collect::<Vec<_>>();
    cluster[0].kill();
    let mut turned = 0;
    for seed in 0..6 {
        let backend = connect(EtcdOptions { seed, ..EtcdOptions::new(endpoints.clone()) });
        for _ in 0..20 {
            retried(|| backend.txn(a_write())).await.unwrap();
            retried(|| backend.range(a_read())).await.unwrap();
        }
        // After the election of a new leader, if the dead member was the leader.
        turned += usize::from(backend.connection() > 1);
        assert_ne!(backend.endpoint(), endpoints[0]);
    }
    assert!(turned >= 2, "only those that began with the dead one had to turn: {turned}");
}

/// The member that is the leader.
async fn leader(cluster: &[Etcd]) -> usize {
    let leader = cluster[0].backend().status().await.unwrap().leader;
    for (index, etcd) in cluster.iter().enumerate() {
        if etcd.backend().status().await.unwrap().member_id == leader {
            return index;
        }
    }
    panic!("no member of the cluster leads it");
}

#[tokio::test]
async fn member_that_is_stuck_costs_no_lease() {
    let Some(cluster) = Etcd::cluster(3).await else { return };
    let ttl = Duration::from_secs(4);
    let limits = Limits::for_ttl(ttl);
    let endpoints = cluster.iter().map(Etcd::endpoint).collect::<Vec<_>>();
    let leader = leader(&cluster).await;
    // A follower stops responding. With its leader, a cluster loses more seconds, which no client can avoid.
    let victim = (leader + 1) % 3;
    let options = EtcdOptions { limits, ..EtcdOptions::new(endpoints.clone()) };
    let backend: Arc<dyn Backend> = (0..3)
        .map(|seed| connect(EtcdOptions { seed, ..options.clone() }))
        .find(|backend| backend.endpoint() == endpoints[victim])
        .map(|backend| Arc::new(backend) as Arc<dyn Backend>)
        .unwrap();
    backend.lease_grant(7, ttl).await.unwrap();
    let txn = Txn::new(Operation::put("a", "1", 7));
    let revision = backend.txn(txn).await.unwrap().header.revision;
    let mut watcher = Watcher::open(Arc::clone(&backend), Keys::one("a"), revision + 1);
    watcher.ready().await.unwrap();
    let before = backend.connection();
    cluster[victim].pause();
    let began = Instant::now();
    while began.elapsed() < ttl * 2 {
        retried(|| backend.lease_keep_alive(7)).await.unwrap();
        sleep(ttl / 3).await;
    }
    assert!(backend.connection() > before);
    let other = cluster[leader].backend();
    assert_eq!(other.range(a_read()).await.unwrap().items[0].lease, 7, "the same lease, all the time");
    other.txn(a_write()).await.unwrap();
    let news = within("the change, on another member", watcher.next()).await.unwrap();
    assert!(matches!(news, Watched::Changes(changes) if changes.revision == revision + 1));
    assert_eq!(watcher.resumed_on(), backend.connection());
    cluster[victim].resume();
}

#[tokio::test]
async fn without_a_quorum_nothing_is_silent() {
    let Some(mut cluster) = Etcd::cluster(3).await else { return };
    let backend = cluster[0].backend();
    let mut watch = backend.watch(Keys::one("a"), 0).await.unwrap();
    cluster[1].kill();
    cluster[2].kill();
    let error = within("the end of the watch", watch.next()).await.unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    let error = backend.range(a_read()).await.unwrap_err();
    assert!(matches!(&error, Error::Unavailable { cause, .. } if cause.contains("no leader")), "{error:?}");
    let error = backend.txn(a_write()).await.unwrap_err();
    assert!(matches!(&error, Error::Unavailable { applied: Applied::No, .. }), "{error:?}");
}

#[tokio::test]
async fn election_costs_no_connection() {
    let Some(mut cluster) = Etcd::cluster(3).await else { return };
    let endpoints = cluster.iter().map(|etcd| etcd.endpoint().to_owned()).collect::<Vec<_>>();
    let leader = leader(&cluster).await;
    let follower = &endpoints[(leader + 1) % 3];
    let backend = (0..3)
        // On a busy machine a call may be late, which would cost a connection, too.
        .map(|seed| EtcdOptions {
            seed,
            limits: Limits::for_ttl(PATIENCE * 3),
            ..EtcdOptions::new(endpoints.clone())
        })
        .map(connect)
        .find(|backend| backend.endpoint() == *follower)
        .unwrap();
    retried(|| backend.txn(a_write())).await.unwrap();
    cluster[leader].kill();
    // While there is no leader, reads are refused or wait.
    retried(|| backend.range(a_read())).await.unwrap();
    retried(|| backend.txn(a_write())).await.unwrap();
    assert_eq!(backend.connection(), 1, "the other member had no leader either");
}

#[tokio::test]
async fn second_late_call_ends_the_watches_of_its_connection() {
    let Some(etcd) = Etcd::start().await else { return };
    let backend = connect(hasty([etcd.endpoint()]));
    let mut watch = backend.watch(Keys::one("a"), 0).await.unwrap();
    etcd.pause();
    for connection in [1, 2] {
        let error = backend.txn(a_write()).await.unwrap_err();
        assert!(matches!(error, Error::Unavailable { applied: Applied::Unknown, .. }), "{error:?}");
        assert_eq!(backend.connection(), connection);
    }
    let error = within("the end of the watch", watch.next()).await.unwrap_err();
    assert!(matches!(&error, Error::Unavailable { cause, .. } if cause.contains("given up")), "{error:?}");
    assert_ne!(watch.connection(), backend.connection());
    etcd.resume();
    retried(|| backend.range(a_read())).await.unwrap();
}

#[tokio::test]
async fn watch_of_a_silent_service_ends() {
    let Some(etcd) = Etcd::start().await else { return };
    let backend = etcd.backend();
    let mut watch = backend.watch(Keys::one("a"), 0).await.unwrap();
    // Longer than etcd tolerates pings that are too frequent.
    assert!(tokio::time::timeout(Duration::from_secs(22), watch.next()).await.is_err());
    etcd.pause();
    let began = Instant::now();
    let error = within("the end of the watch", watch.next()).await.unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    let took = began.elapsed();
    assert!(took < Duration::from_secs(17), "unanswered pings were ignored: {took:?}");
    assert_eq!(backend.connection(), 2);
}

async fn enable_auth(etcd: &Etcd) {
    let mut client = Client::connect([etcd.endpoint()], None).await.unwrap();
    let mut auth = client.auth_client();
    auth.user_add("root", "root's secret", None).await.unwrap();
    auth.user_grant_role("root", "root").await.unwrap();
    auth.user_add("node", "node's secret", None).await.unwrap();
    auth.role_add("nodes").await.unwrap();
    let own = Permission::new(PermissionType::Readwrite, "own/").with_prefix();
    auth.role_grant_permission("nodes", own).await.unwrap();
    auth.user_grant_role("node", "nodes").await.unwrap();
    client.auth_enable().await.unwrap();
}

fn as_user(etcd: &Etcd, user: &str, password: &str) -> EtcdOptions {
    let credentials = Credentials { user: user.to_owned(), password: password.into() };
    EtcdOptions { credentials: Some(credentials), ..EtcdOptions::new([etcd.endpoint()]) }
}

#[tokio::test]
async fn users_and_passwords() {
    let Some(mut etcd) = Etcd::start().await else { return };
    let options = as_user(&etcd, "node", "node's secret");
    connect(options.clone()).range(a_read()).await.unwrap(); // A user is given where none is asked for.
    enable_auth(&etcd).await;
    let own = || Txn::new(Operation::put("own/a", "1", 0));
    let backend = connect(options.clone());
    // A login takes long on a machine under load, and may then be answered to a later attempt.
    retried(|| backend.txn(own())).await.unwrap();
    let mut watch = backend.watch(Keys::prefix("own/"), 1).await.unwrap();
    within("changes", watch.next()).await.unwrap();

    let denied = |error: Error| assert!(matches!(error, Error::Denied { .. }), "{error:?}");
    denied(backend.txn(a_write()).await.unwrap_err());
    denied(backend.range(a_read()).await.unwrap_err());
    let watch = match backend.watch(Keys::one("a"), 0).await {
        Ok(mut watch) => within("the end of the watch", watch.next()).await.map(|_| ()),
        Err(error) => Err(error),
    };
    denied(watch.unwrap_err());
    assert_eq!(backend.connection(), 1, "another connection would be denied as well");
    let wrong = connect(as_user(&etcd, "node", "a guess"));
    let error = retried(|| wrong.range(a_read())).await.unwrap_err();
    denied(error.clone());
    for text in [error.to_string(), format!("{error:?}"), format!("{wrong:?}"), format!("{options:?}")] {
        assert!(!text.contains("guess") && !text.contains("secret"), "{text}");
    }
    let unknown = connect(as_user(&etcd, "unknown", "a guess"));
    denied(retried(|| unknown.txn(own())).await.unwrap_err());
    denied(connect(EtcdOptions::new([etcd.endpoint()])).txn(own()).await.unwrap_err());

    // Its tokens are kept in etcd's memory, so they are unknown after a restart.
    etcd.kill();
    etcd.spawn();
    etcd.served_to(options).await;
    retried(|| backend.txn(own())).await.unwrap();
    retried(|| backend.lease_grant(7, Duration::from_secs(5))).await.unwrap();
    retried(|| backend.lease_keep_alive(7)).await.unwrap();
    let mut watch = retried(|| backend.watch(Keys::prefix("own/"), 1)).await.unwrap();
    within("changes", watch.next()).await.unwrap();
}

#[tokio::test]
async fn expired_token_is_renewed() {
    let Some(etcd) = Etcd::prepare("http", &["--auth-token-ttl=1"]) else { return };
    let etcd = etcd.launch().await;
    enable_auth(&etcd).await;
    let options = as_user(&etcd, "node", "node's secret");
    let backend = connect(options);
    let range = || Range::new(Keys::prefix("own/"));
    backend.range(range()).await.unwrap();
    let mut watch = backend.watch(Keys::prefix("own/"), 0).await.unwrap();
    sleep(Duration::from_millis(3500)).await;
    backend.range(range()).await.unwrap();
    sleep(Duration::from_millis(3500)).await;
    let mut second = retried(|| backend.watch(Keys::prefix("own/"), 0)).await.unwrap();
    let txn = Txn::new(Operation::put("own/a", "1", 0));
    retried(|| backend.txn(txn.clone())).await.unwrap();
    within("changes", second.next()).await.unwrap();
    if watch.connection() == backend.connection() {
        within("changes", watch.next()).await.unwrap();
    }
}

/// A certificate authority and the certificates that it signed, made by openssl.
struct Authority {
    directory: PathBuf,
}

impl Authority {
    fn new(directory: &Path, name: &str) -> Self {
        let directory = directory.join(name);
        std::fs::create_dir(&directory).unwrap();
        let authority = Self { directory };
        authority.openssl(&[
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=test authority",
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
            "-addext",
            "basicConstraints=critical,CA:TRUE",
            "-addext",
            "keyUsage=critical,keyCertSign",
        ]);
        authority
    }

    fn sign(&self, name: &str) {
        let (key, request, certificate) =
            (format!("{name}.key"), format!("{name}.csr"), format!("{name}.pem"));
        let subject = format!("/CN={name}");
        let extensions =
            "subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth,clientAuth\n";
        std::fs::write(self.directory.join("extensions"), extensions).unwrap();
        self.openssl(&[
            "req", "-newkey", "rsa:2048", "-nodes", "-subj", &subject, "-keyout", &key, "-out", &request,
        ]);
        self.openssl(&[
            "x509",
            "-req",
            "-in",
            &request,
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            "extensions",
            "-out",
            &certificate,
        ]);
    }

    fn openssl(&self, arguments: &[&str]) {
        let output = Command::new("openssl").args(arguments).current_dir(&self.directory).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn file(&self, name: &str) -> Pem {
        Pem::File(self.directory.join(name))
    }

    fn flag(&self, flag: &str, name: &str) -> String {
        format!("{flag}={}", self.directory.join(name).display())
    }
}

#[tokio::test]
async fn certificates() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new(directory.path(), "authority");
    let other = Authority::new(directory.path(), "other");
    for authority in [&authority, &other] {
        authority.sign("server");
        authority.sign("client");
    }
    let flags = [
        authority.flag("--cert-file", "server.pem"),
        authority.flag("--key-file", "server.key"),
        authority.flag("--trusted-ca-file", "ca.pem"),
        "--client-cert-auth".to_owned(),
    ];
    let Some(mut etcd) = Etcd::prepare("https", &flags.each_ref().map(String::as_str)) else { return };
    let with = |ca: Option<Pem>, identity: Option<&Authority>| {
        let cert = identity.map(|authority| authority.file("client.pem"));
        let key = identity.map(|authority| authority.file("client.key"));
        EtcdOptions { tls: Some(TlsFiles { ca, cert, key }), ..EtcdOptions::new([etcd.endpoint()]) }
    };
    let right = with(Some(authority.file("ca.pem")), Some(&authority));
    let wrong = [
        with(Some(other.file("ca.pem")), Some(&authority)),
        with(Some(authority.file("ca.pem")), None),
        with(Some(authority.file("ca.pem")), Some(&other)),
        with(None, Some(&authority)),
    ];
    let plain = EtcdOptions::new([etcd.endpoint().replace("https", "http")]);
    etcd.spawn();
    etcd.served_to(right.clone()).await;
    let backend = connect(right);
    backend.txn(a_write()).await.unwrap();
    assert!(!format!("{backend:?}").contains("KEY"));
    for options in wrong {
        // With TLS 1.3, a rejection by the client follows the handshake, and may be lost with the connection.
        let backend = connect(options.clone());
        let error = retried(|| backend.range(a_read())).await.unwrap_err();
        assert!(matches!(error, Error::Denied { .. }), "{options:?}\n{error:?}");
    }
    let error = connect(plain).range(a_read()).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. } | Error::NotEtcd { .. }), "{error:?}");

    let Some(open) = Etcd::start().await else { return };
    let tls = Some(TlsFiles { ca: Some(authority.file("ca.pem")), ..TlsFiles::default() });
    let options = EtcdOptions { tls, ..EtcdOptions::new([open.endpoint().replace("http", "https")]) };
    // A newer etcd responds with something that is not TLS, and an older one closes the connection.
    let error = connect(options).range(a_read()).await.unwrap_err();
    assert!(matches!(error, Error::NotEtcd { .. } | Error::Unavailable { .. }), "{error:?}");
}

#[tokio::test]
async fn late_response_to_a_renewal_is_not_taken_for_that_of_the_next_renewal() {
    const LEASE: i64 = 7;
    let Some(etcd) = Etcd::start().await else { return };
    let (pause, held) = watch::channel(false);
    let backend = connect(hasty([relay(&etcd, held).await]));
    let ttl = Duration::from_secs(60);
    backend.lease_grant(LEASE, ttl).await.unwrap();
    assert_eq!(backend.lease_keep_alive(LEASE).await.unwrap(), ttl);
    pause.send_replace(true);
    let error = backend.lease_keep_alive(LEASE).await.unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    // etcd has renewed the lease, and its response is in the relay.
    etcd.backend().lease_revoke(LEASE).await.unwrap();
    pause.send_replace(false);
    let error = backend.lease_keep_alive(LEASE).await.unwrap_err();
    assert!(matches!(error, Error::LeaseNotFound { lease: LEASE }), "{error:?}");
    assert_eq!(backend.connection(), 1, "one late response is no reason to leave the connection");
}
