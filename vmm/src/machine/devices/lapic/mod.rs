//! The local APIC of the only CPU, in xAPIC mode (SDM vol. 3A, chapter 10): registers in memory at
//! 0xfee00000, its timer, and the pin LINT0, to which the 8259A pair is wired.
//!
//! It starts as a PC's firmware leaves it: enabled, LINT0 in ExtINT mode ("virtual wire", MP
//! specification 3.6.2.2), so that a guest that knows the 8259A alone sees nothing of it.
//!
//! Not there: NMI, SMI, INIT and start-up messages (nobody sends them to a machine of one CPU; a
//! guest that sends them to itself gets nothing), LINT0 in another mode than ExtINT, x2APIC mode, and
//! another base address or none (the `soft` engine refuses such a write of IA32_APIC_BASE). CR8 is
//! the CPU's and not wired to the task-priority register: a guest that holds interrupts back by CR8
//! holds back nothing. Linux writes neither.
//!
//! Ordering contract: the CPU looks at [`LocalApic::pending`] and, when it takes the interrupt, calls
//! [`LocalApic::begin_service`] exactly once.

mod timer;

#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

use self::timer::{Mode, Timer};
use crate::ft::vm::VirtualTime;

/// Guest-physical address of the registers.
pub const LAPIC_BASE: u64 = 0xfee0_0000;
/// Bytes that they take.
pub const LAPIC_BYTES: u64 = 4096;
/// The CPU's APIC number.
pub const LAPIC_ID: u8 = 0;
/// IA32_TSC_DEADLINE.
pub const MSR_TSC_DEADLINE: u32 = 0x6e0;

/// Version 0x14, six entries in the local vector table (10.4.8); EOI broadcasts cannot be suppressed.
const VERSION: u32 = 5 << 16 | 0x14;
/// An entry of the local vector table: masked.
const MASKED: u32 = 1 << 16;
/// Delivery mode in bits 8 to 10 of a vector table entry or the interrupt command.
const DELIVERY: u32 = 7 << 8;
const FIXED: u32 = 0;
const LOWEST_PRIORITY: u32 = 1 << 8;
const NMI: u32 = 4 << 8;
const EXT_INT: u32 = 7 << 8;
/// Spurious-interrupt vector register: the APIC is on.
const ENABLED: u32 = 1 << 8;
/// Bits of the spurious-interrupt vector register that exist: vector, enable, focus checking.
const SPURIOUS_BITS: u32 = 0x3ff;
/// Error status: a message with a vector below 16 was sent, or received (10.5.3).
const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
/// Vectors below are the CPU's own.
const FIRST_VECTOR: u8 = 16;

/// Entries of the local vector table, in the order of their registers from 0x320.
const LVT_TIMER: usize = 0;
const LVT_LINT0: usize = 3;
const LVT_LINT1: usize = 4;
const LVT_ERROR: usize = 5;
/// What of an entry can be written: vector and mask; the timer's mode; delivery mode; for the pins
/// polarity and trigger as well.
const LVT_WRITABLE: [u32; 6] = [0x7_00ff, 0x1_07ff, 0x1_07ff, 0x1_a7ff, 0x1_a7ff, 0x1_00ff];

/// 256 bits, one for each vector.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Vectors([u64; 4]);

impl Vectors {
    fn set(&mut self, vector: u8) {
        self.0[usize::from(vector / 64)] |= 1 << (vector % 64);
    }

    fn clear(&mut self, vector: u8) {
        self.0[usize::from(vector / 64)] &= !(1 << (vector % 64));
    }

    fn holds(&self, vector: u8) -> bool {
        self.0[usize::from(vector / 64)] >> (vector % 64) & 1 != 0
    }

    fn highest(&self) -> Option<u8> {
        let word = (0..4).rev().find(|word| self.0[*word] != 0)?;
        Some((word as u32 * 64 + 63 - self.0[word].leading_zeros()) as u8)
    }

    /// One of the eight registers of 32 bits.
    fn register(&self, index: u64) -> u32 {
        (self.0[(index as usize / 2) & 3] >> (index % 2 * 32)) as u32
    }
}

/// What a register write asks of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// The service of a level-triggered interrupt of this vector ended: to be told to the I/O APIC
    /// (10.8.5).
    EndOfInterrupt(u8),
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LocalApic {
    /// In the register's layout: number in bits 24 to 31.
    id: u32,
    task_priority: u8,
    logical_destination: u32,
    destination_format: u32,
    spurious: u32,
    requested: Vectors,
    in_service: Vectors,
    level: Vectors,
    error: u32,
    error_latched: u32,
    command: [u32; 2],
    lvt: [u32; 6],
    timer: Timer,
}

impl Default for LocalApic {
    fn default() -> Self {
        let mut lvt = [MASKED; 6];
        lvt[LVT_LINT0] = EXT_INT;
        lvt[LVT_LINT1] = NMI;
        Self {
            id: u32::from(LAPIC_ID) << 24,
            task_priority: 0,
            logical_destination: 0,
            destination_format: u32::MAX,
            spurious: ENABLED | 0xff,
            requested: Vectors::default(),
            in_service: Vectors::default(),
            level: Vectors::default(),
            error: 0,
            error_latched: 0,
            command: [0; 2],
            lvt,
            timer: Timer::default(),
        }
    }
}

impl LocalApic {
    /// Whether a saved state is one that the APIC can be in.
    pub fn is_sound(&self) -> bool {
        self.lvt
            .iter()
            .zip(LVT_WRITABLE)
            .all(|(entry, writable)| entry & !writable == 0)
            && self.spurious & !SPURIOUS_BITS == 0
    }

    fn is_enabled(&self) -> bool {
        self.spurious & ENABLED != 0
    }

    fn timer_mode(&self) -> Mode {
        Mode::of(self.lvt[LVT_TIMER])
    }

    /// Whether the 8259A pair's request reaches the CPU.
    pub fn passes_ext_int(&self) -> bool {
        self.lvt[LVT_LINT0] & (DELIVERY | MASKED) == EXT_INT
    }

    /// Processor priority (10.8.3.1): what is of its class or below waits.
    fn processor_priority(&self) -> u8 {
        let serving = self.in_service.highest().unwrap_or(0) & 0xf0;
        if self.task_priority & 0xf0 >= serving {
            self.task_priority
        } else {
            serving
        }
    }

    /// The vector that would be delivered now, if any.
    pub fn pending(&self) -> Option<u8> {
        let vector = self.requested.highest()?;
        (self.is_enabled() && vector & 0xf0 > self.processor_priority() & 0xf0).then_some(vector)
    }

    /// The CPU takes what is pending.
    pub fn begin_service(&mut self) -> Option<u8> {
        let vector = self.pending()?;
        self.requested.clear(vector);
        self.in_service.set(vector);
        Some(vector)
    }

    /// Whether a message to `destination` is for this APIC (10.6.2).
    pub fn is_addressed(&self, destination: u8, logical: bool) -> bool {
        if !logical {
            return destination == 0xff || destination == (self.id >> 24) as u8;
        }
        let own = (self.logical_destination >> 24) as u8;
        if self.destination_format >> 28 == 0xf {
            // Flat: a bit for each CPU.
            own & destination != 0
        } else {
            // Cluster: the number of the cluster, and a bit for each CPU in it.
            (destination >> 4 == 0xf || own >> 4 == destination >> 4)
                && own & destination & 0xf != 0
        }
    }

    /// A message arrives: interrupt `vector`, of a pin that is level-triggered or not. Whether it was
    /// accepted.
    pub fn accept(&mut self, vector: u8, level: bool) -> bool {
        if !self.is_enabled() {
            return false;
        }
        if vector < FIRST_VECTOR {
            self.report(RECEIVE_ILLEGAL_VECTOR);
            return false;
        }
        self.requested.set(vector);
        if level {
            self.level.set(vector);
        } else {
            self.level.clear(vector);
        }
        true
    }

    /// An error happened: it is shown at the next write of the error status register, and told at
    /// once if the guest asked for that.
    fn report(&mut self, error: u32) {
        self.error |= error;
        let entry = self.lvt[LVT_ERROR];
        if entry & MASKED == 0 && entry as u8 >= FIRST_VECTOR {
            self.requested.set(entry as u8);
            self.level.clear(entry as u8);
        }
    }

    /// Serves the timer at time `now`.
    pub fn serve_timer(&mut self, now: VirtualTime) {
        if self.timer.take_expiry(self.timer_mode(), now) {
            let entry = self.lvt[LVT_TIMER];
            if entry & MASKED == 0 {
                self.accept(entry as u8, false);
            }
        }
    }

    /// When the timer is due, whether or not it interrupts.
    pub fn deadline(&self) -> Option<VirtualTime> {
        self.timer.due()
    }

    /// When the timer is due, if it interrupts then.
    pub fn next_interrupt(&self) -> Option<VirtualTime> {
        self.timer
            .due()
            .filter(|_| self.is_enabled() && self.lvt[LVT_TIMER] & MASKED == 0)
    }

    /// IA32_TSC_DEADLINE.
    pub fn tsc_deadline(&self) -> u64 {
        self.timer.tsc_deadline()
    }

    /// Writes IA32_TSC_DEADLINE.
    pub fn set_tsc_deadline(&mut self, value: u64) {
        self.timer.set_tsc_deadline(value, self.timer_mode());
    }

    /// Reads the 32-bit register at `offset`, a multiple of 16; registers that do not exist read as
    /// zero.
    pub fn read(&self, offset: u64, now: VirtualTime) -> u32 {
        match offset {
            0x20 => self.id,
            0x30 => VERSION,
            0x80 => u32::from(self.task_priority),
            // Arbitration priority: nobody else competes.
            0x90 | 0xa0 => u32::from(self.processor_priority()),
            0xd0 => self.logical_destination,
            0xe0 => self.destination_format,
            0xf0 => self.spurious,
            0x100..=0x170 => self.in_service.register(offset >> 4 & 7),
            0x180..=0x1f0 => self.level.register(offset >> 4 & 7),
            0x200..=0x270 => self.requested.register(offset >> 4 & 7),
            0x280 => self.error_latched,
            0x300 => self.command[0],
            0x310 => self.command[1],
            0x320..=0x370 => self.lvt[(offset - 0x320) as usize >> 4],
            0x380 => self.timer.initial(),
            0x390 => self.timer.current(self.timer_mode(), now),
            0x3e0 => self.timer.divide(),
            _ => 0,
        }
    }

    /// Writes the 32-bit register at `offset`, a multiple of 16, at time `now`.
    pub fn write(&mut self, offset: u64, value: u32, now: VirtualTime) -> Effect {
        match offset {
            0x20 => self.id = value & 0xff00_0000,
            0x80 => self.task_priority = value as u8,
            0xb0 => return self.end_of_interrupt(),
            0xd0 => self.logical_destination = value & 0xff00_0000,
            0xe0 => self.destination_format = value | 0x0fff_ffff,
            0xf0 => self.set_spurious(value),
            0x280 => self.error_latched = std::mem::take(&mut self.error),
            0x300 => {
                // Bit 12, delivery status, is always idle.
                self.command[0] = value & 0x000c_cfff;
                self.send();
            }
            0x310 => self.command[1] = value & 0xff00_0000,
            0x320..=0x370 => self.set_entry((offset - 0x320) as usize >> 4, value),
            0x380 => {
                let mode = self.timer_mode();
                self.timer.set_initial(value, mode, now);
            }
            0x3e0 => {
                let mode = self.timer_mode();
                self.timer.set_divide(value, mode, now);
            }
            _ => {}
        }
        Effect::None
    }

    fn set_spurious(&mut self, value: u32) {
        self.spurious = value & SPURIOUS_BITS;
        if !self.is_enabled() {
            // 10.4.7.2: all entries are masked, and stay so.
            for entry in &mut self.lvt {
                *entry |= MASKED;
            }
        }
    }

    fn set_entry(&mut self, index: usize, value: u32) {
        let before = self.timer_mode();
        let masked = if self.is_enabled() { 0 } else { MASKED };
        self.lvt[index] = value & LVT_WRITABLE[index] | masked;
        if index == LVT_TIMER {
            self.timer.mode_changed(before, self.timer_mode());
        }
    }

    fn end_of_interrupt(&mut self) -> Effect {
        let Some(vector) = self.in_service.highest() else {
            return Effect::None;
        };
        self.in_service.clear(vector);
        if self.level.holds(vector) {
            Effect::EndOfInterrupt(vector)
        } else {
            Effect::None
        }
    }

    /// The interrupt command register's low half was written (10.6.1). All others that it could
    /// name do not exist.
    fn send(&mut self) {
        let [command, destination] = self.command;
        let to_self = match command >> 18 & 3 {
            0 => self.is_addressed((destination >> 24) as u8, command & 1 << 11 != 0),
            1 | 2 => true,
            _ => false,
        };
        let vector = command as u8;
        match command & DELIVERY {
            FIXED | LOWEST_PRIORITY if vector < FIRST_VECTOR => self.report(SEND_ILLEGAL_VECTOR),
            FIXED | LOWEST_PRIORITY if to_self => {
                self.accept(vector, false);
            }
            _ => {}
        }
    }
}
