//! The one table of opcodes: what the CPU executes, how it is tested, and that all else is #UD.

use iced_x86::Mnemonic;

/// What the CPU does with an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// Executed; compared with the host's CPU to the last bit.
    Exact,
    /// Executed; results differ between processors, so here they are computed by rule, and are the same on
    /// every host. Compared for what the manual promises.
    ByRule,
    /// Executed; depends on privilege, system state or time, so tested by guests of its own.
    System,
    /// Not in the CPU model: #UD.
    Absent,
}

macro_rules! opcodes {
    (Exact: $($e:ident)*; ByRule: $($r:ident)*; System: $($s:ident)*;) => {
        /// Every mnemonic that is not absent.
        pub const OPCODES: &[(Mnemonic, Support)] = &[
            $((Mnemonic::$e, Support::Exact),)*
            $((Mnemonic::$r, Support::ByRule),)*
            $((Mnemonic::$s, Support::System),)*
        ];
    };
}

opcodes! {
    Exact:
        Adc Add And Bsf Bsr Bswap Bt Btc Btr Bts Call Cbw Cdq Cdqe Clc Cld Cmc Cmp Cmpsb Cmpsw Cmpsd Cmpsq Cmpxchg Cmpxchg8b Cqo Cwd
        Cwde Dec Div Enter Idiv Imul Inc Jmp Lea Leave Lodsb Lodsw Lodsd Lodsq Loop Loope Loopne Mov Movsb Movsw Movsd Movsq Movsx
        Movsxd Movzx Mul Neg Nop Not Or Pop Push Pushf Pushfq Rcl Rcr Ret Rol Ror Sal Sar Sbb Scasb Scasw Scasd Scasq Shl Shld Shr Shrd
        Stc Std Stosb Stosw Stosd Stosq Sub Test Xadd Xchg Xlatb Xor Jrcxz Jecxz
        Cmova Cmovae Cmovb Cmovbe Cmove Cmovg Cmovge Cmovl Cmovle Cmovne Cmovno Cmovnp Cmovns Cmovo Cmovp Cmovs
        Ja Jae Jb Jbe Je Jg Jge Jl Jle Jne Jno Jnp Jns Jo Jp Js
        Seta Setae Setb Setbe Sete Setg Setge Setl Setle Setne Setno Setnp Setns Seto Setp Sets
        Prefetch Prefetchw Prefetchnta Prefetcht0 Prefetcht1 Prefetcht2 Reservednop Lfence Mfence Sfence Pause Clflush
        Paddb Paddw Paddd Paddq Psubb Psubw Psubd Psubq Paddsb Paddsw Paddusb Paddusw Psubsb Psubsw Psubusb Psubusw
        Pand Pandn Por Pxor Pcmpeqb Pcmpeqw Pcmpeqd Pcmpgtb Pcmpgtw Pcmpgtd Pmullw Pmulhw Pmulhuw Pmaddwd Pmuludq
        Pavgb Pavgw Pminub Pmaxub Pminsw Pmaxsw Psadbw Packsswb Packssdw Packuswb Punpcklbw Punpcklwd Punpckldq Punpcklqdq
        Punpckhbw Punpckhwd Punpckhdq Punpckhqdq Psllw Pslld Psllq Psrlw Psrld Psrlq Psraw Psrad Pslldq Psrldq
        Andps Andpd Andnps Andnpd Orps Orpd Xorps Xorpd Unpcklps Unpckhps Unpcklpd Unpckhpd
        Addps Addpd Addss Addsd Subps Subpd Subss Subsd Mulps Mulpd Mulss Mulsd Divps Divpd Divss Divsd Minps Minpd Minss Minsd
        Maxps Maxpd Maxss Maxsd Sqrtps Sqrtpd Sqrtss Sqrtsd Cvtps2pd Cvtpd2ps Cvtss2sd Cvtsd2ss Cvtdq2ps Cvtps2dq Cvttps2dq
        Cvtdq2pd Cvtpd2dq Cvttpd2dq Cvtsi2ss Cvtsi2sd Cvtss2si Cvttss2si Cvtsd2si Cvttsd2si Cvtpi2ps Cvtpi2pd Cvtps2pi Cvttps2pi
        Cvtpd2pi Cvttpd2pi Cmpps Cmppd Cmpss Ucomiss Ucomisd Comiss Comisd
        Movaps Movapd Movdqa Movups Movupd Movdqu Movntps Movntpd Movntdq Movntq Movnti Movss Movlps Movlpd Movhps Movhpd Movhlps
        Movlhps Movd Movq Movdq2q Movq2dq Movmskps Movmskpd Pmovmskb Maskmovdqu Maskmovq Pshufd Pshuflw Pshufhw Pshufw Shufps Shufpd
        Pextrw Pinsrw Emms Ldmxcsr Stmxcsr
        Fadd Faddp Fiadd Fmul Fmulp Fimul Fsub Fsubp Fisub Fsubr Fsubrp Fisubr Fdiv Fdivp Fidiv Fdivr Fdivrp Fidivr
        Fcom Fcomp Fcompp Ficom Ficomp Fucom Fucomp Fucompp Fcomi Fcomip Fucomi Fucomip Fld Fst Fstp Fild Fist Fistp Fbld Fbstp
        Fxch Fchs Fabs Ftst Fxam Fld1 Fldl2t Fldl2e Fldpi Fldlg2 Fldln2 Fldz Fxtract Fprem Fprem1 Fdecstp Fincstp Fsqrt Frndint
        Fscale Fnop Ffree Ffreep Fcmovb Fcmove Fcmovbe Fcmovu Fcmovnb Fcmovne Fcmovnbe Fcmovnu Fldcw Fnstcw Fnstsw Fnclex Fninit Wait
        Fxsave Fxrstor Fxsave64 Fxrstor64 Fnsave Frstor Fnstenv Fldenv Popf Popfq;
    ByRule: Rcpps Rcpss Rsqrtps Rsqrtss Fsin Fcos Fsincos Fptan Fpatan F2xm1 Fyl2x Fyl2xp1;
    System:
        Iret Iretd Iretq Retf In Out Insb Insw Insd Outsb Outsw Outsd Int Int1 Int3 Into Popfd Pushfd Pusha Pushad Popa Popad
        Hlt Cli Sti Cpuid Rdtsc Rdpmc Rdmsr Wrmsr Sgdt Sidt Lgdt Lidt Lldt Ltr Lmsw Sldt Str Smsw Clts Invlpg Invd Wbinvd Swapgs Syscall
        Sysret Sysretq Sysenter Sysexit Sysexitq Lar Lsl Verr Verw Lds Les Lfs Lgs Lss Lahf Sahf Jcxz Prefetchwt1 Endbr32 Endbr64
        Fneni Fndisi Fnsetpm;
}

/// What the CPU does with a mnemonic.
pub fn support(mnemonic: Mnemonic) -> Support {
    TABLE[mnemonic as usize]
}

/// More than there are mnemonics (iced-x86 has fewer than 2,048; a new one beyond would not compile).
const MNEMONICS: usize = 2048;

/// [`OPCODES`] by mnemonic.
static TABLE: [Support; MNEMONICS] = {
    let mut table = [Support::Absent; MNEMONICS];
    let mut i = 0;
    while i < OPCODES.len() {
        table[OPCODES[i].0 as usize] = OPCODES[i].1;
        i += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mnemonic_has_a_place_and_none_is_listed_twice() {
        assert!(Mnemonic::values().all(|m| (m as usize) < MNEMONICS));
        for (i, (m, _)) in OPCODES.iter().enumerate() {
            assert!(
                OPCODES[..i].iter().all(|(other, _)| other != m),
                "{m:?} is listed twice"
            );
        }
    }

    #[test]
    fn what_the_model_lacks_is_absent() {
        use Mnemonic::*;
        for m in [
            Cmpxchg16b, Popcnt, Rdtscp, Rdrand, Rdseed, Xsave, Xgetbv, Vaddps, Haddps, Pshufb,
            Crc32, Tzcnt, Monitor, Fisttp, Vmrun, Vmcall, Rdfsbase, Movbe, Swapgs,
        ] {
            let expected = if m == Swapgs {
                Support::System
            } else {
                Support::Absent
            };
            assert_eq!(support(m), expected, "{m:?}");
        }
    }
}
