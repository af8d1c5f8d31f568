//! What KVM_RUN left in the shared `kvm_run` page, decoded.

use kvm_bindings::{
    KVM_EXIT_FAIL_ENTRY, KVM_EXIT_HLT, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR, KVM_EXIT_IO,
    KVM_EXIT_IO_OUT, KVM_EXIT_IRQ_WINDOW_OPEN, KVM_EXIT_MMIO, KVM_EXIT_SET_TPR, KVM_EXIT_SHUTDOWN,
    KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES, kvm_run,
};
use lockstep_cpu::Bus;

use crate::machine::engine::error::{HexBytes, KvmExit};

/// Why KVM_RUN returned 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// A port access, one or several items of a string instruction.
    Port,
    /// An access to memory that is not RAM.
    Memory,
    /// HLT, which is over.
    Halt,
    /// Nothing that concerns this machine: go on.
    Nothing,
    /// Triple fault.
    Shutdown,
    /// The CPU refused to enter the guest, with the hardware's code.
    EntryFailed(u64),
    /// KVM gave up.
    InternalError {
        /// KVM_INTERNAL_ERROR_*.
        suberror: u32,
        /// Instruction bytes or data words.
        bytes: HexBytes,
    },
    /// Another KVM_EXIT_* number.
    Unexpected(u32),
}

/// Decodes the exit.
pub fn decode(run: &kvm_run) -> Exit {
    match run.exit_reason {
        KVM_EXIT_IO => Exit::Port,
        KVM_EXIT_MMIO => Exit::Memory,
        KVM_EXIT_HLT => Exit::Halt,
        // An interrupt window is never asked for, CR8 is in every exported state, and a signal is
        // answered where KVM_RUN returns EINTR.
        KVM_EXIT_IRQ_WINDOW_OPEN | KVM_EXIT_SET_TPR | KVM_EXIT_INTR => Exit::Nothing,
        KVM_EXIT_SHUTDOWN => Exit::Shutdown,
        KVM_EXIT_FAIL_ENTRY => {
            // SAFETY: the exit reason says which member of the union the kernel wrote.
            let failure = unsafe { run.__bindgen_anon_1.fail_entry };
            Exit::EntryFailed(failure.hardware_entry_failure_reason)
        }
        KVM_EXIT_INTERNAL_ERROR => internal_error(run),
        reason => Exit::Unexpected(reason),
    }
}

fn internal_error(run: &kvm_run) -> Exit {
    // SAFETY: the exit reason says which member of the union the kernel wrote; all its bit patterns
    // are valid.
    let internal = unsafe { run.__bindgen_anon_1.internal };
    let words = &internal.data[..(internal.ndata as usize).min(internal.data.len())];
    let has_bytes = internal.suberror == KVM_INTERNAL_ERROR_EMULATION
        && words.first().is_some_and(|flags| {
            flags & u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) != 0
        })
        && words.len() >= 3;
    let mut data = [0; 32];
    let data = if has_bytes {
        // `emulation_failure`: flags, then a length and up to 15 bytes.
        data[..8].copy_from_slice(&words[1].to_le_bytes());
        data[8..16].copy_from_slice(&words[2].to_le_bytes());
        let length = usize::from(data[0]).min(15);
        &data[1..1 + length]
    } else {
        let words = &words[..words.len().min(4)];
        for (slot, word) in data.chunks_exact_mut(8).zip(words) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        &data[..8 * words.len()]
    };
    Exit::InternalError {
        suberror: internal.suberror,
        bytes: HexBytes::new(data),
    }
}

/// Performs a port exit on `bus` at position `at`; what was read is left for KVM in the shared page.
///
/// # Safety
/// `run` must be the start of a vCPU's mapping of the size that KVM_GET_VCPU_MMAP_SIZE gave, and the
/// last KVM_RUN on it must have returned 0 with [`Exit::Port`].
pub unsafe fn perform_port(run: *mut kvm_run, bus: &mut dyn Bus, at: u64) -> KvmExit {
    // SAFETY: by contract `run` points to a `kvm_run` whose union holds `io`.
    let io = unsafe { (*run).__bindgen_anon_1.io };
    let bytes = usize::from(io.size) * io.count as usize;
    // SAFETY: the kernel puts `size * count` bytes of data `data_offset` bytes behind the start of
    // the mapping and within it; nobody else refers to them until the next KVM_RUN.
    let data = unsafe {
        let start = run.cast::<u8>().add(io.data_offset as usize);
        std::slice::from_raw_parts_mut(start, bytes)
    };
    let write = u32::from(io.direction) == KVM_EXIT_IO_OUT;
    for item in data.chunks_exact_mut(usize::from(io.size).max(1)) {
        if write {
            bus.port_write(at, io.port, item);
        } else {
            bus.port_read(at, io.port, item);
        }
    }
    KvmExit::Port {
        port: io.port,
        write,
    }
}

/// Performs a memory exit on `bus` at position `at`; what was read is left for KVM in the shared
/// page. The last exit must have been [`Exit::Memory`].
pub fn perform_memory(run: &mut kvm_run, bus: &mut dyn Bus, at: u64) -> KvmExit {
    // SAFETY: the caller has seen KVM_EXIT_MMIO, so the kernel wrote this member; all its bit
    // patterns are valid.
    let mmio = unsafe { &mut run.__bindgen_anon_1.mmio };
    let length = (mmio.len as usize).min(mmio.data.len());
    let write = mmio.is_write != 0;
    let data = &mut mmio.data[..length];
    if write {
        bus.mmio_write(at, mmio.phys_addr, data);
    } else {
        bus.mmio_read(at, mmio.phys_addr, data);
    }
    KvmExit::Memory {
        address: mmio.phys_addr,
        write,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_emulation_failure_gives_the_instructions_bytes() {
        let mut run = kvm_run {
            exit_reason: KVM_EXIT_INTERNAL_ERROR,
            ..Default::default()
        };
        let mut internal = kvm_bindings::kvm_run__bindgen_ty_1__bindgen_ty_13 {
            suberror: KVM_INTERNAL_ERROR_EMULATION,
            ndata: 4,
            ..Default::default()
        };
        internal.data[0] = 1;
        internal.data[1] = u64::from_le_bytes([3, 0xf3, 0x0f, 0xb8, 9, 9, 9, 9]);
        run.__bindgen_anon_1.internal = internal;
        let Exit::InternalError { suberror, bytes } = decode(&run) else {
            panic!("{:?}", decode(&run));
        };
        assert_eq!((suberror, bytes.to_string().as_str()), (1, "f3 0f b8"));
    }

    #[test]
    fn counts_of_data_words_that_the_kernel_never_gives_are_not_believed() {
        let mut run = kvm_run {
            exit_reason: KVM_EXIT_INTERNAL_ERROR,
            ..Default::default()
        };
        run.__bindgen_anon_1.internal = kvm_bindings::kvm_run__bindgen_ty_1__bindgen_ty_13 {
            suberror: 3,
            ndata: u32::MAX,
            ..Default::default()
        };
        assert!(matches!(
            decode(&run),
            Exit::InternalError { suberror: 3, .. }
        ));
    }
}
