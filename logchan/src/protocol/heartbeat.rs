//! Heartbeats: datagrams both ways beside the log (paper, 2.3).
//!
//! A heartbeat says that its sender's process runs. That the log flows is watched separately
//! ([`super::sender::Sender::stalled`]).

use std::mem::size_of;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Role, VmId};
use crate::entry::Sequence;

/// Size of a heartbeat datagram.
pub const HEARTBEAT_BYTES: usize = 56;

/// First field behind the CRC.
pub const HEARTBEAT_MAGIC: u32 = u32::from_le_bytes(*b"LSHB");

/// One heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heartbeat {
    /// The VM.
    pub vm: VmId,
    /// Generation of the pairing.
    pub generation: u64,
    /// Who sends it.
    pub role: Role,
    /// Counts the sender's heartbeats of this generation from 1.
    pub counter: u64,
    /// Last entry released (primary) or acknowledged (backup).
    pub sequence: Sequence,
}

/// [`Heartbeat`] on the wire, little-endian.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Wire {
    /// CRC32C of the bytes behind it.
    crc: U32,
    magic: U32,
    vm: [u8; 16],
    generation: U64,
    counter: U64,
    sequence: U64,
    /// 1 primary, 2 backup.
    role: U16,
    reserved: [u8; 6],
}

const _: () = assert!(size_of::<Wire>() == HEARTBEAT_BYTES);

const ROLE_PRIMARY: u16 = 1;
const ROLE_BACKUP: u16 = 2;

/// Why a datagram is not the peer's heartbeat. It is dropped and counted, nothing else.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeartbeatError {
    /// Wrong size.
    #[error("heartbeat of {found} bytes, expected {expected}", expected = HEARTBEAT_BYTES)]
    Size {
        /// Of the datagram.
        found: usize,
    },
    /// Something else.
    #[error("heartbeat field `magic`: found {found:#010x}, expected {expected:#010x}", expected = HEARTBEAT_MAGIC)]
    Magic {
        /// In the datagram.
        found: u32,
    },
    /// Damaged.
    #[error("heartbeat field `crc`: found {found:#010x}, expected {expected:#010x}")]
    Crc {
        /// In the datagram.
        found: u32,
        /// Computed over the bytes.
        expected: u32,
    },
    /// A role that is none.
    #[error(
        "heartbeat field `role`: found {found}, expected {ROLE_PRIMARY} (primary) or {ROLE_BACKUP} (backup)"
    )]
    UnknownRole {
        /// In the datagram.
        found: u16,
    },
    /// Bytes that are to be zero.
    #[error("heartbeat field `reserved`: found {found:02x?}, expected zeros")]
    Reserved {
        /// In the datagram.
        found: [u8; 6],
    },
    /// Of another VM.
    #[error("heartbeat field `vm`: found {found}, expected {expected}: two pairs share an address")]
    Vm {
        /// In the datagram.
        found: VmId,
        /// Ours.
        expected: VmId,
    },
    /// Of another pairing: a peer that does not know yet that it was replaced.
    #[error("heartbeat field `generation`: found {found}, expected {expected}")]
    Generation {
        /// In the datagram.
        found: u64,
        /// Ours.
        expected: u64,
    },
    /// Of our own side.
    #[error("heartbeat field `role`: found {found}, expected {expected}")]
    Role {
        /// In the datagram.
        found: Role,
        /// The peer's.
        expected: Role,
    },
    /// Late or repeated: it proves nothing about now.
    #[error("heartbeat field `counter`: found {found}, expected more than {last}")]
    Old {
        /// In the datagram.
        found: u64,
        /// Highest one heard.
        last: u64,
    },
}

impl Heartbeat {
    /// As it travels.
    #[must_use]
    pub fn encode(&self) -> [u8; HEARTBEAT_BYTES] {
        let mut wire = Wire {
            crc: U32::ZERO,
            magic: U32::new(HEARTBEAT_MAGIC),
            vm: self.vm.0,
            generation: U64::new(self.generation),
            counter: U64::new(self.counter),
            sequence: U64::new(self.sequence.0),
            role: U16::new(match self.role {
                Role::Primary => ROLE_PRIMARY,
                Role::Backup => ROLE_BACKUP,
            }),
            reserved: [0; 6],
        };
        wire.crc = U32::new(crc32c::crc32c(&wire.as_bytes()[4..]));
        let mut bytes = [0; HEARTBEAT_BYTES];
        bytes.copy_from_slice(wire.as_bytes());
        bytes
    }

    /// Reads a datagram.
    ///
    /// # Errors
    /// It is no heartbeat.
    pub fn decode(datagram: &[u8]) -> Result<Self, HeartbeatError> {
        let wire = Wire::ref_from_bytes(datagram).map_err(|_| HeartbeatError::Size {
            found: datagram.len(),
        })?;
        if wire.magic.get() != HEARTBEAT_MAGIC {
            return Err(HeartbeatError::Magic {
                found: wire.magic.get(),
            });
        }
        let (found, expected) = (wire.crc.get(), crc32c::crc32c(&datagram[4..]));
        if found != expected {
            return Err(HeartbeatError::Crc { found, expected });
        }
        if wire.reserved != [0; 6] {
            return Err(HeartbeatError::Reserved {
                found: wire.reserved,
            });
        }
        let role = match wire.role.get() {
            ROLE_PRIMARY => Role::Primary,
            ROLE_BACKUP => Role::Backup,
            found => return Err(HeartbeatError::UnknownRole { found }),
        };
        Ok(Self {
            vm: VmId(wire.vm),
            generation: wire.generation.get(),
            role,
            counter: wire.counter.get(),
            sequence: Sequence(wire.sequence.get()),
        })
    }
}

/// When to send the next heartbeat.
#[derive(Debug, Clone)]
pub struct HeartbeatSchedule {
    vm: VmId,
    generation: u64,
    role: Role,
    interval_ns: u64,
    counter: u64,
    next_at: u64,
}

impl HeartbeatSchedule {
    /// Sends as `role` every `interval_ns`, the first at once.
    #[must_use]
    pub const fn new(vm: VmId, generation: u64, role: Role, interval_ns: u64, now: u64) -> Self {
        Self {
            vm,
            generation,
            role,
            interval_ns,
            counter: 0,
            next_at: now,
        }
    }

    /// When the next one is due.
    #[must_use]
    pub const fn next_at(&self) -> u64 {
        self.next_at
    }

    /// The heartbeat to send now, if one is due. A sender that was late sends one, not all that it
    /// missed.
    pub fn due(&mut self, now: u64, sequence: Sequence) -> Option<Heartbeat> {
        if now < self.next_at {
            return None;
        }
        self.next_at = now.saturating_add(self.interval_ns);
        self.counter += 1;
        let (vm, generation, role, counter) = (self.vm, self.generation, self.role, self.counter);
        Some(Heartbeat {
            vm,
            generation,
            role,
            counter,
            sequence,
        })
    }
}

/// Listens for the peer's heartbeats and notices their absence.
#[derive(Debug, Clone)]
pub struct HeartbeatMonitor {
    vm: VmId,
    generation: u64,
    peer: Role,
    timeout_ns: u64,
    last: Option<Heartbeat>,
    heard_at: u64,
}

/// The peer has not been heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Silence {
    /// Since when, on the driver's clock, nanoseconds.
    pub since: u64,
    /// For how long, nanoseconds.
    pub for_ns: u64,
    /// Counter of the last heartbeat heard; 0 if none was.
    pub last_counter: u64,
}

impl HeartbeatMonitor {
    /// Listens for `peer`, whose first heartbeat has `timeout_ns` from `now` to arrive.
    #[must_use]
    pub const fn new(vm: VmId, generation: u64, peer: Role, timeout_ns: u64, now: u64) -> Self {
        Self {
            vm,
            generation,
            peer,
            timeout_ns,
            last: None,
            heard_at: now,
        }
    }

    /// Takes a datagram.
    ///
    /// # Errors
    /// It is not the peer's newest heartbeat; the monitor is unchanged.
    pub fn hear(&mut self, datagram: &[u8], now: u64) -> Result<Heartbeat, HeartbeatError> {
        let heartbeat = Heartbeat::decode(datagram)?;
        if heartbeat.vm != self.vm {
            return Err(HeartbeatError::Vm {
                found: heartbeat.vm,
                expected: self.vm,
            });
        }
        if heartbeat.generation != self.generation {
            let (found, expected) = (heartbeat.generation, self.generation);
            return Err(HeartbeatError::Generation { found, expected });
        }
        if heartbeat.role != self.peer {
            return Err(HeartbeatError::Role {
                found: heartbeat.role,
                expected: self.peer,
            });
        }
        let last = self.last.map_or(0, |last| last.counter);
        if heartbeat.counter <= last {
            return Err(HeartbeatError::Old {
                found: heartbeat.counter,
                last,
            });
        }
        self.last = Some(heartbeat);
        self.heard_at = now;
        Ok(heartbeat)
    }

    /// The last heartbeat heard.
    #[must_use]
    pub const fn last(&self) -> Option<&Heartbeat> {
        self.last.as_ref()
    }

    /// When the peer will be taken for dead if nothing is heard before.
    #[must_use]
    pub const fn deadline(&self) -> u64 {
        self.heard_at.saturating_add(self.timeout_ns)
    }

    /// The peer's silence, if it has lasted for the time limit.
    #[must_use]
    pub fn silent(&self, now: u64) -> Option<Silence> {
        (now >= self.deadline()).then(|| Silence {
            since: self.heard_at,
            for_ns: now - self.heard_at,
            last_counter: self.last.map_or(0, |last| last.counter),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const VM: VmId = VmId([7; 16]);

    fn beat(counter: u64) -> Heartbeat {
        Heartbeat {
            vm: VM,
            generation: 3,
            role: Role::Primary,
            counter,
            sequence: Sequence(9),
        }
    }

    fn monitor() -> HeartbeatMonitor {
        HeartbeatMonitor::new(VM, 3, Role::Primary, 100, 0)
    }

    #[test]
    fn a_peer_is_silent_after_the_timeout_and_not_before() {
        let mut monitor = monitor();
        assert_eq!(monitor.hear(&beat(1).encode(), 50), Ok(beat(1)));
        assert_eq!(monitor.silent(149), None);
        let silence = Silence {
            since: 50,
            for_ns: 100,
            last_counter: 1,
        };
        assert_eq!(monitor.silent(150), Some(silence));
    }

    #[test]
    fn a_repeated_heartbeat_does_not_keep_a_dead_peer_alive() {
        let mut monitor = monitor();
        let datagram = beat(5).encode();
        assert!(monitor.hear(&datagram, 10).is_ok());
        let old = HeartbeatError::Old { found: 5, last: 5 };
        assert_eq!(monitor.hear(&datagram, 90), Err(old));
        assert!(monitor.silent(110).is_some());
    }

    #[test]
    fn another_vm_generation_or_role_is_named_and_does_not_count() {
        let mut monitor = monitor();
        let vm = Heartbeat {
            vm: VmId([8; 16]),
            ..beat(1)
        };
        assert!(matches!(
            monitor.hear(&vm.encode(), 1),
            Err(HeartbeatError::Vm { .. })
        ));
        let generation = Heartbeat {
            generation: 2,
            ..beat(1)
        };
        let error = HeartbeatError::Generation {
            found: 2,
            expected: 3,
        };
        assert_eq!(monitor.hear(&generation.encode(), 1), Err(error));
        let role = Heartbeat {
            role: Role::Backup,
            ..beat(1)
        };
        assert!(matches!(
            monitor.hear(&role.encode(), 1),
            Err(HeartbeatError::Role { .. })
        ));
        assert_eq!(monitor.deadline(), 100);
    }

    #[test]
    fn a_late_sender_sends_one_heartbeat_not_all_it_missed() {
        let mut schedule = HeartbeatSchedule::new(VM, 3, Role::Primary, 10, 0);
        assert_eq!(schedule.due(0, Sequence(9)), Some(beat(1)));
        assert_eq!(schedule.due(9, Sequence(9)), None);
        assert_eq!(schedule.due(95, Sequence(9)), Some(beat(2)));
        assert_eq!(schedule.due(96, Sequence(9)), None);
        assert_eq!(schedule.next_at(), 105);
    }

    proptest! {
        #[test]
        fn any_datagram_is_heartbeat_or_error(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = monitor().hear(&bytes, 1);
        }

        #[test]
        fn one_changed_bit_is_always_noticed(counter in 1_u64.., bit in 0..HEARTBEAT_BYTES * 8) {
            let mut bytes = beat(counter).encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(monitor().hear(&bytes, 1).is_err());
        }
    }
}
