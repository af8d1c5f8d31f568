//! Handlers of x87 instructions, by opcode and ModRM.

use iced_x86::{Code, Mnemonic};

use super::Builder;
use crate::exec::transcendental::{self, ATAN, COS, EXP, LOG, LOG_PLUS_1, SIN, SINCOS, TAN};
use crate::exec::x87;
use crate::op::Handler;

type Outcome<'a> = Result<Builder<'a>, Builder<'a>>;

pub(super) fn build(mut b: Builder<'_>) -> Outcome<'_> {
    if b.ins.mnemonic() == Mnemonic::Wait {
        return Ok(b.with(x87::wait));
    }
    let Some(at) = b.raw.iter().position(|&x| !prefix(x)) else {
        return Err(b);
    };
    let (opcode, modrm) = (b.raw[at], b.raw.get(at + 1).copied().unwrap_or(0));
    if !(0xd8..=0xdf).contains(&opcode) {
        return Err(b);
    }
    if modrm >= 0xc0 {
        return register_form(b, opcode, modrm);
    }
    let field = modrm >> 3 & 7;
    // The environment in its 16-bit form; 0x66 beside REX.W asks for nothing.
    let operand_16 = matches!(
        b.ins.code(),
        Code::Fldenv_m14byte | Code::Fnstenv_m14byte | Code::Frstor_m94byte | Code::Fnsave_m94byte
    );
    b.any_memory();
    b.op.src = opcode - 0xd8;
    b.op.dst = field;
    b.op.imm = modrm.into();
    let (handler, bytes): (Handler, u16) = match (opcode, field) {
        (0xd8 | 0xda, _) => (x87::load, 4),
        (0xdc, _) => (x87::load, 8),
        (0xde, _) => (x87::load, 2),
        (0xd9, 0) | (0xdb, 0) => (x87::load, 4),
        (0xd9, 2 | 3) | (0xdb, 2 | 3) => (x87::store, 4),
        (0xd9, 4) => (x87::restore::<false>, operand_16.into()),
        (0xd9, 5) => (x87::fldcw, 2),
        (0xd9, 6) => (x87::save::<false>, operand_16.into()),
        (0xd9, 7) => (x87::store_word::<true>, 2),
        (0xdb, 5) => (x87::load, 10),
        (0xdb, 7) => (x87::store, 10),
        (0xdd, 0) => (x87::load, 8),
        (0xdd, 2 | 3) => (x87::store, 8),
        (0xdd, 4) => (x87::restore::<true>, operand_16.into()),
        (0xdd, 6) => (x87::save::<true>, operand_16.into()),
        (0xdd, 7) => (x87::store_word::<false>, 2),
        (0xdf, 0) => (x87::load, 2),
        (0xdf, 2 | 3) => (x87::store, 2),
        (0xdf, 4) => (x87::load, 10),
        (0xdf, 5) => (x87::load, 8),
        (0xdf, 6) => (x87::store, 10),
        (0xdf, 7) => (x87::store, 8),
        // FISTTP is SSE3's.
        _ => return Err(b),
    };
    b.op.aux = bytes;
    Ok(b.with(handler))
}

fn prefix(x: u8) -> bool {
    matches!(x, 0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3)
}

fn register_form(mut b: Builder<'_>, opcode: u8, modrm: u8) -> Outcome<'_> {
    use Mnemonic::*;
    let m = b.ins.mnemonic();
    b.op.src = opcode - 0xd8;
    b.op.dst = modrm & 0x3f;
    Ok(match m {
        Fsin => b.with(transcendental::execute::<SIN>),
        Fcos => b.with(transcendental::execute::<COS>),
        Fsincos => b.with(transcendental::execute::<SINCOS>),
        Fptan => b.with(transcendental::execute::<TAN>),
        F2xm1 => b.with(transcendental::execute::<EXP>),
        Fpatan => b.with(transcendental::execute::<ATAN>),
        Fyl2x => b.with(transcendental::execute::<LOG>),
        Fyl2xp1 => b.with(transcendental::execute::<LOG_PLUS_1>),
        Fnstsw => b.with(x87::fnstsw_ax),
        Fninit => b.with(x87::fninit),
        Fnclex => b.with(x87::fnclex),
        Fneni | Fndisi | Fnsetpm => b.with(crate::exec::data::nop),
        Fadd | Faddp | Fmul | Fmulp | Fsub | Fsubp | Fsubr | Fsubrp | Fdiv | Fdivp | Fdivr
        | Fdivrp | Fcom | Fcomp | Fcompp | Fucom | Fucomp | Fucompp | Fld | Fst | Fstp | Fxch
        | Fchs | Fabs | Ftst | Fxam | Fld1 | Fldl2t | Fldl2e | Fldpi | Fldlg2 | Fldln2 | Fldz
        | Fxtract | Fprem | Fprem1 | Fdecstp | Fincstp | Fsqrt | Frndint | Fscale | Fnop
        | Ffree | Ffreep | Fcmovb | Fcmove | Fcmovbe | Fcmovu | Fcmovnb | Fcmovne | Fcmovnbe
        | Fcmovnu | Fcomi | Fcomip | Fucomi | Fucomip => {
            b.op.aux = matches!(m, Fcomi | Fcomip | Fucomi | Fucomip).into();
            b.with(x87::register)
        }
        _ => return Err(b),
    })
}
