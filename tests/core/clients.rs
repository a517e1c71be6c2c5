//! Other clients of the embedded server: the `etcdctl` beside each etcd to test with, and etcd's Go client with its
//! recipes, which is built from `tests/clients`. Without an etcd or without Go, a test prints a line that says so, and
//! passes.

use std::{
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use lattice_rdzv::server::{Credentials, ServerOptions};
use tokio::{io::AsyncReadExt, process::Command};

use crate::support::{embedded::Embedded, etcd::binaries, within};

struct Etcdctl {
    program: PathBuf,
    endpoint: String,
}

impl Etcdctl {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg("--endpoints")
            .arg(&self.endpoint)
            .args(arguments)
            .env("ETCDCTL_API", "3")
            .kill_on_drop(true);
        command.stdin(Stdio::null());
        command
    }

    async fn output(&self, arguments: &[&str]) -> Output {
        within(&format!("{arguments:?}"), self.command(arguments).output()).await.unwrap()
    }

    /// Its output, line by line.
    async fn says(&self, arguments: &[&str]) -> Vec<String> {
        let output = self.output(arguments).await;
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
    }

    /// Its error output.
    async fn complains(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments).await;
        assert!(!output.status.success(), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    }
}

#[tokio::test]
async fn etcdctl_of_each_release_line() {
    for etcd in binaries() {
        let program = etcd.with_file_name("etcdctl");
        println!("{}", program.display());
        etcdctl_does_what_it_does(program).await;
    }
}

async fn etcdctl_does_what_it_does(program: PathBuf) {
    let server = Embedded::start().await;
    let etcdctl = Etcdctl { program: program.clone(), endpoint: server.endpoint() };

    assert_eq!(etcdctl.says(&["put", "a", "1"]).await, ["OK"]);
    assert_eq!(etcdctl.says(&["put", "--prev-kv", "a", "2"]).await, ["OK", "a", "1"]);
    assert_eq!(etcdctl.says(&["get", "a"]).await, ["a", "2"]);
    assert_eq!(etcdctl.says(&["get", "a", "--rev", "2", "--print-value-only"]).await, ["1"]);
    assert_eq!(etcdctl.says(&["del", "--prefix", "a"]).await, ["1"]);
    let lease = etcdctl.says(&["lease", "grant", "60"]).await.join("");
    let id = lease.split(' ').nth(1).unwrap().to_owned();
    etcdctl.says(&["put", "--lease", &id, "b", "leased"]).await;
    assert!(etcdctl.says(&["lease", "timetolive", "--keys", &id]).await[0].contains("[b]"));
    assert!(etcdctl.says(&["lease", "list"]).await.concat().contains(&id));
    assert!(etcdctl.says(&["lease", "keep-alive", "--once", &id]).await[0].contains("60"));
    etcdctl.says(&["lease", "revoke", &id]).await;
    assert!(etcdctl.says(&["get", "b"]).await.is_empty());
    etcdctl.says(&["compaction", "4"]).await;
    let complaint = etcdctl.complains(&["get", "a", "--rev", "2"]).await;
    assert!(complaint.contains("required revision has been compacted"), "{complaint}");
    let member = format!("{:x}", server.server().member_id());
    assert!(etcdctl.says(&["member", "list"]).await[0].contains(&member));
    // etcdctl 3.4 sends `http://` and the address as the authority of this call, for which HTTP/2 has an error.
    if !etcdctl.says(&["version"]).await[0].contains("3.4.") {
        assert!(etcdctl.says(&["endpoint", "status"]).await[0].contains("lattice-rdzv"));
    }
    assert!(etcdctl.output(&["endpoint", "health"]).await.status.success());
    let complaint = etcdctl.complains(&["user", "list"]).await;
    assert!(complaint.contains("embedded server of lattice-rdzv"), "{complaint}");

    let mut watch = etcdctl.command(&["watch", "w", "--rev", "1"]).stdout(Stdio::piped()).spawn().unwrap();
    // A watch that starts at a compacted revision ends with that error.
    let mut text = String::new();
    within("the end of the watch", watch.stdout.take().unwrap().read_to_string(&mut text)).await.unwrap();
    assert!(!within("the watch's status", watch.wait()).await.unwrap().success());
    etcdctl.says(&["put", "w", "1"]).await;
    let mut watch = etcdctl.command(&["watch", "w", "--rev", "5"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut told = vec![0; "PUT\nw\n1\n".len()];
    within("an event", watch.stdout.as_mut().unwrap().read_exact(&mut told)).await.unwrap();
    assert_eq!(told, b"PUT\nw\n1\n");

    // A lock is a lease, a key, and a wait for earlier keys, all of which the client implements.
    assert!(etcdctl.says(&["lock", "mutex", "echo", "held"]).await.contains(&"held".to_owned()));

    let user = Some(Credentials { user: "node".into(), password: "secret".into() });
    let guarded = Embedded::with(ServerOptions { user, ..ServerOptions::default() }).await;
    let etcdctl = Etcdctl { program, endpoint: guarded.endpoint() };
    assert_eq!(etcdctl.says(&["--user", "node:secret", "put", "a", "1"]).await, ["OK"]);
    let complaint = etcdctl.complains(&["--user", "node:guess", "get", "a"]).await;
    assert!(complaint.contains("invalid user ID or password"), "{complaint}");
    let complaint = etcdctl.complains(&["get", "a"]).await;
    assert!(complaint.contains("user name is empty"), "{complaint}");
}

#[tokio::test]
async fn recipes_of_gos_client() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("clients");
    // The options by which scripts/chart-tools builds etcd, whose compiled packages are used again.
    let mut build = Command::new("go");
    build.args(["build", "-trimpath", "-ldflags", "-s -w", "-o"]).arg(&program).arg(".");
    let Ok(output) = build.env("CGO_ENABLED", "0").current_dir(source).output().await else {
        println!("skipped: no Go on this machine");
        return;
    };
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "the client cannot be built: {complaint}");
    let server = Embedded::start().await;
    let run = Command::new(program).arg(server.endpoint()).kill_on_drop(true).output();
    let output = tokio::time::timeout(std::time::Duration::from_secs(90), run).await.unwrap().unwrap();
    let (said, complaint) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}{complaint}");
    assert_eq!(
        said.lines().collect::<Vec<_>>(),
        ["ok mutex", "ok election", "ok memory", "ok session", "ok watch"]
    );
}
