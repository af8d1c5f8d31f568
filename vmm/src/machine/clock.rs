//! Virtual time: nanoseconds since the VM's start, a function of the position and of what the log
//! said about the clock (ARCHITECTURE.md, "Position and clock").

use serde::{Deserialize, Serialize};

use super::engine::{EngineKind, Position};
use crate::ft::vm::VirtualTime;

/// Nanoseconds in a second.
pub const NANOSECONDS: u64 = 1_000_000_000;

/// `clock(p) = anchor_time + (p - anchor_position) * rate`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VirtualClock {
    anchor_time: VirtualTime,
    anchor_position: Position,
    /// Nanoseconds that pass with one position.
    rate: u64,
}

impl VirtualClock {
    /// Zero at position zero. Time passes with instructions on `soft` (1 ns each), and only by the
    /// log's word on `kvm`, where exits say nothing about how long they took.
    pub fn new(engine: EngineKind) -> Self {
        Self {
            anchor_time: 0,
            anchor_position: 0,
            rate: match engine {
                EngineKind::Soft => 1,
                EngineKind::Kvm => 0,
            },
        }
    }

    /// The same clock from `position` on, where time passes as it does on `engine`.
    pub fn on(&self, engine: EngineKind, position: Position) -> Self {
        Self {
            anchor_time: self.at(position),
            anchor_position: position,
            ..Self::new(engine)
        }
    }

    /// The time at `position`, which is not before the anchor.
    pub fn at(&self, position: Position) -> VirtualTime {
        let steps = position.saturating_sub(self.anchor_position);
        self.anchor_time
            .saturating_add(steps.saturating_mul(self.rate))
    }

    /// Moves the clock at `position` to `time`; a time already past changes nothing. Returns the
    /// time that it is then.
    pub fn advance(&mut self, position: Position, time: VirtualTime) -> VirtualTime {
        let time = time.max(self.at(position));
        self.anchor_time = time;
        self.anchor_position = position;
        time
    }

    /// The first position at which it is `time` or later, unless only the log can bring that about.
    pub fn position_of(&self, time: VirtualTime) -> Option<Position> {
        let ahead = time.saturating_sub(self.anchor_time);
        if ahead == 0 {
            return Some(self.anchor_position);
        }
        let steps = ahead.checked_add(self.rate.checked_sub(1)?)? / self.rate;
        self.anchor_position.checked_add(steps)
    }
}

/// How often an oscillator of `hertz` that began at time 0 has ticked by `time`.
pub fn ticks(time: VirtualTime, hertz: u64) -> u64 {
    (u128::from(time) * u128::from(hertz) / u128::from(NANOSECONDS)) as u64
}

/// The first time at which an oscillator of `hertz` has ticked `tick` times; the end of time if that
/// is later.
pub fn time_of_tick(tick: u64, hertz: u64) -> VirtualTime {
    let time = (u128::from(tick) * u128::from(NANOSECONDS)).div_ceil(u128::from(hertz));
    u64::try_from(time).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn time_passes_with_instructions_on_soft_and_by_the_log_alone_on_kvm() {
        let mut soft = VirtualClock::new(EngineKind::Soft);
        assert_eq!(soft.at(1000), 1000);
        assert_eq!(soft.advance(1000, 5000), 5000);
        assert_eq!(soft.at(1001), 5001);
        let mut kvm = VirtualClock::new(EngineKind::Kvm);
        assert_eq!(kvm.at(1000), 0);
        assert_eq!(kvm.position_of(1), None);
        kvm.advance(1000, 5000);
        assert_eq!(kvm.at(2000), 5000);
        assert_eq!(kvm.position_of(5000), Some(1000));
    }

    #[test]
    fn the_clock_never_goes_backwards() {
        let mut clock = VirtualClock::new(EngineKind::Soft);
        assert_eq!(clock.advance(100, 7), 100);
        assert_eq!(clock.at(100), 100);
    }

    proptest! {
        #[test]
        fn position_of_is_the_first_at_which_the_time_is_reached(
            anchor in 0u64..1 << 40, time in 0u64..1 << 40, jump in 0u64..1 << 40,
        ) {
            let mut clock = VirtualClock::new(EngineKind::Soft);
            clock.advance(anchor, jump);
            let position = clock.position_of(time).unwrap();
            prop_assert!(clock.at(position) >= time);
            prop_assert!(position == anchor || clock.at(position - 1) < time);
        }

        #[test]
        fn time_of_tick_is_the_first_at_which_the_tick_has_happened(
            tick in 0u64..1 << 44, hertz in 1u64..4_000_000,
        ) {
            let time = time_of_tick(tick, hertz);
            prop_assume!(time < u64::MAX);
            prop_assert!(ticks(time, hertz) >= tick);
            prop_assert!(time == 0 || ticks(time - 1, hertz) < tick);
        }
    }
}
