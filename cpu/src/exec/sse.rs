//! SSE and MMX moves, and the state instructions FXSAVE, FXRSTOR, LDMXCSR, STMXCSR, EMMS.

use crate::core::{CR0_EM, CR0_TS, CR4_OSFXSR, CodeSize, Core, VECTOR_AC, VECTOR_NM};
use crate::exec::packed::IN_MEMORY;
use crate::exec::{address, run_time_address};
use crate::fpu::{Fpu, MXCSR_MASK};
use crate::op::{At, Flow, ok};

const LOW: u128 = u64::MAX as u128;

/// MOVAPS MOVUPS MOVDQA MOVDQU and kin between registers.
pub(crate) fn mov_rr(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.sse());
    c.set_xmm(op.dst, c.xmm(op.src));
    op.next(c)
}

/// Loads 16 bytes; `A`: aligned ones.
pub(crate) fn load<const A: bool, const E: u8>(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.sse());
    let at = ok!(c, op, address::<E>(c, op, 16, false));
    if A {
        ok!(c, op, c.aligned(at));
    }
    let v = ok!(c, op, c.load_128(at, op.seg));
    c.set_xmm(op.dst, v);
    op.next(c)
}

/// Stores 16 bytes; `A`: aligned ones.
pub(crate) fn store<const A: bool, const E: u8>(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.sse());
    let at = ok!(c, op, address::<E>(c, op, 16, true));
    if A {
        ok!(c, op, c.aligned(at));
    }
    ok!(c, op, c.store_128(at, op.seg, c.xmm(op.src)));
    op.next(c)
}

/// MOVSS and MOVSD between registers: the upper part stays. `N` bytes.
pub(crate) fn scalar_rr<const N: u32>(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.sse());
    let mask = (1 << (8 * N)) - 1;
    c.set_xmm(op.dst, c.xmm(op.dst) & !mask | c.xmm(op.src) & mask);
    op.next(c)
}

/// MOVSS, MOVSD, MOVD, MOVQ from memory: the rest becomes zero.
pub(crate) fn scalar_load<const N: usize>(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.sse());
    let at = ok!(c, op, run_time_address(c, op, N, false));
    let v = if N == 4 {
        u128::from(ok!(c, op, c.load::<u32>(at, op.seg)))
    } else {
        u128::from(ok!(c, op, c.load::<u64>(at, op.seg)))
    };
    c.set_xmm(op.dst, v);
    op.next(c)
}

/// Stores the low `N` bytes.
pub(crate) fn scalar_store<const N: usize>(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.sse());
    let at = ok!(c, op, run_time_address(c, op, N, true));
    let v = c.xmm(op.src) as u64;
    ok!(
        c,
        op,
        if N == 4 {
            c.store::<u32>(at, op.seg, v as u32)
        } else {
            c.store::<u64>(at, op.seg, v)
        }
    );
    op.next(c)
}

/// MOVQ between XMM registers.
pub(crate) fn movq_rr(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.sse());
    c.set_xmm(op.dst, c.xmm(op.src) & LOW);
    op.next(c)
}

/// MOVD and MOVQ from a general register; `N` bytes.
pub(crate) fn from_general<const N: usize>(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.sse());
    let v = if N == 4 {
        u128::from(c.reg::<u32>(op.src))
    } else {
        u128::from(c.reg::<u64>(op.src))
    };
    c.set_xmm(op.dst, v);
    op.next(c)
}

/// MOVD and MOVQ to a general register.
pub(crate) fn to_general<const N: usize>(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.sse());
    let v = c.xmm(op.src) as u64;
    if N == 4 {
        c.set_reg(op.dst, v as u32)
    } else {
        c.set_reg(op.dst, v)
    }
    op.next(c)
}

/// MOVLPS MOVLPD (`HIGH` false), MOVHPS MOVHPD from memory.
pub(crate) fn half_load<const HIGH: bool>(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.sse());
    let at = ok!(c, op, run_time_address(c, op, 8, false));
    let v = u128::from(ok!(c, op, c.load::<u64>(at, op.seg)));
    let old = c.xmm(op.dst);
    c.set_xmm(
        op.dst,
        if HIGH {
            old & LOW | v << 64
        } else {
            old & !LOW | v
        },
    );
    op.next(c)
}

/// The same to memory.
pub(crate) fn half_store<const HIGH: bool>(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.sse());
    let at = ok!(c, op, run_time_address(c, op, 8, true));
    let v = c.xmm(op.src) >> if HIGH { 64 } else { 0 };
    ok!(c, op, c.store::<u64>(at, op.seg, v as u64));
    op.next(c)
}

pub(crate) fn movhlps(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.sse());
    c.set_xmm(op.dst, c.xmm(op.dst) & !LOW | c.xmm(op.src) >> 64);
    op.next(c)
}

pub(crate) fn movlhps(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.sse());
    c.set_xmm(op.dst, c.xmm(op.dst) & LOW | c.xmm(op.src) << 64);
    op.next(c)
}

/// MOVNTI: a store of a general register, `N` bytes.
pub(crate) fn movnti<const N: usize>(c: &mut Core, op: At) -> Flow {
    let at = ok!(c, op, run_time_address(c, op, N, true));
    ok!(
        c,
        op,
        if N == 4 {
            c.store::<u32>(at, op.seg, c.reg::<u32>(op.src))
        } else {
            c.store::<u64>(at, op.seg, c.reg::<u64>(op.src))
        }
    );
    op.next(c)
}

/// MOVQ to an MMX register from an MMX register or memory.
pub(crate) fn mmx_load(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.mmx());
    let v = ok!(c, op, c.source_64(op));
    c.enter_mmx();
    c.set_mm(op.dst, v);
    op.next(c)
}

/// MOVQ and MOVNTQ to memory.
pub(crate) fn mmx_store(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.mmx());
    let at = ok!(c, op, run_time_address(c, op, 8, true));
    ok!(c, op, c.store::<u64>(at, op.seg, c.mm(op.src)));
    c.enter_mmx();
    op.next(c)
}

/// MOVD to MMX from a general register or memory; `N` bytes.
pub(crate) fn mmx_from<const N: usize>(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.mmx());
    let v = if op.aux & IN_MEMORY != 0 {
        let at = ok!(c, op, run_time_address(c, op, N, false));
        if N == 4 {
            u64::from(ok!(c, op, c.load::<u32>(at, op.seg)))
        } else {
            ok!(c, op, c.load::<u64>(at, op.seg))
        }
    } else if N == 4 {
        u64::from(c.reg::<u32>(op.src))
    } else {
        c.reg::<u64>(op.src)
    };
    c.enter_mmx();
    c.set_mm(op.dst, v);
    op.next(c)
}

/// MOVD from MMX to a general register or memory.
pub(crate) fn mmx_to<const N: usize>(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.mmx());
    let v = c.mm(op.src);
    if op.aux & IN_MEMORY != 0 {
        let at = ok!(c, op, run_time_address(c, op, N, true));
        ok!(
            c,
            op,
            if N == 4 {
                c.store::<u32>(at, op.seg, v as u32)
            } else {
                c.store::<u64>(at, op.seg, v)
            }
        );
    } else if N == 4 {
        c.set_reg(op.dst, v as u32);
    } else {
        c.set_reg(op.dst, v);
    }
    c.enter_mmx();
    op.next(c)
}

pub(crate) fn movdq2q(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.sse());
    ok!(c, op, c.mmx());
    let v = c.xmm(op.src) as u64;
    c.enter_mmx();
    c.set_mm(op.dst, v);
    op.next(c)
}

pub(crate) fn movq2dq(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.sse());
    ok!(c, op, c.mmx());
    let v = c.mm(op.src);
    c.enter_mmx();
    c.set_xmm(op.dst, v.into());
    op.next(c)
}

/// MASKMOVDQU and MASKMOVQ: bytes whose mask has its top bit set go to \[RDI\].
pub(crate) fn maskmov<const MMX: bool>(c: &mut Core, op: At) -> Flow {
    ok!(c, op, if MMX { c.mmx() } else { c.sse() });
    let (data, mask, n) = if MMX {
        (u128::from(c.mm(op.dst)), u128::from(c.mm(op.src)), 8)
    } else {
        (c.xmm(op.dst), c.xmm(op.src), 16)
    };
    let at = ok!(c, op, run_time_address(c, op, n, true));
    let (data, mask) = (data.to_le_bytes(), mask.to_le_bytes());
    // All pages that will be written are checked before the first byte is; a fault names the operand's
    // first byte there.
    let page = |i: usize| at.wrapping_add(i as u64) & !0xfff;
    let enabled = || (0..n).filter(|&i| mask[i] & 0x80 != 0);
    for first in [0, n - 1].map(page) {
        if enabled().any(|i| page(i) == first) {
            ok!(c, op, c.load_for_write::<u8>(at.max(first), op.seg));
        }
    }
    for i in enabled() {
        ok!(
            c,
            op,
            c.store::<u8>(at.wrapping_add(i as u64), op.seg, data[i])
        );
    }
    if MMX {
        c.enter_mmx();
    }
    op.next(c)
}

pub(crate) fn emms(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.mmx());
    c.enter_mmx();
    c.fpu.tags = 0;
    op.next(c)
}

pub(crate) fn ldmxcsr(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.sse());
    let at = ok!(c, op, run_time_address(c, op, 4, false));
    let v = ok!(c, op, c.load::<u32>(at, op.seg));
    if v & !MXCSR_MASK != 0 {
        c.gp();
        return op.leave(c);
    }
    c.fpu.mxcsr = v;
    op.next(c)
}

pub(crate) fn stmxcsr(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.sse());
    let at = ok!(c, op, run_time_address(c, op, 4, true));
    ok!(c, op, c.store::<u32>(at, op.seg, c.fpu.mxcsr));
    op.next(c)
}

fn state_access(c: &mut Core) -> Result<(), crate::core::Raised> {
    if c.cr0 & CR0_EM != 0 {
        return Err(c.ud());
    }
    if c.cr0 & CR0_TS != 0 {
        return Err(c.raise(VECTOR_NM));
    }
    Ok(())
}

/// #GP(0), or #AC where that is switched on, for an image that is not at a multiple of 16.
fn state_aligned(c: &mut Core, at: u64) -> Result<(), crate::core::Raised> {
    if at & 15 != 0 && c.alignment_checked() {
        return Err(c.raise_code(VECTOR_AC, 0));
    }
    c.aligned(at)
}

/// Bytes that FXSAVE writes and FXRSTOR reads: without CR4.OSFXSR, or with half of the XMM registers outside
/// 64-bit mode, fewer (SDM vol. 1, 10.5.1.2).
fn image_registers(c: &Core) -> usize {
    if c.cr4 & CR4_OSFXSR == 0 {
        0
    } else if c.code_size == CodeSize::Bits64 {
        16
    } else {
        8
    }
}

/// FOP, FIP and FDP in the image: moved only with an x87 exception pending (AMD APM vol. 2, 11.4.4.3).
const POINTERS: std::ops::Range<usize> = 6..24;

/// FXSAVE; `op.aux` is 8 for FXSAVE64.
pub(crate) fn fxsave(c: &mut Core, op: At) -> Flow {
    ok!(c, op, state_access(c));
    let at = ok!(c, op, run_time_address(c, op, 512, true));
    ok!(c, op, state_aligned(c, at));
    let mut image = c.fpu.image();
    if !c.fpu.exception_pending() {
        image[POINTERS].fill(0);
    }
    if op.aux != 8 {
        // 32-bit pointers with selectors, which this CPU keeps as zero.
        image[12..16].fill(0);
        image[20..24].fill(0);
    }
    let end = 160 + 16 * image_registers(c);
    // The reserved end is not written, but must be writable.
    ok!(c, op, c.load_for_write::<u8>(at.wrapping_add(511), op.seg));
    ok!(c, op, c.store_bytes(at, op.seg, &image[..end]));
    op.next(c)
}

pub(crate) fn fxrstor(c: &mut Core, op: At) -> Flow {
    ok!(c, op, state_access(c));
    let at = ok!(c, op, run_time_address(c, op, 512, false));
    ok!(c, op, state_aligned(c, at));
    let mut image = c.fpu.image();
    let end = 160 + 16 * image_registers(c);
    let kept = image;
    ok!(c, op, c.load_bytes(at, op.seg, &mut image));
    image[end..].copy_from_slice(&kept[end..]);
    if op.aux != 8 {
        image[12..16].fill(0);
        image[20..24].fill(0);
    }
    if image[2] & 0x80 == 0 {
        image[POINTERS].copy_from_slice(&kept[POINTERS]);
    }
    match Fpu::from_image(&image) {
        Some(fpu) => c.fpu = fpu,
        None => {
            c.gp();
            return op.leave(c);
        }
    }
    op.next(c)
}
