//! A live machine without a backup: an unprotected run, and either side after it has won at the
//! arbiter. Nothing is logged and nothing waits.

use std::collections::VecDeque;

use lockstep_perf::stamp;
use rustix::event::{PollFd, PollFlags};

use super::RunError;
use super::control::Control;
use super::idle::{self, Idle};
use super::live::{Live, Turn};
use crate::ft::gate::ReleaseLimit;
use crate::ft::log::{Sequence, Unlogged};
use crate::ft::vm::Vm;

/// Longest sleep, nanoseconds: nothing depends on it.
const SLEEP_NS: u64 = 1_000_000_000;

/// Why such a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AloneEnd {
    /// The guest powered itself off.
    PoweredOff,
    /// [`Control::stop`].
    Stopped,
}

pub(super) struct Alone<V: Vm> {
    pub live: Live<V>,
    pub log: Unlogged,
    pub idle: Idle,
    pub control: Control,
    /// Frames to be sent besides the guest's, each when its time has come, in that order.
    pub announcements: VecDeque<(u64, Vec<u8>)>,
}

impl<V: Vm> Alone<V> {
    fn announce(&mut self, now: u64) {
        while let Some((due, frame)) = self.announcements.front()
            && *due <= now
        {
            self.live.world.announce(frame);
            self.announcements.pop_front();
        }
    }

    /// Runs on to the next position, where everything said has been released and, the guest not
    /// executing any more, all disk requests end: a machine can be saved there.
    pub fn settle(&mut self) -> Result<(), RunError> {
        while !self.live.vm.at_position() {
            self.live.turn(&mut self.log)?;
            self.live.release(ReleaseLimit::Everything, 0, u64::MAX);
        }
        self.live.finish_disk_requests(&mut self.log)?;
        self.live.release(ReleaseLimit::Everything, 0, u64::MAX);
        Ok(())
    }

    /// Runs until the guest powers off or the operator stops it. `released` is told when outputs
    /// have left.
    pub fn run(&mut self, mut released: impl FnMut(u64)) -> Result<AloneEnd, RunError> {
        let mut idle_since = None;
        loop {
            let turn = self.live.turn(&mut self.log)?;
            let any = self.live.release(ReleaseLimit::Everything, 0, u64::MAX);
            let started =
                self.live
                    .start_disks(ReleaseLimit::Everything, Sequence::NONE, u64::MAX)?;
            let now = stamp::now();
            if any {
                released(now);
            }
            self.announce(now);
            if self.live.powered_off() {
                return Ok(AloneEnd::PoweredOff);
            }
            if self.control.stop_asked() {
                return Ok(AloneEnd::Stopped);
            }
            if turn == Turn::Progress || any || started {
                if let Some(since) = idle_since.take() {
                    self.idle.ended(since, now);
                }
                continue;
            }
            if now < self.idle.spin_until(*idle_since.get_or_insert(now)) {
                std::hint::spin_loop();
                continue;
            }
            let announce_at = self.announcements.front().map_or(u64::MAX, |(due, _)| *due);
            let wake_at = self.live.wake_at().unwrap_or(u64::MAX);
            let until = wake_at.min(announce_at).min(now + SLEEP_NS);
            let doorbell = PollFd::from_borrowed_fd(self.control.doorbell().fd(), PollFlags::IN);
            let mut sources = [doorbell.clone(), doorbell.clone(), doorbell];
            if let Some(fd) = self.live.world.fd() {
                sources[1] = PollFd::from_borrowed_fd(fd, PollFlags::IN);
            }
            if let Some(fd) = self.live.disks_fd() {
                sources[2] = PollFd::from_borrowed_fd(fd, PollFlags::IN);
            }
            idle::sleep(&mut sources, until);
            // After the sleep and before the next look, so that no ring is lost.
            self.control.doorbell().clear();
        }
    }
}
