//! The door between a CPU and everything that is not the CPU or RAM.
//!
//! Both engines (the software CPU of this crate and KVM) speak to the machine through [`Bus`], so
//! that a device cannot tell which of them executes the guest.

/// An MSR that the machine does not have, or a value that it refuses: the CPU raises #GP(0).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsrFault;

/// What a CPU asks of the machine around it.
///
/// `at` is the engine's position when the access is made (on the software CPU: instructions retired
/// before the accessing one). A device derives the time it reports from `at`, never from the host.
///
/// Ordering: accesses arrive in program order, one at a time. A device may raise or lower
/// [`Bus::interrupt_line`] and [`Bus::stop_requested`] only inside an access, or while the engine is
/// not running; the engine looks at both after every access and before it starts.
pub trait Bus {
    /// IN: `data.len()` is 1, 2 or 4. Ports nobody owns read as all ones.
    fn port_read(&mut self, at: u64, port: u16, data: &mut [u8]);
    /// OUT: `data.len()` is 1, 2 or 4. Writes to ports nobody owns are dropped.
    fn port_write(&mut self, at: u64, port: u16, data: &[u8]);
    /// A read of guest-physical memory that is not RAM; 1 to 8 bytes (16 as two of 8).
    fn mmio_read(&mut self, at: u64, address: u64, data: &mut [u8]);
    /// A write to guest-physical memory that is not RAM.
    fn mmio_write(&mut self, at: u64, address: u64, data: &[u8]);
    /// RDMSR of a register that the CPU itself does not keep (for example the local APIC's).
    fn msr_read(&mut self, at: u64, index: u32) -> Result<u64, MsrFault>;
    /// WRMSR of a register that the CPU itself does not keep.
    fn msr_write(&mut self, at: u64, index: u32, value: u64) -> Result<(), MsrFault>;
    /// Whether the interrupt controller asks for a maskable interrupt now.
    fn interrupt_line(&self) -> bool;
    /// The CPU accepts the interrupt (INTA cycle). Called only when [`Bus::interrupt_line`] is true
    /// and the CPU can deliver at this boundary; returns the vector.
    fn acknowledge_interrupt(&mut self) -> u8;
    /// Whether the engine should return at the next instruction boundary (an output is waiting, the
    /// guest powered off, a timer was re-programmed).
    fn stop_requested(&self) -> bool;
}
