//! One `lockstep` process of a scenario: started in a namespace, asked over its status socket, ended
//! with its parent at the latest, and always reaped.

use lockstep_vmm::host::namespaces::{Namespace, NamespaceError};
use lockstep_vmm::host::status_socket::{self, StatusError};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Time between two looks at a process that is waited for.
const LOOK: Duration = Duration::from_millis(2);

/// How long one answer of a status socket is waited for.
const STATUS_PATIENCE: Duration = Duration::from_secs(2);

/// Bytes of a process's own words that an error repeats.
const LAST_WORDS: usize = 2000;

/// A process of a scenario did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// It could not be started.
    #[error("{name} could not be started: {source}")]
    Start {
        /// Which.
        name: String,
        /// Why not.
        source: io::Error,
    },
    /// The namespace to start it in.
    #[error("{name} could not be placed: {source}")]
    Place {
        /// Which.
        name: String,
        /// Why not.
        source: NamespaceError,
    },
    /// It ended when it should not have.
    #[error("{name} ended by itself, {status}, while waiting for {awaited}; it said:\n{said}")]
    Ended {
        /// Which.
        name: String,
        /// How.
        status: ExitStatus,
        /// What was waited for.
        awaited: String,
        /// The end of its standard error.
        said: String,
    },
    /// It did not come to where it should be.
    #[error(
        "{name} has not come to {awaited} within {} s; its status: {last}; it said:\n{said}",
        patience.as_secs()
    )]
    Late {
        /// Which.
        name: String,
        /// What was waited for.
        awaited: String,
        /// For how long.
        patience: Duration,
        /// Its last answer, or why there was none.
        last: String,
        /// The end of its standard error.
        said: String,
    },
    /// The kernel refused to signal it or to wait for it.
    #[error("{name}: {step}: {source}")]
    Control {
        /// Which.
        name: String,
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The end of what somebody said, as much as an error repeats.
pub(super) fn tail(said: &[u8]) -> String {
    let from = said.len().saturating_sub(LAST_WORDS);
    String::from_utf8_lossy(&said[from..]).into_owned()
}

/// A running (or ended, and not yet asked for) process.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    ended: Option<ExitStatus>,
    status_path: PathBuf,
    log_path: PathBuf,
}

impl Process {
    /// Starts `program`, inside `namespace`, with `arguments` and `--status`; its files, called after
    /// `name`, are in `directory`. It dies with the thread that calls this, so call it from one that
    /// lives as long as the scenario.
    ///
    /// # Errors
    /// [`ProcessError::Start`], [`ProcessError::Place`].
    pub fn start<A: AsRef<OsStr>>(
        program: &Path,
        arguments: impl IntoIterator<Item = A>,
        name: &str,
        directory: &Path,
        namespace: &Namespace,
    ) -> Result<Self, ProcessError> {
        let started = |source| ProcessError::Start {
            name: name.to_owned(),
            source,
        };
        let status_path = directory.join(format!("{name}.status"));
        let log_path = directory.join(format!("{name}.log"));
        let log = File::create(&log_path).map_err(started)?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .arg("--status")
            .arg(&status_path)
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(started)?)
            .stderr(log);
        die_with_parent(&mut command);
        namespace
            .place(&mut command)
            .map_err(|source| ProcessError::Place {
                name: name.to_owned(),
                source,
            })?;
        let child = command.spawn().map_err(started)?;
        Ok(Self {
            name: name.to_owned(),
            child,
            ended: None,
            status_path,
            log_path,
        })
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Asks for its status.
    ///
    /// # Errors
    /// It does not answer.
    pub fn status(&self) -> Result<Value, StatusError> {
        status_socket::query(&self.status_path, STATUS_PATIENCE)
    }

    /// Waits until `look` finds something in its status; `awaited` says what, for errors.
    ///
    /// # Errors
    /// It ended, or `patience` did.
    pub fn wait_for<T>(
        &mut self,
        awaited: &str,
        patience: Duration,
        mut look: impl FnMut(&Value) -> Option<T>,
    ) -> Result<T, ProcessError> {
        let deadline = Instant::now() + patience;
        loop {
            let last = match self.status() {
                Ok(status) => match look(&status) {
                    Some(found) => return Ok(found),
                    None => status.to_string(),
                },
                Err(error) => error.to_string(),
            };
            if let Some(status) = self.has_ended()? {
                return Err(ProcessError::Ended {
                    name: self.name.clone(),
                    status,
                    awaited: awaited.to_owned(),
                    said: self.last_words(),
                });
            }
            if Instant::now() >= deadline {
                return Err(self.late(awaited, patience, last));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Waits until it has said `words`.
    ///
    /// # Errors
    /// It ended, or `patience` did.
    pub fn wait_words(&mut self, words: &str, patience: Duration) -> Result<(), ProcessError> {
        let log = self.log_path.clone();
        let said = |_: &Value| {
            let said = std::fs::read(&log).unwrap_or_default();
            let mut windows = said.windows(words.len());
            windows
                .any(|window| window == words.as_bytes())
                .then_some(())
        };
        self.wait_for(&format!("saying {words:?}"), patience, said)
    }

    /// Whether it has ended, and how.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn has_ended(&mut self) -> Result<Option<ExitStatus>, ProcessError> {
        if self.ended.is_none() {
            let tried = self.child.try_wait();
            self.ended = tried.map_err(|source| self.refused("waiting", source))?;
        }
        Ok(self.ended)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// `patience` ended first.
    pub fn wait_end(&mut self, patience: Duration) -> Result<ExitStatus, ProcessError> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.has_ended()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                return Err(self.late("its end", patience, "running".to_owned()));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Sends it a signal; one that has ended takes none.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn signal(&mut self, signal: Signal) -> Result<(), ProcessError> {
        if self.has_ended()?.is_some() {
            return Ok(());
        }
        // Not reaped yet (`has_ended` is the only one who reaps), so the number is still its own.
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).map_err(|errno| self.refused("signalling", errno.into()))
    }

    /// Asks it to end in order, and waits.
    ///
    /// # Errors
    /// It did not end within `patience`.
    pub fn terminate(&mut self, patience: Duration) -> Result<ExitStatus, ProcessError> {
        self.signal(Signal::TERM)?;
        self.wait_end(patience)
    }

    /// The end of what it wrote to its standard error and output.
    #[must_use]
    pub fn last_words(&self) -> String {
        tail(&std::fs::read(&self.log_path).unwrap_or_default())
    }

    fn late(&self, awaited: &str, patience: Duration, last: String) -> ProcessError {
        ProcessError::Late {
            name: self.name.clone(),
            awaited: awaited.to_owned(),
            patience,
            last,
            said: self.last_words(),
        }
    }

    fn refused(&self, step: &'static str, source: io::Error) -> ProcessError {
        ProcessError::Control {
            name: self.name.clone(),
            step,
            source,
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Whatever happened, nothing of a scenario outlives it; one that has ended is not killed.
        if matches!(self.has_ended(), Ok(None)) {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

/// Lets `command`'s process be killed when the thread that starts it ends, however that happens.
pub(super) fn die_with_parent(command: &mut Command) {
    let parent = rustix::process::getpid();
    // SAFETY: the closure runs in the child between fork and exec and makes two system calls, prctl
    // and getppid, which are async-signal-safe and allocate nothing.
    unsafe {
        command.pre_exec(move || {
            rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
            // The parent may have died before the line above: then nobody would tell us.
            if rustix::process::getppid() != Some(parent) {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
}
