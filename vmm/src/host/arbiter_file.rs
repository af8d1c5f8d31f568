//! The test-and-set on shared storage that decides which side of a pair lives (paper, section 2.3).
//!
//! For each VM and generation there is at most one file `<vm>.<generation>.winner` in a directory
//! that both hosts see. Whoever makes it has won; it is never changed and never removed by a side.
//! It is made by `link(2)` of a temporary file that is written and synced before, so it is never
//! seen half-written, and so the operation is atomic on NFS too, where `O_EXCL` has not always been
//! and where the answer to a `link` that worked may be lost: after an error, the temporary file's
//! link count says whether it worked (open(2), under `O_EXCL`).
//!
//! A side writes its temporary file when the pair is made ([`ArbiterFile::candidate`]), so that a failover
//! waits for one sync of a storage that others may keep busy, and not for two. One that a killed process
//! left behind is removed by whoever asked last, or by the next generation's.
//!
//! An answer is [`Outcome::Won`] only after the directory is synced. A storage that does not answer
//! makes the call hang, which no timeout of ours can end: call it from a thread of its own.

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Largest winner's record that is read, bytes: the storage is not trusted to be sane.
const LARGEST_RECORD: u64 = 4096;

/// Longest VM name and party identity, bytes.
pub const LONGEST_NAME: usize = 64;

/// What the file says: who won.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Winner {
    /// The VM.
    pub vm: String,
    /// The generation of the pairing.
    pub generation: u64,
    /// The party that won.
    pub party: String,
    /// When this was written, milliseconds since 1970 on the winner's clock, at the earliest when the pair
    /// was made: when it was won is the file's `ctime`. For people: nothing depends on it.
    #[serde(alias = "won_at_unix_ms")]
    pub written_at_unix_ms: u64,
}

/// What the test-and-set answered.
#[derive(Debug)]
pub enum Outcome {
    /// The caller lives. Asking again as the same party gives the same answer.
    Won,
    /// The other side lives, and the caller must not.
    Lost {
        /// What the other side left.
        by: Winner,
    },
    /// Nothing is known: wait and ask again, never guess.
    OutOfReach {
        /// What failed.
        why: ArbiterError,
    },
}

/// Why the arbiter could not answer.
#[derive(Debug, thiserror::Error)]
pub enum ArbiterError {
    /// A VM's or party's name is not fit for a file name.
    #[error(
        "{what} `{value}` cannot be used at the arbiter: expected 1 to {LONGEST_NAME} of the \
         characters a-z A-Z 0-9 . _ - and no dot at the start"
    )]
    BadName {
        /// Which name.
        what: &'static str,
        /// The name given.
        value: String,
    },
    /// The storage refused or failed.
    #[error(
        "arbiter directory: {step} {} failed ({source}); it must be a directory on storage that \
         both hosts have mounted, writable by this user",
        path.display()
    )]
    Storage {
        /// What was being done.
        step: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the storage said.
        source: io::Error,
    },
    /// A winner's file is there, and is not one that Lockstep wrote.
    #[error(
        "{} is not the record of a winner ({why}); find out who wrote it before removing it",
        path.display()
    )]
    ForeignRecord {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// The arbiter of one VM.
#[derive(Debug, Clone)]
pub struct ArbiterFile {
    directory: PathBuf,
    vm: String,
}

impl ArbiterFile {
    /// The arbiter of `vm`, whose files are in `directory`. Touches nothing yet.
    ///
    /// # Errors
    /// [`ArbiterError::BadName`].
    pub fn new(directory: &Path, vm: &str) -> Result<Self, ArbiterError> {
        check_name("VM name", vm)?;
        Ok(Self {
            directory: directory.to_owned(),
            vm: vm.to_owned(),
        })
    }

    /// `party`, who may ask to be the one that lives after `generation`. Touches nothing yet.
    ///
    /// `party` must be unique to this side's life (a name of the process, not of the role): whoever
    /// asks under a name that has won is taken for the winner, so that an answer lost on the way can
    /// be asked for again.
    ///
    /// # Errors
    /// [`ArbiterError::BadName`].
    pub fn candidate(&self, generation: u64, party: &str) -> Result<Candidate, ArbiterError> {
        check_name("party", party)?;
        Ok(Candidate {
            arbiter: self.clone(),
            generation,
            party: party.to_owned(),
            temporary: None,
        })
    }

    /// Who has won `generation`, if anybody has. For reports; deciding on it would be a race.
    ///
    /// # Errors
    /// The storage failed or holds something foreign.
    pub fn winner(&self, generation: u64) -> Result<Option<Winner>, ArbiterError> {
        self.read_winner(generation)
    }

    /// The first generation that comes after all that have a winner: what a new pairing takes. (One
    /// that ended without a failure has none, and its number may be used again.)
    ///
    /// # Errors
    /// The storage failed.
    pub fn next_generation(&self) -> Result<u64, ArbiterError> {
        let failed = |source| storage("listing", &self.directory, source);
        let mut last: u64 = 0;
        for entry in std::fs::read_dir(&self.directory).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let generation = name
                .to_str()
                .and_then(|name| name.strip_prefix(&self.vm)?.strip_prefix('.'))
                .and_then(|rest| rest.strip_suffix(".winner")?.parse().ok());
            last = last.max(generation.unwrap_or(0));
        }
        Ok(last.saturating_add(1))
    }

    fn winner_path(&self, generation: u64) -> PathBuf {
        self.directory
            .join(format!("{}.{generation}.winner", self.vm))
    }

    /// Removes what candidates of generations before this one left when they were killed. One that still lives
    /// writes another, see [`Candidate::link`]; so does one of a VM whose name looks like such a file's.
    fn remove_leftovers(&self, generation: u64) {
        let Ok(entries) = std::fs::read_dir(&self.directory) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let left_by = name
                .to_str()
                .and_then(|name| name.strip_prefix('.')?.strip_prefix(&self.vm))
                .and_then(|rest| rest.strip_prefix('.')?.split('.').next()?.parse().ok());
            if left_by.is_some_and(|left_by: u64| left_by < generation) {
                // Whoever cannot remove it leaves it: its name is never looked at.
                drop(std::fs::remove_file(entry.path()));
            }
        }
    }

    fn read_winner(&self, generation: u64) -> Result<Option<Winner>, ArbiterError> {
        let path = self.winner_path(generation);
        let foreign = |why: String| ArbiterError::ForeignRecord {
            path: path.clone(),
            why,
        };
        // NONBLOCK: something that is no file, a FIFO for example, must not hold us up.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let mut file = match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP) => return Err(foreign("it is a symbolic link".to_owned())),
            Err(errno) => return Err(storage("opening", &path, errno.into())),
        };
        let mut text = Vec::new();
        Read::by_ref(&mut file)
            .take(LARGEST_RECORD + 1)
            .read_to_end(&mut text)
            .map_err(|source| storage("reading", &path, source))?;
        if text.len() as u64 > LARGEST_RECORD {
            return Err(foreign(format!(
                "longer than the {LARGEST_RECORD} bytes of the longest record"
            )));
        }
        let winner: Winner =
            serde_json::from_slice(&text).map_err(|error| foreign(error.to_string()))?;
        if (winner.vm.as_str(), winner.generation) != (self.vm.as_str(), generation) {
            return Err(foreign(format!(
                "it names VM `{}`, generation {}, expected `{}`, {generation}",
                winner.vm, winner.generation, self.vm
            )));
        }
        Ok(Some(winner))
    }

    fn sync_directory(&self) -> Result<(), ArbiterError> {
        let failed = |source| storage("syncing", &self.directory, source);
        let directory = File::open(&self.directory).map_err(failed)?;
        match directory.sync_all() {
            // What some network file systems say whose directory operations are synchronous.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            result => result.map_err(failed),
        }
    }
}

/// One side of a pair, before the arbiter. Dropping it removes what it prepared.
#[derive(Debug)]
pub struct Candidate {
    arbiter: ArbiterFile,
    generation: u64,
    party: String,
    temporary: Option<Temporary>,
}

impl Candidate {
    /// Who asks.
    #[must_use]
    pub fn party(&self) -> &str {
        &self.party
    }

    /// Does now what can be done before the question is put. Blocks for as long as the storage does.
    ///
    /// # Errors
    /// The storage refuses or fails. The question may be put all the same, and tries again.
    pub fn prepare(&mut self) -> Result<(), ArbiterError> {
        self.arbiter.remove_leftovers(self.generation);
        self.temporary().map(drop)
    }

    /// Asks to be the one that lives. Blocks for as long as the storage does.
    pub fn test_and_set(&mut self) -> Outcome {
        match self.attempt() {
            Ok(winner) if winner.party == self.party => Outcome::Won,
            Ok(by) => Outcome::Lost { by },
            Err(why) => Outcome::OutOfReach { why },
        }
    }

    /// Removes what this side, and a killed other one, prepared: the question is decided, and the winner's
    /// file says how. For after the answer, which nobody should wait longer for.
    pub fn clean_up(&mut self) {
        self.temporary = None;
        self.arbiter
            .remove_leftovers(self.generation.saturating_add(1));
    }

    fn attempt(&mut self) -> Result<Winner, ArbiterError> {
        // The common second question needs no temporary file. A stale "not there" of a caching file
        // system does no harm here: `link` decides.
        let winner = match self.arbiter.read_winner(self.generation)? {
            Some(winner) => winner,
            None => self.link()?,
        };
        if winner.party == self.party {
            // Before the side goes live, its win must outlive the storage's power supply. On a
            // question repeated after a failed sync this is the sync that was missing.
            self.arbiter.sync_directory()?;
        }
        Ok(winner)
    }

    fn temporary(&mut self) -> Result<&Temporary, ArbiterError> {
        let temporary = match self.temporary.take() {
            Some(temporary) => temporary,
            None => {
                let winner = Winner {
                    vm: self.arbiter.vm.clone(),
                    generation: self.generation,
                    party: self.party.clone(),
                    written_at_unix_ms: SystemTime::now()
                        .duration_since(UNIX_EPOCH)
                        .map_or(0, |since| since.as_millis() as u64),
                };
                Temporary::write(&self.arbiter.directory, winner)?
            }
        };
        Ok(self.temporary.insert(temporary))
    }

    /// Makes the winner's file, or finds out who did.
    fn link(&mut self) -> Result<Winner, ArbiterError> {
        let path = self.arbiter.winner_path(self.generation);
        let temporary = self.temporary()?;
        let linked = match rustix::fs::linkat(CWD, &temporary.path, CWD, &path, AtFlags::empty()) {
            Ok(()) => return Ok(temporary.winner.clone()),
            Err(errno) => errno,
        };
        // The answer may be wrong: ask the file itself.
        let links = temporary
            .file
            .metadata()
            .map_err(|source| storage("examining", &temporary.path, source))?
            .nlink();
        if links == 2 {
            return Ok(temporary.winner.clone());
        }
        if linked == Errno::NOENT {
            // Somebody removed it: the next question comes with another.
            self.temporary = None;
        }
        match (linked, self.arbiter.read_winner(self.generation)?) {
            // Also after an error other than EEXIST: a winner that can be read is a winner.
            (_, Some(winner)) => Ok(winner),
            (errno, None) => Err(storage("linking", &path, errno.into())),
        }
    }
}

/// A fully written, synced file with one name, which goes when this is dropped. Its link under the
/// winner's name stays.
#[derive(Debug)]
struct Temporary {
    path: PathBuf,
    file: File,
    winner: Winner,
}

impl Temporary {
    fn write(directory: &Path, winner: Winner) -> Result<Self, ArbiterError> {
        /// Tells this process's temporary files apart; only uniqueness is asked of it.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        // Unique among the parties by the party's name, among its processes by the rest; and a
        // leftover of a crash makes O_EXCL refuse, never a mix.
        let path = directory.join(format!(
            ".{}.{}.{}.{}.{}.{}",
            winner.vm,
            winner.generation,
            winner.party,
            std::process::id(),
            lockstep_perf::stamp::monotonic(),
            NEXT.fetch_add(1, Ordering::Relaxed),
        ));
        let file = File::options()
            .write(true)
            .create_new(true)
            .open(&path)
            .map_err(|source| storage("creating", &path, source))?;
        let text = serde_json::to_vec(&winner).expect("a record of strings and numbers");
        let mut temporary = Self { path, file, winner };
        temporary
            .file
            .write_all(&text)
            .and_then(|()| temporary.file.sync_all())
            .map_err(|source| storage("writing", &temporary.path, source))?;
        Ok(temporary)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // A leftover is harmless: its name is never looked at.
        drop(std::fs::remove_file(&self.path));
    }
}

fn storage(step: &'static str, path: &Path, source: io::Error) -> ArbiterError {
    ArbiterError::Storage {
        step,
        path: path.to_owned(),
        source,
    }
}

fn check_name(what: &'static str, value: &str) -> Result<(), ArbiterError> {
    let legal = (1..=LONGEST_NAME).contains(&value.len())
        && !value.starts_with('.')
        && value
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if legal {
        Ok(())
    } else {
        Err(ArbiterError::BadName {
            what,
            value: value.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{ArbiterError, ArbiterFile, Outcome, Winner};
    use std::process::{Command, Stdio};

    fn arbiter(directory: &tempfile::TempDir) -> ArbiterFile {
        ArbiterFile::new(directory.path(), "web.1").expect("legal names")
    }

    fn ask(arbiter: &ArbiterFile, generation: u64, party: &str) -> Outcome {
        match arbiter.candidate(generation, party) {
            Ok(mut candidate) => candidate.test_and_set(),
            Err(why) => Outcome::OutOfReach { why },
        }
    }

    fn names_in(directory: &tempfile::TempDir) -> Vec<String> {
        std::fs::read_dir(directory.path())
            .expect("readable")
            .map(|entry| {
                entry
                    .expect("an entry")
                    .file_name()
                    .into_string()
                    .expect("text")
            })
            .collect()
    }

    #[test]
    fn a_prepared_candidate_asks_with_what_it_has_written_and_leaves_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let arbiter = arbiter(&directory);
        let candidate = |party| {
            let mut candidate = arbiter.candidate(7, party).expect("legal");
            candidate.prepare().expect("reachable");
            candidate
        };
        let (mut a, mut b) = (candidate("a"), candidate("b"));
        let prepared = names_in(&directory);
        assert_eq!(prepared.len(), 2);
        assert_eq!(
            arbiter.winner(7).expect("reachable"),
            None,
            "prepared is not won"
        );
        assert!(matches!(a.test_and_set(), Outcome::Won));
        assert!(matches!(b.test_and_set(), Outcome::Lost { .. }));
        assert_eq!(names_in(&directory).len(), 3, "nothing was written anew");
        a.clean_up();
        assert_eq!(names_in(&directory), ["web.1.7.winner"]);
        assert!(matches!(b.test_and_set(), Outcome::Lost { .. }));
        assert!(matches!(a.test_and_set(), Outcome::Won), "and again");
        drop((a, b));
        assert_eq!(names_in(&directory), ["web.1.7.winner"]);
    }

    #[test]
    fn what_a_killed_candidate_left_goes_with_the_next_generation_and_harms_no_living_one() {
        let directory = tempfile::tempdir().expect("a directory");
        let arbiter = arbiter(&directory);
        let prepared = |generation| {
            let mut candidate = arbiter.candidate(generation, "a").expect("legal");
            candidate.prepare().expect("reachable");
            candidate
        };
        std::mem::forget(prepared(3));
        let mut stale = prepared(4);
        let mut new = prepared(5);
        assert_eq!(names_in(&directory).len(), 1);
        assert!(matches!(new.test_and_set(), Outcome::Won));
        assert!(
            matches!(stale.test_and_set(), Outcome::OutOfReach { .. }),
            "asked with a file that is gone"
        );
        assert!(
            matches!(stale.test_and_set(), Outcome::Won),
            "and again with another"
        );
    }

    #[test]
    fn the_first_wins_the_second_loses_and_both_are_told_so_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let arbiter = arbiter(&directory);
        assert_eq!(arbiter.winner(7).expect("reachable"), None);
        for _ in 0..2 {
            assert!(matches!(ask(&arbiter, 7, "a"), Outcome::Won));
            match ask(&arbiter, 7, "b") {
                Outcome::Lost { by } => assert_eq!((by.party.as_str(), by.generation), ("a", 7)),
                other => panic!("{other:?}"),
            }
        }
        assert!(
            matches!(ask(&arbiter, 8, "b"), Outcome::Won),
            "generations are decided one by one"
        );
        let names: Vec<_> = std::fs::read_dir(directory.path())
            .expect("readable")
            .map(|entry| entry.expect("an entry").file_name())
            .collect();
        assert_eq!(names.len(), 2, "temporary files are left: {names:?}");
    }

    #[test]
    fn a_new_pairing_takes_a_generation_that_nobody_has_won() {
        let directory = tempfile::tempdir().expect("a directory");
        let arbiter = arbiter(&directory);
        let next = || arbiter.next_generation().expect("reachable");
        assert_eq!(next(), 1);
        ask(&arbiter, 9, "a");
        ask(&arbiter, 3, "b");
        let other = ArbiterFile::new(directory.path(), "web").expect("legal");
        ask(&other, 70, "a");
        for name in [
            "web.1.x.winner",
            "web.1..winner",
            "web.1.12.loser",
            "web.1.-5.winner",
        ] {
            std::fs::write(directory.path().join(name), "").expect("write");
        }
        assert_eq!(next(), 10);
        // `web` followed by `.1.9.winner` is no generation of `web`.
        assert_eq!(other.next_generation().expect("reachable"), 71);
    }

    #[test]
    fn a_record_that_is_not_ours_is_out_of_reach_and_never_a_win() {
        let ours = serde_json::to_string(&Winner {
            vm: "web.1".to_owned(),
            generation: 1,
            party: "a".to_owned(),
            written_at_unix_ms: 0,
        })
        .expect("json");
        let long = "x".repeat(10_000);
        for text in [
            "",
            "{}",
            long.as_str(),
            &ours.replace("web", "db"),
            &ours[1..],
        ] {
            let directory = tempfile::tempdir().expect("a directory");
            std::fs::write(directory.path().join("web.1.1.winner"), text).expect("write");
            let outcome = ask(&arbiter(&directory), 1, "a");
            assert!(
                matches!(
                    outcome,
                    Outcome::OutOfReach {
                        why: ArbiterError::ForeignRecord { .. }
                    }
                ),
                "{text:.20}: {outcome:?}"
            );
        }
    }

    #[test]
    fn storage_that_is_not_there_is_out_of_reach() {
        let directory = tempfile::tempdir().expect("a directory");
        let arbiter = ArbiterFile::new(&directory.path().join("unmounted"), "web").expect("legal");
        match ask(&arbiter, 1, "a") {
            Outcome::OutOfReach { why } => {
                assert!(why.to_string().contains("both hosts"), "{why}");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn names_that_would_leave_the_directory_are_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        for name in ["", "..", ".a", "a/b", "a b", "ä", &"n".repeat(65)] {
            assert!(ArbiterFile::new(directory.path(), name).is_err(), "{name}");
            assert!(matches!(
                ask(&arbiter(&directory), 1, name),
                Outcome::OutOfReach {
                    why: ArbiterError::BadName { .. }
                }
            ));
        }
    }

    const RACER: &str = "LOCKSTEP_TEST_ARBITER_RACER";
    const GENERATIONS: u64 = 20;

    /// One of the processes of the race below: waits for the start, prints the generations it won.
    fn race_as(directory: &str, party: &str) {
        let arbiter = ArbiterFile::new(directory.as_ref(), "raced").expect("legal");
        for generation in 1..=GENERATIONS {
            // All racers meet at each generation's start, a file that the parent makes.
            let start = std::path::Path::new(directory).join(format!("start.{generation}"));
            while !start.exists() {
                std::hint::spin_loop();
            }
            match ask(&arbiter, generation, party) {
                Outcome::Won => println!("WON {generation} {party}"),
                Outcome::Lost { by } => println!("LOST {generation} {}", by.party),
                Outcome::OutOfReach { why } => println!("FAILED {generation} {why}"),
            }
        }
    }

    #[test]
    fn of_many_processes_that_race_exactly_one_wins_each_generation() {
        if let Ok(racer) = std::env::var(RACER) {
            let (directory, party) = racer.split_once('|').expect("directory|party");
            race_as(directory, party);
            return;
        }
        let directory = tempfile::tempdir().expect("a directory");
        let racers: Vec<_> = (0..8)
            .map(|number| {
                let value = format!("{}|racer-{number}", directory.path().display());
                Command::new(std::env::current_exe().expect("our own path"))
                    .args(["--exact", "--nocapture", "--test-threads=1"])
                    .arg(concat!(
                        "host::arbiter_file::tests::",
                        "of_many_processes_that_race_exactly_one_wins_each_generation"
                    ))
                    .env(RACER, value)
                    .stdout(Stdio::piped())
                    .stderr(Stdio::null())
                    .spawn()
                    .expect("spawn")
            })
            .collect();
        for generation in 1..=GENERATIONS {
            std::thread::sleep(std::time::Duration::from_millis(10));
            let start = directory.path().join(format!("start.{generation}"));
            std::fs::write(start, "").expect("write");
        }
        let said: String = racers
            .into_iter()
            .map(|racer| racer.wait_with_output().expect("wait"))
            .map(|output| String::from_utf8(output.stdout).expect("text"))
            .collect();
        for generation in 1..=GENERATIONS {
            let answers = |verb: &str| -> Vec<&str> {
                said.lines()
                    .filter_map(|line| line.split_once(&format!("{verb} {generation} ")))
                    .map(|(_, party)| party)
                    .collect()
            };
            let (won, lost) = (answers("WON"), answers("LOST"));
            assert_eq!((won.len(), lost.len()), (1, 7), "{generation}:\n{said}");
            assert!(lost.iter().all(|by| *by == won[0]), "{generation}:\n{said}");
        }
    }
}
