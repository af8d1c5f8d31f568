//! The two vCPU calls that `kvm-ioctls` does not offer (Linux, `Documentation/virt/kvm/api.rst`,
//! 4.16 "KVM_INTERRUPT" and 4.21 "KVM_SET_SIGNAL_MASK").

use std::io;
use std::os::fd::AsRawFd;

use kvm_bindings::{KVMIO, kvm_interrupt};
use kvm_ioctls::VcpuFd;

/// `_IOW(KVMIO, number, size)` (Linux, `include/uapi/asm-generic/ioctl.h`).
const fn write_request(number: u32, size: usize) -> libc::c_ulong {
    (1 << 30 | (size as u32) << 16 | KVMIO << 8 | number) as libc::c_ulong
}

const KVM_INTERRUPT: libc::c_ulong = write_request(0x86, size_of::<kvm_interrupt>());
/// The size in the request is that of `struct kvm_signal_mask` without its flexible array.
const KVM_SET_SIGNAL_MASK: libc::c_ulong = write_request(0x8b, 4);

/// Bytes of the kernel's `sigset_t`, which is not the C library's.
const KERNEL_SIGSET_BYTES: usize = 8;

/// `struct kvm_signal_mask` with its set.
#[repr(C)]
struct SignalMask {
    length: u32,
    signals: [u8; KERNEL_SIGSET_BYTES],
}

/// Queues an external interrupt, to be delivered when the vCPU next runs. Only allowed while
/// `ready_for_interrupt_injection` is set.
///
/// # Errors
/// The host's answer.
pub fn interrupt(vcpu: &VcpuFd, vector: u8) -> io::Result<()> {
    let request = kvm_interrupt {
        irq: u32::from(vector),
    };
    // SAFETY: the descriptor is a vCPU's, which `VcpuFd` keeps open; KVM_INTERRUPT reads one
    // `kvm_interrupt` from the pointer, which outlives the call.
    let result = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_INTERRUPT as _, &raw const request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Sets the thread's signal mask for the time of KVM_RUN to `signals` (bit n-1 is signal n).
///
/// # Errors
/// The host's answer.
pub fn set_signal_mask(vcpu: &VcpuFd, signals: u64) -> io::Result<()> {
    let mask = SignalMask {
        length: KERNEL_SIGSET_BYTES as u32,
        signals: signals.to_le_bytes(),
    };
    // SAFETY: the descriptor is a vCPU's, which `VcpuFd` keeps open; KVM_SET_SIGNAL_MASK reads a
    // length and that many bytes behind it, all of which lie in `mask`, which outlives the call.
    let result =
        unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_SET_SIGNAL_MASK as _, &raw const mask) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_numbers_are_the_kernels() {
        assert_eq!(KVM_INTERRUPT, 0x4004_ae86);
        assert_eq!(KVM_SET_SIGNAL_MASK, 0x4004_ae8b);
        assert_eq!(std::mem::offset_of!(SignalMask, signals), 4);
    }
}
