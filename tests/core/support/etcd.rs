//! A real etcd for tests, which is started on free ports in a separate directory, and killed when it is dropped.
//!
//! The binary is that of `LATTICE_TEST_ETCD`, or otherwise `etcd` on the path. Without an etcd, a test prints a line
//! that says so, and passes. If `CI` is set, a missing etcd is a failure.

use std::{
    io::ErrorKind,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use etcd_client::{AuthClient, Client, Permission, PermissionType};
use lattice_rdzv::backend::{
    Backend,
    etcd::{EtcdBackend, EtcdOptions},
};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

/// The maximum time for anything that must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// One etcd, alone in its cluster.
pub(crate) struct Etcd {
    binary: PathBuf,
    name: String,
    initial_cluster: String,
    directory: TempDir,
    client_url: String,
    peer_url: String,
    arguments: Vec<String>,
    child: Option<Child>,
}

/// The etcd to test with. If there is none, prints that and returns `None`.
pub(crate) fn binary() -> Option<PathBuf> {
    let named = std::env::var_os("LATTICE_TEST_ETCD").filter(|path| !path.is_empty()).map(PathBuf::from);
    let on_path = || {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path).map(|directory| directory.join("etcd")).find(|file| file.is_file())
    };
    let found = named.or_else(on_path);
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "no etcd: set LATTICE_TEST_ETCD or put `etcd` on the path");
        println!("skipped: no etcd (set LATTICE_TEST_ETCD or put `etcd` on the path)");
    }
    found
}

/// The etcd to test with, and those of `LATTICE_TEST_ETCDS`, separated by colons: one of each release line.
pub(crate) fn binaries() -> Vec<PathBuf> {
    let mut all: Vec<_> = binary().into_iter().collect();
    let more = std::env::var_os("LATTICE_TEST_ETCDS").unwrap_or_default();
    all.extend(std::env::split_paths(&more).filter(|path| !path.as_os_str().is_empty()));
    all.sort();
    all.dedup();
    all
}

/// A free port of the loopback interface that was given to no other test of this process.
///
/// It is below the ports that the kernel selects by itself (`ip_local_port_range`, ip(7)). The kernel could give such a
/// port to a second socket or to a connection before the server listens on it, or while the server is down. The Python
/// tests, which may run at the same time, use the ports from 20,000.
pub(crate) fn free_port() -> u16 {
    const FIRST: u32 = 12_000;
    const COUNT: u32 = 8_000;
    // A prime, so that processes that run at once start far from each other.
    const APART: u32 = 7_919;
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    loop {
        let step = std::process::id().wrapping_mul(APART).wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(FIRST + step % COUNT).unwrap();
        // A listener would not do: a program that another test starts at this moment holds a copy of it until its exec(2).
        let answer =
            TcpStream::connect_timeout(&SocketAddr::from(([127, 0, 0, 1], port)), Duration::from_secs(1));
        if answer.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused) {
            return port;
        }
    }
}

impl Etcd {
    /// Starts an etcd without TLS. `None` if there is no etcd.
    pub(crate) async fn start() -> Option<Self> {
        let etcd = Self::prepare("http", &[])?;
        Some(etcd.launch().await)
    }

    /// An etcd that is not running yet, with more flags.
    pub(crate) fn prepare(scheme: &str, arguments: &[&str]) -> Option<Self> {
        Some(Self::of(&binary()?, scheme, arguments))
    }

    /// An etcd of this binary that is not running yet, with more flags.
    pub(crate) fn of(binary: &Path, scheme: &str, arguments: &[&str]) -> Self {
        // In memory if possible, because etcd syncs every write.
        let place = Some(Path::new("/dev/shm")).filter(|place| place.is_dir());
        let directory = place.map_or_else(TempDir::new, TempDir::new_in).unwrap();
        Self {
            binary: binary.to_owned(),
            name: "test".to_owned(),
            initial_cluster: String::new(),
            directory,
            client_url: format!("{scheme}://127.0.0.1:{}", free_port()),
            peer_url: format!("http://127.0.0.1:{}", free_port()),
            arguments: arguments.iter().map(ToString::to_string).collect(),
            child: None,
        }
    }

    /// Starts a cluster of this number of etcd members.
    pub(crate) async fn cluster(members: usize) -> Option<Vec<Self>> {
        let mut cluster = (0..members).map(|_| Self::prepare("http", &[])).collect::<Option<Vec<_>>>()?;
        for (index, etcd) in cluster.iter_mut().enumerate() {
            etcd.name = format!("test{index}");
        }
        let initial = cluster.iter().map(|etcd| format!("{}={}", etcd.name, etcd.peer_url));
        let initial = initial.collect::<Vec<_>>().join(",");
        for etcd in &mut cluster {
            etcd.initial_cluster.clone_from(&initial);
            etcd.spawn();
        }
        for etcd in &cluster {
            etcd.served().await;
        }
        Some(cluster)
    }

    /// Starts it and waits until it serves.
    pub(crate) async fn launch(mut self) -> Self {
        self.spawn();
        self.served().await;
        self
    }

    /// Starts the process.
    pub(crate) fn spawn(&mut self) {
        let log = std::fs::File::create(self.directory.path().join("log")).unwrap();
        let alone = format!("{}={}", self.name, self.peer_url);
        let cluster = if self.initial_cluster.is_empty() { &alone } else { &self.initial_cluster };
        let mut command = Command::new(&self.binary);
        command
            .arg(format!("--name={}", self.name))
            .arg(format!("--data-dir={}", self.directory.path().join("data").display()))
            .arg(format!("--listen-client-urls={}", self.client_url))
            .arg(format!("--advertise-client-urls={}", self.client_url))
            .arg(format!("--listen-peer-urls={}", self.peer_url))
            .arg(format!("--initial-advertise-peer-urls={}", self.peer_url))
            .arg(format!("--initial-cluster={cluster}"))
            .args(&self.arguments)
            .env_remove("ETCD_NAME")
            .stdout(Stdio::null())
            .stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    /// Waits until it responds.
    pub(crate) async fn served(&self) {
        self.served_to(EtcdOptions::new([self.endpoint()])).await;
    }

    /// Waits until it responds to a client with these options.
    pub(crate) async fn served_to(&self, options: EtcdOptions) {
        let backend = EtcdBackend::connect(options).unwrap();
        let began = Instant::now();
        loop {
            let status = backend.status().await;
            if status.as_ref().is_ok_and(|status| status.leader != 0) {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "etcd does not serve: {status:?}\n{}", self.log());
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// The content of its log.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// The endpoint for clients.
    pub(crate) fn endpoint(&self) -> &str {
        &self.client_url
    }

    /// A directory that is deleted with it.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A new client of it.
    pub(crate) fn backend(&self) -> EtcdBackend {
        EtcdBackend::connect(EtcdOptions::new([self.endpoint()])).unwrap()
    }

    /// Enables authentication: `root`, and the user `node` with this password, who may read and write keys with this prefix.
    pub(crate) async fn require_passwords(&self, password: &str, prefix: &str) -> AuthClient {
        let mut auth = Client::connect([self.endpoint()], None).await.unwrap().auth_client();
        auth.user_add("root", "root", None).await.unwrap();
        auth.user_grant_role("root", "root").await.unwrap();
        auth.user_add("node", password, None).await.unwrap();
        auth.role_add("nodes").await.unwrap();
        let own = Permission::new(PermissionType::Readwrite, prefix).with_prefix();
        auth.role_grant_permission("nodes", own).await.unwrap();
        auth.user_grant_role("node", "nodes").await.unwrap();
        auth.auth_enable().await.unwrap();
        auth
    }

    /// Kills the process, as a power failure does.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Restarts it with its data.
    pub(crate) async fn restart(&mut self) {
        self.kill();
        self.spawn();
        self.served().await;
    }

    /// Kills it, and starts it with the same flags and no data.
    pub(crate) async fn wipe(&mut self) {
        self.kill();
        std::fs::remove_dir_all(self.directory.path().join("data")).unwrap();
        self.spawn();
        self.served().await;
    }

    /// Copies its data while it is stopped, for [`Self::restore_backup`].
    pub(crate) async fn back_up(&mut self) {
        self.kill();
        self.copy_data("data", "backup");
        self.spawn();
        self.served().await;
    }

    /// Kills it, and starts it with the same flags and the data of the last [`Self::back_up`].
    pub(crate) async fn restore_backup(&mut self) {
        self.kill();
        self.copy_data("backup", "data");
        self.spawn();
        self.served().await;
    }

    /// A program in the directory of etcd.
    fn tool(&self, name: &str) -> Option<Command> {
        let program = self.binary.with_file_name(name);
        program.exists().then(|| Command::new(program))
    }

    /// `snapshot restore` of `etcdutl`, or of `etcdctl` if there is no `etcdutl`.
    fn restore_tool(&self) -> Option<Command> {
        let mut tool = self.tool("etcdutl").or_else(|| self.tool("etcdctl"))?;
        tool.env("ETCDCTL_API", "3").args(["snapshot", "restore"]);
        Some(tool)
    }

    /// Whether [`Self::restore_snapshot`] has these options, which newer releases have added.
    pub(crate) fn can_restore_with(&self, options: &[&str]) -> bool {
        let Some(mut tool) = self.restore_tool() else { return false };
        let help = String::from_utf8(tool.arg("--help").output().unwrap().stdout).unwrap();
        options.iter().all(|option| help.contains(option.split('=').next().unwrap()))
    }

    /// Saves a snapshot of the running etcd, for [`Self::restore_snapshot`]. False if there is no etcdctl.
    pub(crate) fn save_snapshot(&self) -> bool {
        let Some(mut etcdctl) = self.tool("etcdctl") else { return false };
        let saved = etcdctl
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}", self.client_url))
            .args(["snapshot", "save"])
            .arg(self.directory.path().join("snapshot"))
            .output()
            .unwrap();
        assert!(saved.status.success(), "{saved:?}");
        true
    }

    /// Ends it, restores the last snapshot with these options, and starts it with the same flags. As etcd's guide to
    /// disaster recovery does, this makes a new cluster.
    pub(crate) async fn restore_snapshot(&mut self, options: &[&str]) {
        self.kill();
        let data = self.directory.path().join("data");
        std::fs::remove_dir_all(&data).unwrap();
        let restored = self
            .restore_tool()
            .unwrap()
            .arg(self.directory.path().join("snapshot"))
            .arg(format!("--name={}", self.name))
            .arg(format!("--data-dir={}", data.display()))
            .arg(format!("--initial-cluster={}={}", self.name, self.peer_url))
            .arg(format!("--initial-advertise-peer-urls={}", self.peer_url))
            .args(options)
            .output()
            .unwrap();
        assert!(restored.status.success(), "{restored:?}");
        self.spawn();
        self.served().await;
    }

    fn copy_data(&self, from: &str, to: &str) {
        let (from, to) = (self.directory.path().join(from), self.directory.path().join(to));
        let _ = std::fs::remove_dir_all(&to);
        assert!(Command::new("cp").arg("-a").args([&from, &to]).status().unwrap().success());
    }

    /// Pauses the process.
    pub(crate) fn pause(&self) {
        self.signal("-STOP");
        // The signal is sent at once, and takes effect when every thread has received it.
        let tasks = format!("/proc/{}/task", self.child.as_ref().unwrap().id());
        let runs = |task: std::fs::DirEntry| {
            let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            // The state follows the name, which is in brackets: proc(5).
            !stat.is_empty() && !stat.rsplit(") ").next().unwrap_or_default().starts_with('T')
        };
        while std::fs::read_dir(&tasks).unwrap().any(|task| runs(task.unwrap())) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Continues the process.
    pub(crate) fn resume(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let id = self.child.as_ref().unwrap().id().to_string();
        // The command of the shell, because not every machine has it as a program.
        let kill = format!("kill {signal} {id}");
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}
