//! Boots a machine by itself until it says on its console that it is ready, and saves it.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use lockstep_perf::stamp;

use super::alone::{Alone, AloneEnd};
use super::control::Control;
use super::disk_desk::Part;
use super::idle::Idle;
use super::live::{Live, LiveParts};
use super::metronome::Metronome;
use super::status::Standing;
use super::{RunError, RunOptions, VmSpec};
use crate::ft::log::{Sequence, Unlogged};
use crate::ft::vm::{Position, VirtualTime, Vm};
use crate::host::snapshot_file::SnapshotFile;

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SnapshotReport {
    /// Saved.
    Saved {
        /// The snapshot's digest.
        digest: u128,
        /// Where the machine stands in it.
        position: Position,
        /// Virtual time there, nanoseconds.
        clock: VirtualTime,
    },
    /// The guest powered off before it said the words.
    PoweredOff,
    /// [`Control::stop`], before the guest said them.
    Stopped,
}

/// A console that stops the run once `marker` has gone through it.
pub struct MarkedConsole {
    console: Box<dyn Write + Send>,
    marker: Vec<u8>,
    /// The end of what was written, as long as the marker.
    tail: Vec<u8>,
    control: Control,
    seen: std::sync::Arc<std::sync::atomic::AtomicBool>,
}

impl MarkedConsole {
    /// Passes everything on to `console`. The flag is set when `marker` is complete; `control` is
    /// asked to stop then.
    #[must_use]
    pub fn new(console: Box<dyn Write + Send>, marker: &[u8], control: Control) -> Self {
        Self {
            console,
            marker: marker.to_vec(),
            tail: Vec::new(),
            control,
            seen: std::sync::Arc::default(),
        }
    }

    /// Set once the marker has been seen.
    #[must_use]
    pub fn seen(&self) -> std::sync::Arc<std::sync::atomic::AtomicBool> {
        std::sync::Arc::clone(&self.seen)
    }
}

impl Write for MarkedConsole {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.tail.extend_from_slice(bytes);
        let length = self.marker.len().max(1);
        if self.tail.windows(length).any(|part| part == self.marker) {
            // Release: pairs with the Acquire in `snapshot`.
            self.seen.store(true, std::sync::atomic::Ordering::Release);
            self.control.stop();
        }
        let surplus = self.tail.len().saturating_sub(length - 1);
        self.tail.drain(..surplus);
        self.console.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.console.flush()
    }
}

/// Runs `vm`, on the calling thread, until it has said `marker` on its console, and saves it in
/// `path`. Its world should have no network: what arrives before the snapshot nobody will remember.
///
/// # Errors
/// The machine cannot be made, fails, or cannot be saved.
pub fn snapshot(
    vm: &VmSpec,
    mut options: RunOptions,
    marker: &[u8],
    path: &Path,
) -> Result<SnapshotReport, RunError> {
    let machine = vm.build()?;
    vm.check_disks(&options.disks)?;
    let disks: Vec<_> = options.disks.iter().map(|disk| disk.path.clone()).collect();
    let _metronome = Metronome::start(machine.kicker())
        .map_err(RunError::host("starting the thread that kicks the vCPU"))?;
    let (cpu, control) = (options.settings.cpu.clone(), options.control.clone());
    options.status.engine(vm.machine.engine);
    options.status.stand(Standing::Unprotected);
    let mut seen = None;
    options.world.map_console(|console| {
        let console = MarkedConsole::new(console, marker, control.clone());
        seen = Some(console.seen());
        Box::new(console)
    });
    let parts = LiveParts::of(options, &vm.machine, &machine, Part::Alone)?;
    let live = Live::new(machine, parts, stamp::now(), 0);
    let mut alone = Alone {
        live,
        log: Unlogged::after(Sequence::NONE),
        idle: Idle::new(cpu.idle_wait, cpu.spin_us),
        control,
        announcements: VecDeque::new(),
    };
    match alone.run(|_| ())? {
        AloneEnd::PoweredOff => return Ok(SnapshotReport::PoweredOff),
        // Acquire: pairs with the Release in `MarkedConsole::write`.
        AloneEnd::Stopped
            if !seen.is_some_and(|seen| seen.load(std::sync::atomic::Ordering::Acquire)) =>
        {
            return Ok(SnapshotReport::Stopped);
        }
        AloneEnd::Stopped => {}
    }
    alone.settle()?;
    let machine = &mut alone.live.vm;
    let disks: Vec<&Path> = disks.iter().map(PathBuf::as_path).collect();
    let digest = SnapshotFile::write(path, machine, &vm.origin(), &disks)?;
    Ok(SnapshotReport::Saved {
        digest,
        position: machine.position(),
        clock: machine.clock(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_marker_is_seen_across_writes_and_what_is_like_it_is_not() {
        let control = Control::new().unwrap();
        let mut console = MarkedConsole::new(Box::new(io::sink()), b"ready\n", control.clone());
        for part in ["rea", "already", " rea", "dy"] {
            console.write_all(part.as_bytes()).unwrap();
            assert!(!control.stop_asked(), "{part}");
        }
        console.write_all(b"\nmore").unwrap();
        assert!(control.stop_asked());
    }
}
