//! Databases of this host, on loopback.

use lockstep_perf::not_run;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Who runs PostgreSQL, which refuses to be run by root: Debian's `nobody`.
const NOBODY: u32 = 65_534;

/// PostgreSQL, as Debian installs it.
pub struct PostgresqlServer {
    server: Child,
    programs: PathBuf,
    pub address: SocketAddr,
    _directory: TempDir,
}

impl PostgresqlServer {
    pub fn start(test: &str) -> Option<Self> {
        let Some(programs) = programs() else {
            not_run::report(
                test,
                "no initdb in /usr/lib/postgresql/*/bin: apt-get install postgresql",
            );
            return None;
        };
        let directory = tempfile::tempdir().expect("a directory");
        let data = directory.path().join("data");
        std::fs::create_dir(&data).expect("a directory");
        if rustix::process::geteuid().is_root() {
            let open = std::fs::Permissions::from_mode(0o755);
            std::fs::set_permissions(directory.path(), open).expect("its mode");
            std::os::unix::fs::chown(&data, Some(NOBODY), Some(NOBODY)).expect("its owner");
        }
        let made = as_nobody(&programs.join("initdb"))
            .args(["--no-sync", "--auth=trust", "--username=postgres"])
            .args(["--data-checksums", "--locale=C", "--encoding=UTF8", "-D"])
            .arg(&data)
            .output()
            .expect("initdb");
        assert!(made.status.success(), "{made:?}");
        let address = free_port();
        let server = as_nobody(&programs.join("postgres"))
            .arg("-D")
            .arg(&data)
            .args(["-p", &address.port().to_string()])
            .args(["-c", "listen_addresses=127.0.0.1"])
            .args(["-c", "unix_socket_directories=", "-c", "fsync=off"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("postgres");
        let server = Self {
            server,
            programs,
            address,
            _directory: directory,
        };
        let started = Instant::now();
        while !server.psql("SELECT 1").status.success() {
            assert!(started.elapsed() < Duration::from_secs(20), "no answer");
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(server)
    }

    fn psql(&self, sql: &str) -> Output {
        Command::new(self.programs.join("psql"))
            .args(["-h", "127.0.0.1", "-U", "postgres", "-d", "postgres"])
            .args(["-p", &self.address.port().to_string(), "-c", sql])
            .stdin(Stdio::null())
            .output()
            .expect("psql")
    }

    pub fn execute(&self, sql: &str) {
        let done = self.psql(sql);
        assert!(done.status.success(), "{done:?}");
    }

    /// What SIGQUIT is to PostgreSQL: an immediate end, as by a crash, with its children.
    pub fn kill(&mut self) {
        let process = rustix::process::Pid::from_child(&self.server);
        let _ = rustix::process::kill_process(process, rustix::process::Signal::QUIT);
        let _ = self.server.wait();
    }
}

impl Drop for PostgresqlServer {
    fn drop(&mut self) {
        self.kill();
    }
}

fn programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let mut programs: Vec<PathBuf> = versions
        .filter_map(|version| Some(version.ok()?.path().join("bin")))
        .filter(|programs| programs.join("initdb").exists())
        .collect();
    programs.sort();
    programs.pop()
}

fn as_nobody(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).current_dir("/");
    if rustix::process::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

/// SQLite's shell behind a port, as the Debian guest has it.
pub struct SqliteServer {
    pub address: SocketAddr,
    file: PathBuf,
    _directory: TempDir,
}

impl SqliteServer {
    pub fn start(test: &str) -> Option<Self> {
        if let Err(error) = Command::new("sqlite3").arg("--version").output() {
            let why = format!("sqlite3 cannot be started ({error}): apt-get install sqlite3");
            not_run::report(test, &why);
            return None;
        }
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("data.db");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let server = Self {
            address: listener.local_addr().expect("an address"),
            file: file.clone(),
            _directory: directory,
        };
        server.execute("PRAGMA journal_mode = wal");
        // Ends with the test's process: nothing else ends an accept.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                serve(stream, &file);
            }
        });
        Some(server)
    }

    pub fn execute(&self, sql: &str) {
        let done = Command::new("sqlite3")
            .args(["-cmd", ".timeout 10000"])
            .arg(&self.file)
            .arg(sql)
            .output()
            .expect("sqlite3");
        assert!(done.status.success(), "{done:?}");
    }
}

/// A shell for a connection; it ends when the client closes it.
fn serve(stream: TcpStream, file: &Path) {
    let end = || OwnedFd::from(stream.try_clone().expect("another descriptor"));
    let shell = Command::new("sqlite3")
        .args(["-batch", "-safe", "-cmd", ".timeout 10000"])
        .arg(file)
        .stdin(end())
        .stdout(end())
        .stderr(end())
        .spawn();
    let mut shell = shell.expect("sqlite3, which was there before");
    std::thread::spawn(move || drop(shell.wait()));
}

fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|socket| socket.local_addr())
        .expect("a port")
}
