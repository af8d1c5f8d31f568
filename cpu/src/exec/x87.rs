//! The x87 unit.
//!
//! Basic operations are executed by the host: the guest's registers are loaded whole (FRSTOR), the
//! very instruction runs, and everything is saved again (FNSAVE), so stack faults, condition codes and
//! unmasked exceptions come out as on silicon. The host raises nothing, because between the two only
//! non-waiting instructions run.
//!
//! FIP, FDP and FOP are those of the last instruction that is not a control instruction (SDM vol. 1,
//! 8.1.8), FDP of the last one with a memory operand. FNSTENV and FNSAVE always store them; FXSAVE and
//! FXRSTOR move them only with an exception pending (AMD APM vol. 2, 11.4.4.3), as the CPU model's maker does.

use std::arch::asm;

use crate::core::{CR0_EM, CR0_MP, CR0_TS, Core, Raised, VECTOR_MF, VECTOR_NM, canonical};
use crate::exec::run_time_address;
use crate::fpu::Fpu;
use crate::op::{At, Flow, ok};

/// FNSAVE's image in 32-bit form.
type Image = [u8; 108];
/// Runs one instruction on an image, with RDI pointing to the operand; flags in and out.
type Run = fn(&mut Image, &mut [u8; 16], u16) -> u16;

/// Status word: summary of unmasked exceptions, and busy, which follows it.
const SUMMARY: u16 = 0x8080;

fn run<const A: u8, const B: u8>(image: &mut Image, operand: &mut [u8; 16], flags: u16) -> u16 {
    let out: u16;
    // SAFETY: touches the two buffers, which are as large as any x87 instruction reaches, and the x87
    // state, declared as clobbered and left by FNSAVE as the ABI wants it (initialised, empty). An
    // exception that the guest has unmasked stays pending in the saved image only.
    unsafe {
        asm!("frstor [{image}]", "sahf", ".byte {a}, {b}", "lahf", "fnsave [{image}]",
            a = const A, b = const B, image = in(reg) image.as_mut_ptr(), in("rdi") operand.as_mut_ptr(),
            inout("ax") flags => out,
            out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _,
            out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _, options(nostack));
    }
    out
}

macro_rules! rows {
    ($($a:literal)*; $list:tt) => { [$(rows!(@row $a; $list)),*] };
    (@row $a:literal; [$($b:literal)*]) => { [$(run::<$a, $b> as Run),*] };
}

/// By opcode - 0xd8 and ModRM - 0xc0.
static REGISTER_FORMS: [[Run; 64]; 8] = rows!(0xd8 0xd9 0xda 0xdb 0xdc 0xdd 0xde 0xdf; [
    0xc0 0xc1 0xc2 0xc3 0xc4 0xc5 0xc6 0xc7 0xc8 0xc9 0xca 0xcb 0xcc 0xcd 0xce 0xcf
    0xd0 0xd1 0xd2 0xd3 0xd4 0xd5 0xd6 0xd7 0xd8 0xd9 0xda 0xdb 0xdc 0xdd 0xde 0xdf
    0xe0 0xe1 0xe2 0xe3 0xe4 0xe5 0xe6 0xe7 0xe8 0xe9 0xea 0xeb 0xec 0xed 0xee 0xef
    0xf0 0xf1 0xf2 0xf3 0xf4 0xf5 0xf6 0xf7 0xf8 0xf9 0xfa 0xfb 0xfc 0xfd 0xfe 0xff]);

/// By opcode - 0xd8 and the ModRM's register field; the operand is [RDI].
static MEMORY_FORMS: [[Run; 8]; 8] = rows!(0xd8 0xd9 0xda 0xdb 0xdc 0xdd 0xde 0xdf; [
    0x07 0x0f 0x17 0x1f 0x27 0x2f 0x37 0x3f]);

impl Fpu {
    fn full_tags(&self) -> u16 {
        // FRSTOR and FLDENV look only at "empty or not"; FNSAVE and FNSTENV classify.
        (0..8).fold(0, |t, i| {
            let tag = if self.tags >> i & 1 == 0 {
                3
            } else {
                class(self.st[i])
            };
            t | tag << (2 * i)
        })
    }

    fn set_full_tags(&mut self, tags: u16) {
        self.tags = (0..8).fold(0, |t, i| t | u8::from(tags >> (2 * i) & 3 != 3) << i);
    }

    fn to_image(&self) -> Image {
        let mut image = [0; 108];
        image[0..2].copy_from_slice(&self.control.to_le_bytes());
        image[4..6].copy_from_slice(&self.status.to_le_bytes());
        image[8..10].copy_from_slice(&self.full_tags().to_le_bytes());
        for i in 0..8 {
            let value = self.st[(self.top() + i) & 7].to_le_bytes();
            image[28 + 10 * i..38 + 10 * i].copy_from_slice(&value[..10]);
        }
        image
    }

    fn take_image(&mut self, image: &Image) {
        let word = |at: usize| u16::from_le_bytes([image[at], image[at + 1]]);
        self.control = word(0) & 0x1f7f | 0x40;
        self.status = word(4);
        self.set_full_tags(word(8));
        self.summarize();
        for i in 0..8 {
            let mut value = [0; 16];
            value[..10].copy_from_slice(&image[28 + 10 * i..38 + 10 * i]);
            self.st[(self.top() + i) & 7] = u128::from_le_bytes(value);
        }
    }

    /// Sets the summary from the flags and masks.
    pub(crate) fn summarize(&mut self) {
        self.status &= !SUMMARY;
        if self.status & !self.control & 0x3f != 0 {
            self.status |= SUMMARY;
        }
    }
}

/// Full tag of a register that is not empty: 0 valid, 1 zero, 2 special.
fn class(v: u128) -> u16 {
    let (exponent, mantissa) = ((v >> 64) as u16 & 0x7fff, v as u64);
    match (exponent, mantissa) {
        (0, 0) => 1,
        (0 | 0x7fff, _) => 2,
        (_, m) if m >> 63 == 0 => 2,
        _ => 0,
    }
}

impl Core {
    fn x87(&mut self) -> Result<(), Raised> {
        if self.cr0 & (CR0_EM | CR0_TS) != 0 {
            return Err(self.raise(VECTOR_NM));
        }
        Ok(())
    }

    pub(super) fn x87_waiting(&mut self) -> Result<(), Raised> {
        self.x87()?;
        if self.fpu.exception_pending() {
            return Err(self.raise(VECTOR_MF));
        }
        Ok(())
    }
}

/// What a masked invalid operation gives.
pub(super) const DEFAULT_NAN: u128 = 0xffff << 64 | 0xc000_0000_0000_0000;

/// Runs another register form than the one decoded: opcode and ModRM.
pub(super) fn run_register_form(c: &mut Core, (opcode, modrm): (u8, u8)) {
    let mut image = c.fpu.to_image();
    REGISTER_FORMS[usize::from(opcode & 7)][usize::from(modrm & 0x3f)](&mut image, &mut [0; 16], 0);
    c.fpu.take_image(&image);
}

impl Core {
    /// Notes FIP and FOP of a register form that is about to execute.
    #[inline(always)]
    pub(super) fn note_x87(&mut self, op: At) {
        self.fpu.ip = self.rip().wrapping_add(u64::from(op.offset));
        self.fpu.opcode = u16::from(op.src & 7) << 8 | u16::from(op.dst) | 0xc0;
    }

    /// Notes FIP, FOP and FDP of a memory form, whose ModRM is in `op.imm`.
    fn note_memory(&mut self, op: At) {
        self.note_x87(op);
        self.fpu.opcode = u16::from(op.src & 7) << 8 | op.imm as u16;
        self.fpu.dp = crate::exec::offset(self, op);
    }
}

/// A register form; opcode in `op.src`, ModRM in `op.dst`.
pub(crate) fn register(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.x87_waiting());
    c.note_x87(op);
    let mut image = c.fpu.to_image();
    let f = REGISTER_FORMS[usize::from(op.src & 7)][usize::from(op.dst & 0x3f)];
    let flags = f(&mut image, &mut [0; 16], c.flags);
    c.fpu.take_image(&image);
    if op.aux != 0 {
        // FCOMI and kin: ZF, PF, CF, the others zero.
        c.flags = flags & (crate::flags::ZF | crate::flags::PF | crate::flags::CF);
    }
    op.next(c)
}

/// A load or arithmetic with `op.aux` bytes of memory; opcode in `op.src`, register field in `op.dst`.
pub(crate) fn load(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.x87_waiting());
    let n = usize::from(op.aux);
    let at = ok!(c, op, run_time_address(c, op, n, false));
    let mut operand = [0; 16];
    ok!(c, op, c.load_operand(at, op.seg, &mut operand[..n]));
    let mut image = c.fpu.to_image();
    MEMORY_FORMS[usize::from(op.src & 7)][usize::from(op.dst & 7)](&mut image, &mut operand, 0);
    c.fpu.take_image(&image);
    c.note_memory(op);
    op.next(c)
}

/// A store of `op.aux` bytes. Nothing changes when the store faults.
pub(crate) fn store(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.x87_waiting());
    let n = usize::from(op.aux);
    let at = ok!(c, op, run_time_address(c, op, n, true));
    let mut operand = [0; 16];
    let mut image = c.fpu.to_image();
    MEMORY_FORMS[usize::from(op.src & 7)][usize::from(op.dst & 7)](&mut image, &mut operand, 0);
    let mut after = c.fpu.clone();
    after.take_image(&image);
    // An unmasked exception other than precision leaves memory as it was.
    let refused = after.status & !after.control & 0x1f != 0;
    if !refused {
        ok!(c, op, c.store_operand(at, op.seg, &operand[..n]));
    }
    c.fpu = after;
    c.note_memory(op);
    op.next(c)
}

impl Core {
    /// As `load_bytes`, through the caches' sizes where there is one.
    fn load_operand(&mut self, at: u64, segment: u8, bytes: &mut [u8]) -> Result<(), Raised> {
        match bytes.len() {
            4 => bytes.copy_from_slice(&self.load::<u32>(at, segment)?.to_le_bytes()),
            8 => bytes.copy_from_slice(&self.load::<u64>(at, segment)?.to_le_bytes()),
            _ => {
                self.probe_first_part(at, segment, bytes.len(), false)?;
                self.load_bytes(at, segment, bytes)?;
            }
        }
        Ok(())
    }

    fn store_operand(&mut self, at: u64, segment: u8, bytes: &[u8]) -> Result<(), Raised> {
        self.probe_first_part(at, segment, bytes.len(), true)?;
        self.store_bytes(at, segment, bytes)
    }

    /// Ten bytes are accessed as eight and two: where the two are beyond what is canonical, a fault of the
    /// eight comes first.
    fn probe_first_part(
        &mut self,
        at: u64,
        segment: u8,
        length: usize,
        write: bool,
    ) -> Result<(), Raised> {
        if length != 10 || canonical(at.wrapping_add(9)) || !canonical(at.wrapping_add(7)) {
            return Ok(());
        }
        if write {
            self.load_for_write::<u64>(at, segment).map(drop)
        } else {
            self.load::<u64>(at, segment).map(drop)
        }
    }
}

/// FWAIT.
pub(crate) fn wait(c: &mut Core, op: At) -> Flow {
    if c.cr0 & (CR0_MP | CR0_TS) == CR0_MP | CR0_TS {
        c.raise(VECTOR_NM);
        return op.leave(c);
    }
    if c.fpu.exception_pending() {
        c.raise(VECTOR_MF);
        return op.leave(c);
    }
    op.next(c)
}

pub(crate) fn fninit(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.x87());
    initialize(&mut c.fpu);
    op.next(c)
}

fn initialize(fpu: &mut Fpu) {
    fpu.control = 0x37f;
    fpu.status = 0;
    fpu.tags = 0;
    (fpu.opcode, fpu.ip, fpu.dp) = (0, 0, 0);
}

pub(crate) fn fnclex(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.x87());
    c.fpu.status &= 0x7f00;
    op.next(c)
}

pub(crate) fn fnstsw_ax(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.x87());
    c.set_reg(0, c.fpu.status);
    op.next(c)
}

/// FNSTSW (`CONTROL` false) and FNSTCW to memory.
pub(crate) fn store_word<const CONTROL: bool>(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.x87());
    let at = ok!(c, op, run_time_address(c, op, 2, true));
    let v = if CONTROL { c.fpu.control } else { c.fpu.status };
    ok!(c, op, c.store::<u16>(at, op.seg, v));
    op.next(c)
}

pub(crate) fn fldcw(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.x87_waiting());
    let at = ok!(c, op, run_time_address(c, op, 2, false));
    let v = ok!(c, op, c.load::<u16>(at, op.seg));
    c.fpu.control = v & 0x1f7f | 0x40;
    c.fpu.summarize();
    op.next(c)
}

/// Bytes of the environment: 14 in its 16-bit form (`op.aux`), else 28.
fn environment_bytes(op: At) -> usize {
    if op.aux != 0 { 14 } else { 28 }
}

/// In 32-bit form (SDM vol. 1, figure 8-9) or 16-bit form (8-11), with selectors of zero: processors of
/// today keep none.
fn environment(fpu: &Fpu, n: usize) -> [u8; 28] {
    let step = n / 7;
    let mut bytes = [0; 28];
    for (i, word) in [fpu.control, fpu.status, fpu.full_tags()]
        .into_iter()
        .enumerate()
    {
        bytes[i * step..i * step + 2].copy_from_slice(&word.to_le_bytes());
        if step == 4 {
            bytes[i * step + 2..i * step + 4].fill(0xff);
        }
    }
    bytes[3 * step..4 * step].copy_from_slice(&fpu.ip.to_le_bytes()[..step]);
    bytes[5 * step..6 * step].copy_from_slice(&fpu.dp.to_le_bytes()[..step]);
    if step == 4 {
        bytes[18..20].copy_from_slice(&fpu.opcode.to_le_bytes());
        bytes[26..28].fill(0xff);
    }
    bytes
}

fn take_environment(fpu: &mut Fpu, bytes: &[u8], n: usize) {
    let step = n / 7;
    let word = |i: usize| u16::from_le_bytes([bytes[i * step], bytes[i * step + 1]]);
    let pointer = |i: usize| {
        let mut wide = [0; 8];
        wide[..step].copy_from_slice(&bytes[i * step..(i + 1) * step]);
        u64::from_le_bytes(wide)
    };
    fpu.control = word(0) & 0x1f7f | 0x40;
    fpu.status = word(1);
    fpu.set_full_tags(word(2));
    (fpu.ip, fpu.dp) = (pointer(3), pointer(5));
    fpu.opcode = if step == 4 {
        u16::from_le_bytes([bytes[18], bytes[19]]) & 0x7ff
    } else {
        0
    };
    fpu.summarize();
}

/// FNSTENV and (`ALL`) FNSAVE.
pub(crate) fn save<const ALL: bool>(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.x87());
    let n = environment_bytes(op);
    let total = if ALL { n + 80 } else { n };
    let at = ok!(c, op, run_time_address(c, op, total, true));
    let mut bytes = [0; 108];
    bytes[..n].copy_from_slice(&environment(&c.fpu, n)[..n]);
    bytes[n..n + 80].copy_from_slice(&c.fpu.to_image()[28..]);
    ok!(c, op, c.store_bytes(at, op.seg, &bytes[..total]));
    if ALL {
        initialize(&mut c.fpu);
    } else {
        // FNSTENV masks all exceptions.
        c.fpu.control |= 0x3f;
        c.fpu.summarize();
    }
    op.next(c)
}

/// FLDENV and (`ALL`) FRSTOR.
pub(crate) fn restore<const ALL: bool>(c: &mut Core, op: At) -> Flow {
    ok!(c, op, c.x87_waiting());
    let n = environment_bytes(op);
    let total = if ALL { n + 80 } else { n };
    let at = ok!(c, op, run_time_address(c, op, total, false));
    let mut bytes = [0; 108];
    ok!(c, op, c.load_bytes(at, op.seg, &mut bytes[..total]));
    take_environment(&mut c.fpu, &bytes, n);
    if ALL {
        for i in 0..8 {
            let mut value = [0; 16];
            value[..10].copy_from_slice(&bytes[n + 10 * i..n + 10 * i + 10]);
            let register = (c.fpu.top() + i) & 7;
            c.fpu.st[register] = u128::from_le_bytes(value);
        }
    }
    op.next(c)
}
