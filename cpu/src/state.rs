//! Architectural state, the same for every engine (Intel SDM vol. 3A ch. 2, vol. 1 ch. 3).

use serde::{Deserialize, Serialize};

/// A segment register with its hidden part (SDM vol. 3A 3.4.3).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Visible selector.
    pub selector: u16,
    /// Base address.
    pub base: u64,
    /// Limit in bytes, granularity applied.
    pub limit: u32,
    /// Access rights in the layout of a descriptor's bits 40..56 (type, S, DPL, P, AVL, L, D/B, G):
    /// bit 0..4 type, 4 S, 5..7 DPL, 7 P, 12 AVL, 13 L, 14 D/B, 15 G, 16 unusable.
    pub attributes: u32,
}

/// GDTR or IDTR.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescriptorTable {
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u16,
}

/// Everything architectural that one virtual CPU holds. Guest memory is not part of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuState {
    /// RAX RCX RDX RBX RSP RBP RSI RDI R8..R15.
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags; bit 1 is always set.
    pub rflags: u64,
    /// ES CS SS DS FS GS.
    pub segments: [Segment; 6],
    /// Local descriptor table register.
    pub ldtr: Segment,
    /// Task register.
    pub tr: Segment,
    /// Global descriptor table register.
    pub gdtr: DescriptorTable,
    /// Interrupt descriptor table register.
    pub idtr: DescriptorTable,
    /// Control register 0.
    pub cr0: u64,
    /// Page-fault linear address.
    pub cr2: u64,
    /// Page-table base.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: u64,
    /// Task priority.
    pub cr8: u64,
    /// Extended feature enables (MSR 0xc0000080).
    pub efer: u64,
    /// MSR 0xc0000081.
    pub star: u64,
    /// MSR 0xc0000082.
    pub lstar: u64,
    /// MSR 0xc0000083.
    pub cstar: u64,
    /// MSR 0xc0000084.
    pub sfmask: u64,
    /// MSR 0xc0000102.
    pub kernel_gs_base: u64,
    /// MSR 0x174.
    pub sysenter_cs: u64,
    /// MSR 0x175.
    pub sysenter_esp: u64,
    /// MSR 0x176.
    pub sysenter_eip: u64,
    /// MSR 0x277.
    pub pat: u64,
    /// MSR 0x1b.
    pub apic_base: u64,
    /// DR0..DR3, DR6, DR7.
    pub dr: [u64; 6],
    /// The 512-byte FXSAVE image in its 64-bit form (SDM vol. 1 10.5.1).
    pub fxsave: Vec<u8>,
    /// Waiting in HLT for an interrupt.
    pub halted: bool,
    /// One-instruction hold-off after STI (bit 0) or MOV SS / POP SS (bit 1).
    pub interrupt_shadow: u8,
    /// NMI blocked until the next IRET.
    pub nmi_blocked: bool,
    /// A non-maskable interrupt waits to be delivered.
    pub nmi_pending: bool,
    /// DR6 bits (B0..B3, BS) of a debug trap that the last instruction caused and that is due before the
    /// next one, or behind the interrupt shadow; 0 if none is.
    pub pending_debug: u64,
}

/// A [`CpuState`] that an engine cannot hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// The FXSAVE image has another size.
    #[error("the state's FXSAVE image has {0} bytes, expected 512: the state is damaged")]
    FxsaveLength(usize),
    /// MXCSR has bits that the CPU model does not have.
    #[error(
        "the state's MXCSR is {0:#010x}, expected no bit above 0xffff: it comes from another CPU model"
    )]
    Mxcsr(u32),
    /// Neither long mode nor 32-bit protected mode without paging.
    #[error(
        "the state's mode is CR0={cr0:#x} CR4={cr4:#x} EFER={efer:#x}, expected long mode \
         (CR0.PG, CR4.PAE, EFER.LME and LMA) or protected mode without paging: start the guest at a 64-bit entry"
    )]
    Mode {
        /// Control register 0.
        cr0: u64,
        /// Control register 4.
        cr4: u64,
        /// Extended feature enables.
        efer: u64,
    },
}
