//! The instructions that KVM gives up on (KVM_EXIT_INTERNAL_ERROR, suberror 1), executed one at a time by
//! the software CPU.
//!
//! KVM emulates what touches device memory, and its emulator lacks most of x87 and much of SSE. The guest
//! has nothing of that to notice: the state comes out, one instruction runs against the same memory and
//! the same devices, the state goes in. Such an exit counts as one position, whatever the instruction did,
//! so all replicas of a guest must run on a KVM that gives up on the same instructions.

use lockstep_cpu::{Bus, Cpu, CpuModel, CpuState, MsrFault, RunExit, StateError};
use vm_memory::GuestMemoryMmap;

use crate::machine::engine::Position;

/// Why the software CPU could not execute the instruction either.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FallbackError {
    /// The vCPU is in a state that it does not have.
    #[error("the software CPU cannot hold the vCPU's state: {0}")]
    State(#[from] StateError),
    /// It did not retire the instruction.
    #[error("the software CPU ended with {0:?} instead of executing one instruction")]
    Exit(RunExit),
}

/// A software CPU that stands by.
pub struct Fallback {
    cpu: Cpu,
    executed: u64,
}

impl Fallback {
    /// Over the guest's RAM.
    pub fn new(memory: GuestMemoryMmap) -> Self {
        Self {
            cpu: Cpu::new(memory, CpuModel::x86_64_v1()),
            executed: 0,
        }
    }

    /// Instructions executed so far.
    pub fn executed(&self) -> u64 {
        self.executed
    }

    /// Executes the instruction at RIP: the state behind it. One iteration of it, if it repeats. If it
    /// raises an exception, that is delivered and its handler's first instruction executed. No interrupt
    /// is accepted; all accesses are made at position `at`.
    ///
    /// # Errors
    /// The software CPU cannot execute it; nothing is to be taken over then.
    pub fn step(
        &mut self,
        state: &CpuState,
        at: Position,
        bus: &mut dyn Bus,
    ) -> Result<CpuState, FallbackError> {
        // KVM has written guest memory since the last time, code and page tables among it.
        self.cpu.invalidate_memory();
        self.cpu.set_state(state)?;
        self.cpu.set_retired(at);
        match self.cpu.run(1, &mut AtPosition { bus, at }) {
            RunExit::Budget => {
                self.executed += 1;
                Ok(self.cpu.state())
            }
            exit => Err(FallbackError::Exit(exit)),
        }
    }
}

/// The machine's bus, as it is seen from inside one instruction.
struct AtPosition<'a> {
    bus: &'a mut dyn Bus,
    at: Position,
}

impl Bus for AtPosition<'_> {
    fn port_read(&mut self, _at: u64, port: u16, data: &mut [u8]) {
        self.bus.port_read(self.at, port, data);
    }
    fn port_write(&mut self, _at: u64, port: u16, data: &[u8]) {
        self.bus.port_write(self.at, port, data);
    }
    fn mmio_read(&mut self, _at: u64, address: u64, data: &mut [u8]) {
        self.bus.mmio_read(self.at, address, data);
    }
    fn mmio_write(&mut self, _at: u64, address: u64, data: &[u8]) {
        self.bus.mmio_write(self.at, address, data);
    }
    fn msr_read(&mut self, _at: u64, index: u32) -> Result<u64, MsrFault> {
        self.bus.msr_read(self.at, index)
    }
    fn msr_write(&mut self, _at: u64, index: u32, value: u64) -> Result<(), MsrFault> {
        self.bus.msr_write(self.at, index, value)
    }
    fn interrupt_line(&self) -> bool {
        false
    }
    fn acknowledge_interrupt(&mut self) -> u8 {
        unreachable!("the line is never up inside an instruction")
    }
    fn stop_requested(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::boot;
    use crate::machine::memory::GuestRam;
    use vm_memory::{Bytes, GuestAddress};

    const DEVICE: u64 = 0xd000_0000;
    const CODE: u64 = 0x10_0000;

    /// Device memory that remembers writes and reads as its address; an interrupt is always pending.
    #[derive(Default)]
    struct Device {
        writes: Vec<(u64, u64, Vec<u8>)>,
    }

    impl Bus for Device {
        fn port_read(&mut self, _at: u64, _port: u16, data: &mut [u8]) {
            data.fill(0xff);
        }
        fn port_write(&mut self, _at: u64, _port: u16, _data: &[u8]) {}
        fn mmio_read(&mut self, _at: u64, address: u64, data: &mut [u8]) {
            data.copy_from_slice(&address.to_le_bytes()[..data.len()]);
        }
        fn mmio_write(&mut self, at: u64, address: u64, data: &[u8]) {
            self.writes.push((at, address, data.to_vec()));
        }
        fn msr_read(&mut self, _at: u64, _index: u32) -> Result<u64, MsrFault> {
            Err(MsrFault)
        }
        fn msr_write(&mut self, _at: u64, _index: u32, _value: u64) -> Result<(), MsrFault> {
            Err(MsrFault)
        }
        fn interrupt_line(&self) -> bool {
            true
        }
        fn acknowledge_interrupt(&mut self) -> u8 {
            panic!("no interrupt is accepted inside an instruction");
        }
        fn stop_requested(&self) -> bool {
            true
        }
    }

    /// A guest in 64-bit mode, interrupts enabled, about to execute `code`.
    fn guest(code: &[u8]) -> (GuestMemoryMmap, CpuState) {
        let ram = GuestRam::new(16 << 20).expect("16 MiB");
        let mut state = boot::long_mode(&ram, CODE).expect("room for page tables");
        let memory = ram.accessor().clone();
        memory
            .write_slice(code, GuestAddress(CODE))
            .expect("inside RAM");
        state.gpr[3] = DEVICE;
        state.rflags |= crate::machine::RFLAGS_IF;
        (memory, state)
    }

    #[test]
    fn one_instruction_reaches_the_device_and_the_state_goes_on_behind_it() {
        // movaps %xmm0, 0x10(%rbx); then what must not run.
        let (memory, mut state) = guest(&[0x0f, 0x29, 0x43, 0x10, 0x0f, 0x0b]);
        for i in 0..16 {
            state.fxsave[160 + i] = i as u8;
        }
        let mut fallback = Fallback::new(memory);
        let mut device = Device::default();
        let after = fallback.step(&state, 77, &mut device).expect("executes");
        assert_eq!(
            device.writes,
            [
                (77, DEVICE + 0x10, (0..8).collect()),
                (77, DEVICE + 0x18, (8..16).collect())
            ]
        );
        assert_eq!(after.rip, CODE + 4);
        state.rip = after.rip;
        assert_eq!(after, state, "nothing else has changed");
        assert_eq!(fallback.executed(), 1);
    }

    #[test]
    fn memory_that_changed_in_between_is_seen() {
        // fldl (%rbx), twice, the second replaced by fildl.
        let (memory, state) = guest(&[0xdd, 0x03, 0xdd, 0x03]);
        let mut fallback = Fallback::new(memory.clone());
        let first = fallback
            .step(&state, 1, &mut Device::default())
            .expect("executes");
        memory
            .write_slice(&[0xdf, 0x2b], GuestAddress(CODE + 2))
            .expect("inside RAM");
        let second = fallback
            .step(&first, 2, &mut Device::default())
            .expect("executes");
        assert_eq!(second.rip, CODE + 4);
        // FILD m64 of 0xd0000000: 1.101 * 2^31.
        assert_eq!(
            second.fxsave[32..42],
            [0, 0, 0, 0, 0, 0, 0, 0xd0, 0x1e, 0x40]
        );
    }

    #[test]
    fn what_the_software_cpu_cannot_execute_is_an_error() {
        // #UD, without an IDT.
        let (memory, state) = guest(&[0x0f, 0x0b]);
        let mut fallback = Fallback::new(memory);
        let error = fallback
            .step(&state, 1, &mut Device::default())
            .expect_err("a triple fault");
        assert!(
            matches!(
                error,
                FallbackError::Exit(RunExit::TripleFault {
                    rip: CODE,
                    vector: 6
                })
            ),
            "{error}"
        );
        assert_eq!(fallback.executed(), 0);
    }
}
