//! Threads on cores of their own.
//!
//! A thread that the scheduler moves, or that shares its core with a spinning one, shows up in the
//! tail of every histogram. [`cores`] says what this process may use, [`current_thread`] pins, and
//! [`place`] does what a setting asks and says what became of it, so that a report can name the
//! placement that it measured and not the one that was wished for.

use core_affinity::CoreId;
use serde::Serialize;

/// Cores numbered from this on cannot be pinned to: the width of the kernel interface's fixed mask
/// (glibc's `CPU_SETSIZE`).
const CORES_MAX: usize = 1024;

/// Why a thread is not pinned.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The kernel does not let this thread run there.
    #[error(
        "core {core} cannot be pinned to ({source}); this thread may use cores {usable:?}: choose one \
         of them, or widen the cpuset of the process"
    )]
    Refused {
        /// The core asked for.
        core: usize,
        /// The cores that this thread may use as things stand.
        usable: Vec<usize>,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// No host has such a core.
    #[error("core {core} cannot be pinned to: cores are numbered 0 to {}", CORES_MAX - 1)]
    OutOfRange {
        /// The core asked for.
        core: usize,
    },
}

/// Where a thread runs, and why there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "placement")]
pub enum Placement {
    /// Pinned as asked.
    Pinned {
        /// The core.
        core: usize,
    },
    /// Nobody asked: the scheduler places the thread.
    Scheduler,
    /// Asked for, and not to be had; the scheduler places the thread.
    Refused {
        /// The core asked for.
        core: usize,
        /// What stood against it.
        why: String,
    },
}

/// The cores that the calling thread may run on, in ascending order; never empty.
///
/// A pinned thread sees only its own core, and so do the threads that it starts: ask before pinning.
#[must_use]
pub fn cores() -> Vec<usize> {
    let mut cores: Vec<usize> = core_affinity::get_core_ids()
        .unwrap_or_default()
        .into_iter()
        .map(|core| core.id)
        .collect();
    if cores.is_empty() {
        // The mask could not be read (a host of more than 1,024 cores): the thread runs somewhere.
        cores.push(rustix::thread::sched_getcpu());
    }
    cores
}

/// Pins the calling thread to `core`. Threads that it starts afterwards inherit the pin.
///
/// # Errors
/// The core does not exist, or the process's cpuset does not hold it.
pub fn current_thread(core: usize) -> Result<(), PinError> {
    if core >= CORES_MAX {
        return Err(PinError::OutOfRange { core });
    }
    if core_affinity::set_for_current(CoreId { id: core }) {
        return Ok(());
    }
    Err(PinError::Refused {
        core,
        // Read first: listing the cores makes a system call of its own.
        source: std::io::Error::last_os_error(),
        usable: cores(),
    })
}

/// Pins the calling thread if `setting` names a core; negative leaves it to the scheduler, as in the
/// `vcpu-core` and `channel-core` settings. A refusal is not fatal, and not silent: it is returned.
#[must_use]
pub fn place(setting: i32) -> Placement {
    let Ok(core) = usize::try_from(setting) else {
        return Placement::Scheduler;
    };
    match current_thread(core) {
        Ok(()) => Placement::Pinned { core },
        Err(error) => Placement::Refused {
            core,
            why: error.to_string(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pinning outlives the test on its thread, so each test pins a thread of its own.
    fn on_a_thread(body: impl FnOnce() + Send + 'static) {
        std::thread::spawn(body).join().expect("the thread ends");
    }

    #[test]
    fn a_pinned_thread_runs_there_and_nowhere_else() {
        on_a_thread(|| {
            for core in cores() {
                current_thread(core).expect("a usable core");
                assert_eq!(rustix::thread::sched_getcpu(), core);
                assert_eq!(cores(), [core]);
            }
        });
    }

    #[test]
    fn a_core_that_the_host_lacks_is_refused_by_name_and_changes_nothing() {
        on_a_thread(|| {
            let before = cores();
            let lacking = CORES_MAX - 1;
            if before.contains(&lacking) {
                crate::not_run::report("pin::a_core_that_the_host_lacks", "it has all of them");
                return;
            }
            match current_thread(lacking) {
                Err(PinError::Refused { core, usable, .. }) => {
                    assert_eq!((core, &usable), (lacking, &before));
                }
                other => panic!("expected Refused, found {other:?}"),
            }
            assert!(matches!(
                current_thread(CORES_MAX),
                Err(PinError::OutOfRange { core: CORES_MAX })
            ));
            assert_eq!(cores(), before);
        });
    }

    #[test]
    fn a_placement_says_what_became_of_the_setting() {
        on_a_thread(|| {
            assert_eq!(place(-1), Placement::Scheduler);
            let core = cores()[0];
            let setting = i32::try_from(core).expect("a small number");
            assert_eq!(place(setting), Placement::Pinned { core });
            assert!(matches!(place(5000), Placement::Refused { core: 5000, .. }));
        });
    }
}
