//! A software x86-64 CPU that counts every instruction it retires.
//!
//! [`Cpu::run`] executes exactly as many instructions as asked, so that an event can land at any
//! instruction; it knows no device ([`Bus`] is its door) and no time but its own count. It
//! interprets: guest code is decoded once into blocks of compact operations, cached by physical
//! address and linked ([`Cpu`]'s modules say how). The processor is that of [`CpuModel`]: x86-64-v1,
//! in long mode with 64-bit and compatibility-mode code; 32-bit protected mode without paging is there
//! for the few instructions by which a kernel's decompressor changes paging modes.
//!
//! The arithmetic uses the host's own instructions where their result is defined to the last bit, so
//! the host is an x86-64 one.
pub mod bus;
pub mod state;

mod blocks;
mod convert;
mod core;
mod cpu;
mod debug;
mod decode;
mod exec;
mod flags;
mod fpu;
mod interrupts;
mod memory;
mod mmu;
mod model;
mod msr;
mod op;
pub mod opcodes;
mod segments;
mod tlb;

pub use bus::{Bus, MsrFault};
pub use cpu::{Cpu, RunExit};
pub use model::{CpuModel, TSC_DEADLINE};
pub use state::{CpuState, DescriptorTable, Segment, StateError};
