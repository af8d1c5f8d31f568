//! A running process tells its state over a Unix socket: whoever connects is sent one JSON object
//! and a newline, and the connection is closed. Nothing is read from the client, so nothing that a
//! client does can be parsed wrongly; one that does not read is let go after [`PATIENCE`].

use rustix::event::{EventfdFlags, PollFd, PollFlags};
use serde_json::Value;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// How long the server writes to one client.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// Largest answer that [`query`] takes, bytes.
pub const LARGEST_ANSWER: u64 = 1 << 20;

/// Why a status socket could not be served or asked.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// A live process answers at this path.
    #[error("{} is served by another process: name another path", path.display())]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// Something that is no socket is there.
    #[error("{} exists and is no socket: name another path", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The socket could not be made.
    #[error("cannot serve status at {}: {source}", path.display())]
    Serve {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Nobody answers.
    #[error(
        "no answer from {} ({source}): is the process running, with this `--status` path?",
        path.display()
    )]
    NoAnswer {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The answer is not what a Lockstep process says.
    #[error("{} answered something that is no status: {why}", path.display())]
    BadAnswer {
        /// The path.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// A thread that answers at a path until this is dropped; the path is then removed.
#[derive(Debug)]
pub struct StatusSocket {
    path: PathBuf,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl StatusSocket {
    /// Serves what `status` returns to whoever connects to `path`. A socket that a dead process
    /// left is replaced. Only this user may connect.
    ///
    /// # Errors
    /// The path is taken, or the kernel refuses.
    pub fn serve(
        path: &Path,
        status: impl Fn() -> Value + Send + 'static,
    ) -> Result<Self, StatusError> {
        let failed = |source| StatusError::Serve {
            path: path.to_owned(),
            source,
        };
        remove_stale(path)?;
        let listener = UnixListener::bind(path).map_err(failed)?;
        let set_up = || {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
            listener.set_nonblocking(true)?;
            let stop = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
            let stop = Arc::new(stop);
            let stopped = Arc::clone(&stop);
            let thread = std::thread::Builder::new()
                .name("status".to_owned())
                .spawn(move || answer_all(&listener, &stopped, &status))?;
            Ok((stop, thread))
        };
        match set_up() {
            Ok((stop, thread)) => Ok(Self {
                path: path.to_owned(),
                stop,
                thread: Some(thread),
            }),
            Err(source) => {
                drop(std::fs::remove_file(path));
                Err(failed(source))
            }
        }
    }
}

impl Drop for StatusSocket {
    fn drop(&mut self) {
        // An eventfd takes the first write of a 1 always.
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
        drop(std::fs::remove_file(&self.path));
    }
}

/// Removes a socket to which nobody listens any more.
fn remove_stale(path: &Path) -> Result<(), StatusError> {
    let Ok(metadata) = std::fs::symlink_metadata(path) else {
        return Ok(());
    };
    let path_owned = || path.to_owned();
    if !metadata.file_type().is_socket() {
        return Err(StatusError::NotASocket { path: path_owned() });
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(StatusError::InUse { path: path_owned() }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(|source| StatusError::Serve {
                path: path_owned(),
                source,
            })
        }
        Err(source) => Err(StatusError::Serve {
            path: path_owned(),
            source,
        }),
    }
}

fn answer_all(listener: &UnixListener, stop: &OwnedFd, status: &dyn Fn() -> Value) {
    loop {
        let mut set = [
            PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN),
        ];
        if rustix::event::poll(&mut set, None).is_err() {
            continue;
        }
        if !set[1].revents().is_empty() {
            return;
        }
        if let Ok((client, _)) = listener.accept()
            && let Err(error) = answer(&client, status)
        {
            tracing::debug!(%error, "a status client went away");
        }
    }
}

fn answer(mut client: &UnixStream, status: &dyn Fn() -> Value) -> io::Result<()> {
    client.set_nonblocking(false)?;
    client.set_write_timeout(Some(PATIENCE))?;
    let mut text = serde_json::to_vec(&status())?;
    text.push(b'\n');
    client.write_all(&text)
}

/// Asks the process that serves `path`, waiting for `patience` at most for each part of the answer.
///
/// # Errors
/// Nobody answers in time, or the answer is no JSON.
pub fn query(path: &Path, patience: Duration) -> Result<Value, StatusError> {
    let no_answer = |source| StatusError::NoAnswer {
        path: path.to_owned(),
        source,
    };
    let bad = |why: String| StatusError::BadAnswer {
        path: path.to_owned(),
        why,
    };
    let server = UnixStream::connect(path).map_err(no_answer)?;
    server.set_read_timeout(Some(patience)).map_err(no_answer)?;
    let mut text = Vec::new();
    (&server)
        .take(LARGEST_ANSWER + 1)
        .read_to_end(&mut text)
        .map_err(no_answer)?;
    if text.len() as u64 > LARGEST_ANSWER {
        return Err(bad(format!("more than {LARGEST_ANSWER} bytes")));
    }
    serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::{PATIENCE, StatusError, StatusSocket, query};
    use serde_json::json;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::{Duration, Instant};

    #[test]
    fn each_question_gets_the_state_of_its_moment() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("status");
        let lag = Arc::new(AtomicU64::new(0));
        let shown = Arc::clone(&lag);
        let server = StatusSocket::serve(
            &path,
            move || json!({"role": "backup", "lag": shown.load(Ordering::Relaxed)}),
        )
        .expect("serve");
        for expected in [3, 5] {
            lag.store(expected, Ordering::Relaxed);
            let said = query(&path, PATIENCE).expect("an answer");
            assert_eq!(said, json!({"role": "backup", "lag": expected}));
        }
        assert!(matches!(
            StatusSocket::serve(&path, || json!({})),
            Err(StatusError::InUse { .. })
        ));
        drop(server);
        assert!(!path.exists());
        assert!(matches!(
            query(&path, PATIENCE),
            Err(StatusError::NoAnswer { .. })
        ));
    }

    #[test]
    fn a_client_that_does_not_read_keeps_nobody_waiting_for_long() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("status");
        let large = "x".repeat(600_000);
        let _server =
            StatusSocket::serve(&path, move || json!({ "large": large.as_str() })).expect("serve");
        let _deaf = UnixStream::connect(&path).expect("connect");
        let started = Instant::now();
        query(&path, Duration::from_secs(10)).expect("an answer");
        assert!(started.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn what_a_dead_process_left_is_replaced_and_what_is_no_socket_is_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("status");
        drop(UnixListener::bind(&path).expect("bind"));
        assert!(path.exists(), "a dropped listener leaves its path");
        drop(StatusSocket::serve(&path, || json!({})).expect("the stale one is replaced"));
        std::fs::write(&path, "precious").expect("write");
        assert!(matches!(
            StatusSocket::serve(&path, || json!({})),
            Err(StatusError::NotASocket { .. })
        ));
        assert_eq!(std::fs::read(&path).expect("read"), b"precious");
    }

    #[test]
    fn an_answer_that_is_no_status_is_an_error_that_says_so() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("status");
        let listener = UnixListener::bind(&path).expect("bind");
        let server = std::thread::spawn(move || {
            let (mut client, _) = listener.accept().expect("accept");
            std::io::Write::write_all(&mut client, b"HTTP/1.1 400\r\n").expect("write");
        });
        assert!(matches!(
            query(&path, PATIENCE),
            Err(StatusError::BadAnswer { .. })
        ));
        server.join().expect("join");
    }
}
