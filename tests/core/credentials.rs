//! Passwords and TLS of a real etcd, and of the embedded server: what `etcdctl` accepts is accepted, a login is only
//! paid for once, and files that cannot be used are named.

use std::{
    ffi::OsStr,
    io::{Read, Write},
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use etcd_client::{Client, ConnectOptions};
use lattice_rdzv::{
    Error, Result,
    backend::{
        Backend, Keys, Range, RangeResult,
        etcd::{Credentials, EtcdBackend, EtcdOptions, Password, Pem, TlsFiles},
        limits::Limits,
    },
    server::{Server, ServerOptions, ServerTls, bind},
};
use tokio::time::{Instant, sleep};

use crate::support::{
    embedded::Embedded,
    etcd::{Etcd, PATIENCE, free_port},
    within,
};

const PASSWORD: &str = "the node's password";

fn a_read() -> Range {
    Range::new(Keys::one("own/a"))
}

fn connect(options: EtcdOptions) -> EtcdBackend {
    EtcdBackend::connect(options).unwrap()
}

/// Repeats the read while the service is not available.
async fn retried(backend: &EtcdBackend) -> Result<RangeResult> {
    let began = Instant::now();
    loop {
        match backend.range(a_read()).await {
            Err(error) if error.is_transient() && began.elapsed() < PATIENCE * 2 => {
                sleep(Duration::from_millis(50)).await;
            }
            end => return end,
        }
    }
}

/// An etcd with a user `node`, whose passwords take this cost to check.
async fn with_users(bcrypt_cost: u32) -> Option<Etcd> {
    let arguments = [format!("--bcrypt-cost={bcrypt_cost}"), "--snapshot-count=10".to_owned()];
    let etcd = Etcd::prepare("http", &arguments.each_ref().map(String::as_str))?.launch().await;
    etcd.require_passwords(PASSWORD, "own/").await;
    Some(etcd)
}

fn as_node(endpoint: &str, password: impl Into<Password>) -> EtcdOptions {
    let credentials = Credentials { user: "node".into(), password: password.into() };
    EtcdOptions { credentials: Some(credentials), ..EtcdOptions::new([endpoint]) }
}

/// The name of the last snapshot of an etcd, after which its log starts again.
fn last_snapshot(etcd: &Etcd) -> Option<String> {
    let files = std::fs::read_dir(etcd.directory().join("data/member/snap")).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    names.filter(|name| Path::new(name).extension() == Some(OsStr::new("snap"))).max()
}

/// How many logins an etcd has received since it was started, by its own count.
fn logins(etcd: &Etcd) -> u32 {
    let address = etcd.endpoint().trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET /metrics HTTP/1.0\r\nHost: {address}\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let asked = |line: &&str| {
        line.starts_with("grpc_server_started_total") && line.contains("grpc_method=\"Authenticate\"")
    };
    let line = text.lines().find(asked).unwrap_or_default();
    line.rsplit(' ').next().and_then(|count| count.parse().ok()).unwrap_or_default()
}

#[tokio::test]
async fn one_login_serves_all_clients_of_a_process() {
    let Some(etcd) = with_users(4).await else { return };
    let clients: Vec<_> = (0..16).map(|_| Arc::new(connect(as_node(etcd.endpoint(), PASSWORD)))).collect();
    let reads = clients.iter().map(|client| {
        let client = Arc::clone(client);
        tokio::spawn(async move { client.range(a_read()).await })
    });
    for read in reads.collect::<Vec<_>>() {
        read.await.unwrap().unwrap();
    }
    assert_eq!(logins(&etcd), 1);
    let other = Credentials { user: "root".into(), password: "root".into() };
    let other = EtcdOptions { credentials: Some(other), ..EtcdOptions::new([etcd.endpoint()]) };
    connect(other).range(a_read()).await.unwrap();
    assert_eq!(logins(&etcd), 2, "another user has a login of its own");
}

#[tokio::test]
async fn login_is_not_repeated_while_it_may_be_answered() {
    // One check takes longer than several attempts.
    let Some(etcd) = with_users(15).await else { return };
    let limits = Limits::for_ttl(Duration::from_secs(2));
    let backend = connect(EtcdOptions { limits, ..as_node(etcd.endpoint(), PASSWORD) });
    let error = backend.range(a_read()).await.unwrap_err();
    assert!(error.is_transient() && error.to_string().contains("not answered yet"), "{error}");
    retried(&backend).await.unwrap();
    assert_eq!((logins(&etcd), backend.connection()), (1, 1));
}

#[tokio::test]
async fn connect_limit_starts_when_the_login_is_answered() {
    let Some(etcd) = with_users(15).await else { return };
    let backend = connect(as_node(etcd.endpoint(), PASSWORD));
    backend.log_in(Duration::from_millis(1)).await.unwrap();
    backend.range(a_read()).await.unwrap();
    assert_eq!(logins(&etcd), 1);
    let unserved = connect(as_node(&format!("http://127.0.0.1:{}", free_port()), PASSWORD));
    assert!(unserved.log_in(Duration::from_millis(1)).await.unwrap_err().is_transient());
}

#[tokio::test]
async fn token_is_kept_over_reconnects_and_replaced_after_a_restart() {
    let Some(mut etcd) = with_users(4).await else { return };
    let limits = Limits::for_ttl(Duration::from_secs(2));
    let options = EtcdOptions { limits, ..as_node(etcd.endpoint(), PASSWORD) };
    let backend = connect(options.clone());
    backend.range(a_read()).await.unwrap();
    etcd.pause();
    for _ in 0..2 {
        assert!(backend.range(a_read()).await.unwrap_err().is_transient());
    }
    etcd.resume();
    retried(&backend).await.unwrap();
    assert!(backend.connection() > 1);
    assert_eq!(logins(&etcd), 1);

    // Otherwise the log is replayed, including the login.
    let root = Client::connect([etcd.endpoint()], Some(ConnectOptions::new().with_user("root", "root")));
    let mut root = root.await.unwrap();
    let snapshot = last_snapshot(&etcd);
    within("a snapshot of a later state than the login", async {
        while last_snapshot(&etcd) == snapshot {
            root.put("written", "after the login", None).await.unwrap();
        }
    })
    .await;
    etcd.restart().await;
    // With a release that requires no token for it, the renewal is accepted before the login.
    let _ = backend.lease_keep_alive(7).await;
    retried(&backend).await.unwrap();
    assert_eq!(logins(&etcd), 1, "the restarted etcd does not know the token");
}

#[tokio::test]
async fn rotated_password_is_read_from_the_file() {
    let Some(etcd) = with_users(4).await else { return };
    let file = etcd.directory().join("password");
    std::fs::write(&file, format!("{PASSWORD}\n")).unwrap();
    let backend = connect(as_node(etcd.endpoint(), Password::File(file.clone())));
    backend.range(a_read()).await.unwrap();

    let root = ConnectOptions::new().with_user("root", "root");
    let root = Client::connect([etcd.endpoint()], Some(root)).await.unwrap();
    root.auth_client().user_change_password("node", "rotated").await.unwrap();
    // etcd has the new password before the file does.
    let error = backend.range(a_read()).await.unwrap_err();
    assert!(matches!(error, Error::Denied { .. }), "{error:?}");
    let refused = logins(&etcd);
    for _ in 0..20 {
        backend.range(a_read()).await.unwrap_err();
    }
    assert!(logins(&etcd) <= refused + 2, "a refused password is not sent again and again");
    std::fs::write(&file, "rotated").unwrap();
    backend.range(a_read()).await.unwrap();
}

#[tokio::test]
async fn embedded_server_reads_a_rotated_password() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("password");
    std::fs::write(&file, "first").unwrap();
    let user = Some(Credentials::from_file("node", &file).unwrap());
    let server = Embedded::with(ServerOptions { user, ..ServerOptions::default() }).await;
    let running = connect(as_node(&server.endpoint(), Password::File(file.clone())));
    running.range(a_read()).await.unwrap();
    std::fs::write(&file, "second\n").unwrap();
    let error = connect(as_node(&server.endpoint(), "first")).range(a_read()).await.unwrap_err();
    assert!(matches!(error, Error::Denied { .. }), "{error:?}");
    connect(as_node(&server.endpoint(), "second")).range(a_read()).await.unwrap();
    // Its token was for the first password. It logs in again with the present content of the file.
    running.range(a_read()).await.unwrap();
    std::fs::remove_file(&file).unwrap();
    connect(as_node(&server.endpoint(), "second")).range(a_read()).await.unwrap();
}

fn openssl(directory: &Path, arguments: &str) {
    let output = Command::new("openssl").args(arguments.split(' ')).current_dir(directory).output().unwrap();
    assert!(output.status.success(), "openssl {arguments}\n{}", String::from_utf8_lossy(&output.stderr));
}

const P256: &str = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
const P521: &str = "-newkey ec -pkeyopt ec_paramgen_curve:P-521 -nodes";
const NAMES: &str = "-addext subjectAltName=IP:127.0.0.1";

/// Files of an authority with these keys, and the certificates that it signed for a server and for a client.
fn authority(directory: &Path, name: &str, keys: &str, digest: &str) -> PathBuf {
    let directory = directory.join(name);
    std::fs::create_dir(&directory).unwrap();
    std::fs::write(directory.join("names"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    let own = format!("req -x509 {keys} -{digest} -days 2 -subj /CN=authority -keyout ca.key -out ca.pem");
    openssl(&directory, &own);
    let sign = format!("x509 -req -CA ca.pem -CAkey ca.key -CAcreateserial -{digest} -days 2");
    for role in ["server", "client"] {
        openssl(&directory, &format!("req {keys} -subj /CN={role} -keyout {role}.key -out {role}.csr"));
        openssl(&directory, &format!("{sign} -extfile names -in {role}.csr -out {role}.pem"));
    }
    // Without extensions it is a certificate of X.509 v1.
    openssl(&directory, &format!("req {keys} -subj /CN=v1 -keyout v1.key -out v1.csr"));
    openssl(&directory, &format!("{sign} -in v1.csr -out v1.pem"));
    directory
}

fn trusting(endpoint: &str, ca: &Path, identity: Option<(PathBuf, PathBuf)>) -> EtcdOptions {
    let (cert, key) = identity.map(|(cert, key)| (Pem::File(cert), Pem::File(key))).unzip();
    let tls = TlsFiles { ca: Some(Pem::File(ca.to_owned())), cert, key };
    EtcdOptions { tls: Some(tls), ..EtcdOptions::new([endpoint]) }
}

fn flags(cert: &Path, key: &Path) -> [String; 2] {
    [format!("--cert-file={}", cert.display()), format!("--key-file={}", key.display())]
}

/// An etcd that serves TLS with these files and flags, without waiting until it serves.
fn serving_tls(cert: &Path, key: &Path, more: &[String]) -> Option<Etcd> {
    let flags = [&flags(cert, key), more].concat();
    let mut etcd = Etcd::prepare("https", &flags.iter().map(String::as_str).collect::<Vec<_>>())?;
    etcd.spawn();
    Some(etcd)
}

#[tokio::test]
async fn servers_that_etcdctl_trusts_are_trusted() {
    let directory = tempfile::tempdir().unwrap();
    for (name, keys, digest) in [("p521", P521, "sha512"), ("p256-sha512", P256, "sha512")] {
        let files = authority(directory.path(), name, keys, digest);
        let ca = files.join("ca.pem");
        let asks = [format!("--trusted-ca-file={}", ca.display()), "--client-cert-auth".to_owned()];
        let (cert, key) = (files.join("server.pem"), files.join("server.key"));
        let Some(etcd) = serving_tls(&cert, &key, &asks) else { return };
        let identity = (files.join("client.pem"), files.join("client.key"));
        etcd.served_to(trusting(etcd.endpoint(), &ca, Some(identity))).await;
        let identity = (files.join("v1.pem"), files.join("v1.key"));
        etcd.served_to(trusting(etcd.endpoint(), &ca, Some(identity))).await;
        println!("accepted: {name}, with a client certificate of X.509 v3 and one of v1");
    }
    let (cert, key) = (directory.path().join("self.pem"), directory.path().join("self.key"));
    let own = format!("req -x509 {P256} {NAMES} -days 2 -subj /CN=self -keyout self.key -out self.pem");
    openssl(directory.path(), &own);
    let Some(etcd) = serving_tls(&cert, &key, &[]) else { return };
    etcd.served_to(trusting(etcd.endpoint(), &cert, None)).await;
    println!("accepted: a self-signed server certificate with CA:TRUE");

    let Some(mut etcd) = Etcd::prepare("https", &["--auto-tls"]) else { return };
    etcd.spawn();
    let made = etcd.directory().join("data/fixtures/client/cert.pem");
    let wait = async {
        while !made.is_file() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    within("the certificate that etcd makes", wait).await;
    etcd.served_to(trusting(etcd.endpoint(), &made, None)).await;
    println!("accepted: --auto-tls");
}

#[tokio::test]
async fn certificate_in_the_pool_is_still_verified() {
    let directory = tempfile::tempdir().unwrap();
    let make = |name: &str, more: &str| {
        let out = format!("-keyout {name}.key -out {name}.pem");
        openssl(directory.path(), &format!("req -x509 {P256} {more} -days 2 -subj /CN=self {out}"));
        ["pem", "key"].map(|end| directory.path().join(format!("{name}.{end}")))
    };
    let [right, right_key] = make("right", NAMES);
    let [other_name, other_name_key] = make("other-name", "-addext subjectAltName=IP:127.0.0.2");
    let [client, client_key] = make("client", &format!("{NAMES} -addext extendedKeyUsage=clientAuth"));
    for (cert, key, pool, what) in [
        (&right, &right_key, &other_name, "it is not in the pool"),
        (&other_name, &other_name_key, &other_name, "it is for another address"),
        (&client, &client_key, &client, "it is for clients"),
    ] {
        let Some(etcd) = serving_tls(cert, key, &[]) else { return };
        let backend = connect(trusting(etcd.endpoint(), pool, None));
        let error = retried(&backend).await.unwrap_err();
        assert!(matches!(error, Error::Denied { .. }), "accepted though {what}: {error:?}");
    }
}

#[tokio::test]
async fn broken_tls_file_is_named_before_anything_is_connected() {
    let directory = tempfile::tempdir().unwrap();
    let files = authority(directory.path(), "good", P256, "sha256");
    let other = authority(directory.path(), "other", P256, "sha256");
    let good = |name: &str| files.join(name);
    openssl(&files, "pkey -in client.key -aes256 -passout pass:x -out encrypted.key");
    openssl(&files, "ec -in client.key -aes256 -passout pass:x -out encrypted-old.key");
    openssl(&files, "pkey -in client.key -outform DER -out der.key");
    openssl(&files, "x509 -in client.pem -outform DER -out der.pem");
    openssl(&files, "x509 -in ca.pem -outform DER -out der-ca.pem");
    std::fs::write(good("empty.pem"), "").unwrap();
    std::fs::write(good("text.pem"), "no certificate").unwrap();
    let (ca, cert, key) = (good("ca.pem"), good("client.pem"), good("client.key"));
    let cases = [
        (&ca, &cert, &other.join("client.key"), "does not belong"),
        (&ca, &good("v1.pem"), &key, "does not belong"),
        (&ca, &cert, &good("encrypted.key"), "encrypted"),
        (&ca, &cert, &good("encrypted-old.key"), "encrypted"),
        (&ca, &key, &cert, "swapped"),
        (&ca, &cert, &cert, "swapped"),
        (&key, &cert, &key, "swapped"),
        (&good("der-ca.pem"), &cert, &key, "DER"),
        (&ca, &good("der.pem"), &key, "DER"),
        (&ca, &cert, &good("der.key"), "DER"),
        (&good("empty.pem"), &cert, &key, "empty"),
        (&good("text.pem"), &cert, &key, "PEM"),
        (&ca, &cert, &good("lost.key"), "No such file"),
    ];
    let endpoint = format!("https://127.0.0.1:{}", free_port());
    let own = [&ca, &cert, &key];
    for (ca, cert, key, why) in cases {
        let backend = connect(trusting(&endpoint, ca, Some((cert.clone(), key.clone()))));
        let error = backend.range(a_read()).await.unwrap_err();
        let Error::Setting { message } = error else { panic!("{why}: {error:?}") };
        let broken = [ca, cert, key].into_iter().zip(own).find(|(given, good)| given != good);
        let broken = broken.map_or(key, |(given, _)| given).display().to_string();
        assert!(message.contains(why) && message.contains(&broken), "{why}, {broken}: {message}");
        let serve = ServerTls {
            cert: Pem::File(cert.clone()),
            key: Pem::File(key.clone()),
            client_ca: Some(Pem::File(ca.clone())),
        };
        let options = ServerOptions { tls: Some(serve), ..ServerOptions::default() };
        let error = Server::start(bind("127.0.0.1", 0).await.unwrap(), options).unwrap_err();
        assert!(error.to_string().contains(why) && error.to_string().contains(&broken), "{why}: {error}");
    }
}
