//! What a primary that is stopped in the middle of a turn may still release.

use std::os::fd::BorrowedFd;
use std::thread;
use std::time::Duration;

use lockstep_logchan::protocol::sender::Stall;
use lockstep_logchan::transport::{Acked, ChannelCounters};

use super::*;
use crate::ft::arbiter::{Claim, Party};
use crate::ft::testing::{Asking, log};
use crate::host::arbiter_file::ArbiterFile;
use crate::machine::MachineConfig;
use crate::run::World;
use crate::settings::Settings;

const TICK: Duration = Duration::from_millis(20);
/// Longer than a turn may take: what SIGSTOP does to a thread.
const STOP: Duration = Duration::from_millis(100);
/// Nobody is suspected in these tests.
const NEVER: u64 = u64::MAX / 2;

/// What the backup has acknowledged after a flush, given the flush's number and the last entry.
type Acknowledges = Box<dyn FnMut(u32, Sequence) -> Sequence + Send>;

/// A channel whose backup does what the test says.
struct Told {
    acknowledges: Acknowledges,
    flushes: u32,
    acked: Sequence,
    control: Control,
}

impl PrimaryChannel for Told {
    fn flush(&mut self, log: &EntryWriter, _: u64) -> Result<(), ChannelError> {
        self.flushes += 1;
        self.acked = (self.acknowledges)(self.flushes, log.last_sequence());
        Ok(())
    }
    fn poll(&mut self, _: &EntryWriter, _: u64) -> Result<Acked, ChannelError> {
        Ok(Acked {
            acked: self.acked,
            ..Acked::default()
        })
    }
    fn wake_backup(&mut self, _: &EntryWriter) {}
    fn wait(&mut self, _: &EntryWriter, _: usize, _: Duration) -> Result<(), ChannelError> {
        Ok(())
    }
    fn wait_fd(&mut self) -> BorrowedFd<'_> {
        self.control.doorbell().fd()
    }
    fn stalled(&self, _: u64) -> Option<Stall> {
        None
    }
    fn counters(&self) -> ChannelCounters {
        ChannelCounters::default()
    }
}

/// Runs a primary whose guest says one thing and then waits, until the operator's handle, which
/// `acknowledges` is made with, stops it. Returns how many outputs were held, and how many released.
fn run(acknowledges: impl FnOnce(Control) -> Acknowledges) -> (u64, u64) {
    let mut vm = Asking::new();
    vm.speak();
    let directory = tempfile::tempdir().expect("a directory");
    let arbiter = ArbiterFile::new(directory.path(), "web").expect("a legal name");
    let claim = Claim {
        generation: 1,
        party: Party::new(Role::Primary, 1),
    };
    let control = Control::new().expect("a handle");
    let status = Arc::new(Status::default());
    let counters = Arc::clone(&status.counters);
    let settings = Settings::default();
    let options = RunOptions {
        settings: settings.clone(),
        world: World::new(None, Box::new(std::io::sink())),
        disks: Vec::new(),
        overwrite_disks: false,
        control: control.clone(),
        status: Arc::clone(&status),
        warm_up: Duration::ZERO,
    };
    let parts = LiveParts::of(options, &MachineConfig::default(), &vm, Part::Primary);
    let now = stamp::now();
    let detector = DetectorSettings {
        silence: NEVER,
        stall: NEVER,
    };
    let arbitration = ArbitrationSettings::from(&settings.failure);
    let (log, _reader) = log(1 << 16);
    let protected = Protected {
        live: Live::new(vm, parts.expect("no disk to open"), now, 0),
        log,
        channel: Some(Box::new(Told {
            acknowledges: acknowledges(control.clone()),
            flushes: 0,
            acked: Sequence::NONE,
            control: control.clone(),
        })),
        role: Primary::new(claim.clone(), detector, arbitration, now),
        heard: now,
        acked_at: 0,
        flushed_outputs: 0,
        flushed_at: 0,
        replayed: Sequence::NONE,
        replayed_position: 0,
        woken: Sequence::NONE,
        woken_at: 0,
        looked_at: now,
        stood_still: false,
        pulse: None,
        arbiter: ArbiterDesk::open(&arbiter, &claim, control.doorbell().clone()).expect("a desk"),
        idle: Idle::new(settings.cpu.idle_wait, 0),
        throttle: Throttle::from_settings(&settings.replay),
        control,
        counters: Arc::clone(&counters),
        status,
        tick_every: u64::try_from(TICK.as_nanos()).expect("short"),
    };
    let report = protected.run().expect("an orderly end");
    assert_eq!(report.end, PrimaryEnd::Stopped);
    let vcpu = &counters.vcpu;
    (vcpu.outputs_held.get(), vcpu.outputs_released.get())
}

#[test]
fn an_acknowledgement_found_after_a_stop_in_the_middle_of_a_send_releases_nothing() {
    let released = run(|control| {
        let mut acked = Sequence::NONE;
        Box::new(move |flush, last| {
            match flush {
                1 => {
                    thread::sleep(STOP);
                    acked = last;
                }
                5 => control.stop(),
                _ => {}
            }
            acked
        })
    });
    assert_eq!(released, (1, 0));
}

#[test]
fn what_a_stop_held_back_leaves_when_an_entry_written_after_it_is_acknowledged() {
    let released = run(|control| {
        let mut acked = Sequence::NONE;
        Box::new(move |flush, last| {
            match flush {
                1 => thread::sleep(STOP),
                5 => control.stop(),
                _ => {}
            }
            // The log's end is not acknowledged: it is not by that that the output leaves.
            if flush < 5 {
                acked = last;
            }
            acked
        })
    });
    assert_eq!(released, (1, 1));
}

#[test]
fn a_stop_while_the_log_is_closed_releases_nothing_unless_the_backup_has_the_end() {
    for (has_the_end, expected) in [(false, (1, 0)), (true, (1, 1))] {
        let released = run(|control| {
            let mut acked = Sequence::NONE;
            Box::new(move |flush, last| {
                match flush {
                    1 => control.stop(),
                    2 => {
                        thread::sleep(STOP);
                        // The end is the last entry, the output's is before it.
                        acked = Sequence(last.0 - u64::from(!has_the_end));
                    }
                    _ => {}
                }
                acked
            })
        });
        assert_eq!(released, expected, "has the end: {has_the_end}");
    }
}
