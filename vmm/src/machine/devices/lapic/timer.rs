//! The timer of the local APIC (SDM vol. 3A, 10.5.4): one-shot, periodic, or armed with a value of
//! the time-stamp counter.
//!
//! It is a function of virtual time: nothing ticks. The count register's clock runs at 1 GHz before
//! the divider, so that a count divided by one is nanoseconds; the time-stamp counter of the `soft`
//! engine counts nanoseconds as well.

use serde::{Deserialize, Serialize};

use crate::ft::vm::VirtualTime;

/// Shortest period of the periodic mode, nanoseconds. A shorter one comes this seldom instead: a
/// guest cannot have the machine do nothing but interrupt it.
const PERIOD_MINIMUM: u64 = 1_000;

/// Bits 17 and 18 of the timer's entry in the local vector table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Counts down once.
    OneShot,
    /// Counts down again and again.
    Periodic,
    /// Armed by IA32_TSC_DEADLINE.
    TscDeadline,
}

impl Mode {
    /// The mode that a timer entry asks for; the reserved one is one-shot, as on silicon.
    pub fn of(entry: u32) -> Self {
        match entry >> 17 & 3 {
            1 => Self::Periodic,
            2 => Self::TscDeadline,
            _ => Self::OneShot,
        }
    }
}

/// Count, divider and when they come to an end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Timer {
    initial: u32,
    /// The divide configuration register, bits 0, 1 and 3.
    divide: u8,
    /// When the running count began.
    began: VirtualTime,
    /// When it is due next.
    due: Option<VirtualTime>,
    /// IA32_TSC_DEADLINE while armed, else 0.
    tsc_deadline: u64,
}

impl Timer {
    /// When it is due next, if it is armed.
    pub fn due(&self) -> Option<VirtualTime> {
        self.due
    }

    /// Whether it came due by `now`; a periodic one goes on, and expiries that were missed count as
    /// one.
    pub fn take_expiry(&mut self, mode: Mode, now: VirtualTime) -> bool {
        let Some(due) = self.due.filter(|due| *due <= now) else {
            return false;
        };
        self.tsc_deadline = 0;
        self.due = (mode == Mode::Periodic)
            .then(|| {
                let period = self.period();
                due.checked_add(((now - due) / period + 1).checked_mul(period)?)
            })
            .flatten();
        true
    }

    /// Nanoseconds of one count (table in 10.5.4: bits 0, 1 and 3; seven is "by one").
    fn tick(&self) -> u64 {
        match self.divide & 3 | self.divide >> 1 & 4 {
            7 => 1,
            shift => 2 << shift,
        }
    }

    fn count_down(&self) -> u64 {
        u64::from(self.initial) * self.tick()
    }

    fn period(&self) -> u64 {
        self.count_down().max(PERIOD_MINIMUM)
    }

    fn arm(&mut self, mode: Mode, now: VirtualTime) {
        self.began = now;
        let length = match mode {
            Mode::Periodic => self.period(),
            Mode::OneShot | Mode::TscDeadline => self.count_down(),
        };
        self.due = (self.initial != 0 && mode != Mode::TscDeadline)
            .then(|| now.checked_add(length))
            .flatten();
    }

    /// The timer's entry now asks for `mode` instead of `before`. Between counting and the deadline
    /// the timer is disarmed; from periodic to one-shot the running count goes on.
    pub fn mode_changed(&mut self, before: Mode, mode: Mode) {
        if (before == Mode::TscDeadline) != (mode == Mode::TscDeadline) {
            *self = Self {
                divide: self.divide,
                ..Self::default()
            };
        }
    }

    /// Initial count register.
    pub fn initial(&self) -> u32 {
        self.initial
    }

    /// A write of the initial count starts the count; zero stops it. In deadline mode it is ignored.
    pub fn set_initial(&mut self, value: u32, mode: Mode, now: VirtualTime) {
        if mode != Mode::TscDeadline {
            self.initial = value;
            self.arm(mode, now);
        }
    }

    /// Current count register.
    pub fn current(&self, mode: Mode, now: VirtualTime) -> u32 {
        if self.due.is_none() || mode == Mode::TscDeadline {
            return 0;
        }
        let counted = now.saturating_sub(self.began) / self.tick();
        let initial = u64::from(self.initial);
        let left = match mode {
            Mode::Periodic => initial - counted % initial.max(1),
            _ => initial.saturating_sub(counted),
        };
        left as u32
    }

    /// Divide configuration register.
    pub fn divide(&self) -> u32 {
        u32::from(self.divide)
    }

    /// Sets the divider. A running count is taken to start over with it.
    pub fn set_divide(&mut self, value: u32, mode: Mode, now: VirtualTime) {
        self.divide = (value & 0b1011) as u8;
        if mode != Mode::TscDeadline && self.due.is_some() {
            self.arm(mode, now);
        }
    }

    /// IA32_TSC_DEADLINE: zero while not armed.
    pub fn tsc_deadline(&self) -> u64 {
        self.tsc_deadline
    }

    /// Arms the timer for the moment at which the time-stamp counter reaches `value`; zero disarms
    /// it. In the counting modes the write is ignored (10.5.4.1).
    pub fn set_tsc_deadline(&mut self, value: u64, mode: Mode) {
        if mode == Mode::TscDeadline {
            self.tsc_deadline = value;
            self.due = (value != 0).then_some(value);
        }
    }
}
