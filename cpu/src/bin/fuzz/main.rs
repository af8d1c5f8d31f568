//! Differential fuzzing: random user-mode instructions, run by the host's CPU and by the engine, must
//! leave the same registers, flags, memory and faults.
//!
//! `fuzz --cases N --seed S` runs cases 0..N of seed S; `fuzz --seed S --only I` runs one and prints it
//! in full. Exits with 1 when anything differs, or when a listed mnemonic was never run.

mod engine;
mod generate;
mod native;

use std::collections::BTreeMap;
use std::process::ExitCode;

use engine::Engine;
use generate::{Case, case};
use iced_x86::{CpuidFeature, Mnemonic, RflagsBits};
use lockstep_cpu::opcodes::{OPCODES, Support};
use native::Native;

/// Linear address of the code page.
pub const CODE: u64 = 0x1000_0000;
/// Of the data pages, which nothing surrounds; the last is read-only.
pub const DATA: u64 = 0x1001_0000;
/// How many.
pub const DATA_PAGES: u64 = 3;
/// Base of GS.
pub const GS_BASE: u64 = DATA - 0x1234;

/// What a case starts with and ends with.
#[derive(Debug, Clone)]
pub struct Registers {
    /// RAX RCX RDX RBX RSP RBP RSI RDI R8..R15.
    pub gpr: [u64; 16],
    /// Flags.
    pub rflags: u64,
    /// FXSAVE's image.
    pub fx: [u8; 512],
}

impl Default for Registers {
    fn default() -> Registers {
        Registers {
            gpr: [0; 16],
            rflags: 0,
            fx: [0; 512],
        }
    }
}

/// How a case ended.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Registers at the end.
    pub registers: Registers,
    /// Instruction pointer.
    pub rip: u64,
    /// Exception that ended it: 3 (the INT3 behind) when nothing went wrong.
    pub vector: u8,
    /// Its error code, or 0.
    pub error: u32,
    /// Address of a page fault.
    pub cr2: u64,
    /// Instructions (engine only).
    pub retired: u64,
    /// Anything that should not have been.
    pub note: String,
}

/// RFLAGS bits that the last instruction executed leaves undefined.
fn undefined_flags(case: &Case) -> u64 {
    let last = case.instructions.last().expect("a case has instructions");
    let bits = last.rflags_undefined();
    let mut mask = 0;
    for (bit, flag) in [
        (RflagsBits::OF, 0x800),
        (RflagsBits::SF, 0x80),
        (RflagsBits::ZF, 0x40),
        (RflagsBits::AF, 0x10),
        (RflagsBits::CF, 1),
        (RflagsBits::PF, 4),
    ] {
        if bits & bit != 0 {
            mask |= flag;
        }
    }
    // By a count in CL, which flags are undefined depends on it.
    if matches!(
        last.mnemonic(),
        Mnemonic::Shl
            | Mnemonic::Sal
            | Mnemonic::Shr
            | Mnemonic::Sar
            | Mnemonic::Shld
            | Mnemonic::Shrd
    ) {
        mask |= 0x810;
        if last.op0_register().size() < 4 || last.memory_size().size() < 4 {
            mask |= 1;
        }
    }
    if matches!(
        last.mnemonic(),
        Mnemonic::Rol | Mnemonic::Ror | Mnemonic::Rcl | Mnemonic::Rcr
    ) {
        mask |= 0x800;
    }
    mask
}

/// What differs, or nothing.
fn compare(
    case: &Case,
    native: &Outcome,
    engine: &Outcome,
    native_memory: &[u8],
    engine_memory: &[u8],
) -> Vec<String> {
    let mut found = Vec::new();
    let mut check = |what: &str, native: u64, engine: u64| {
        if native != engine {
            found.push(format!("{what}: host {native:#x}, engine {engine:#x}"));
        }
    };
    check("vector", native.vector.into(), engine.vector.into());
    check("rip", native.rip, engine.rip);
    if matches!(native.vector, 13 | 14) {
        // Linux reports every fault at a kernel address as one of protection (P set).
        let hidden = u32::from(native.vector == 14 && native.cr2 >> 63 != 0);
        check(
            "error code",
            (native.error | hidden).into(),
            (engine.error | hidden).into(),
        );
    }
    let last = case.instructions.last().expect("a case has instructions");
    // The instruction that ended the case, as far as RIP tells.
    let ended = case
        .instructions
        .iter()
        .find(|i| i.ip() == native.rip)
        .unwrap_or(last);
    let faulted = native.vector != 3;
    let repeats = ended.has_rep_prefix() || ended.has_repne_prefix();
    if native.vector == 14 {
        // Which byte of a masked store faults first is up to the processor.
        let masked = matches!(ended.mnemonic(), Mnemonic::Maskmovq | Mnemonic::Maskmovdqu);
        let page = if masked { !0xfff } else { u64::MAX };
        check("cr2", native.cr2 & page, engine.cr2 & page);
    }
    const NAMES: [&str; 16] = [
        "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12",
        "r13", "r14", "r15",
    ];
    // A double shift of 16 bits by more than 16 has an undefined result.
    let undefined_result = matches!(last.mnemonic(), Mnemonic::Shld | Mnemonic::Shrd)
        && last.op1_register().size() == 2
        || last.mnemonic() == Mnemonic::Bswap && last.op0_register().size() == 2;
    for (i, name) in NAMES.into_iter().enumerate() {
        if !undefined_result {
            // Whether a repetition with 32-bit addresses that faults at once has already cleared the upper
            // half of its count is up to the processor.
            let half = faulted && repeats && i == 1;
            let width = if half { 0xffff_ffff } else { u64::MAX };
            check(
                name,
                native.registers.gpr[i] & width,
                engine.registers.gpr[i] & width,
            );
        }
    }
    let faulted = native.vector != 3;
    // The instruction that ended the case, as far as RIP tells.
    let ended = case
        .instructions
        .iter()
        .find(|i| i.ip() == native.rip)
        .unwrap_or(last);
    let mut mask = 0xcd5 & !undefined_flags(case);
    if faulted && repeats {
        // Intel takes back what earlier iterations did to the flags; here they stay, so that a run cut
        // between two iterations ends like one that was not.
        mask = 0x400;
    }
    check(
        "rflags",
        native.registers.rflags & mask,
        engine.registers.rflags & mask,
    );
    let (a, b) = (&native.registers.fx, &engine.registers.fx);
    let word = |fx: &[u8; 512], at: usize, n: usize| {
        (0..n).rev().fold(0, |v, i| v << 8 | u64::from(fx[at + i]))
    };
    // Whether an MMX instruction that faults has already changed the x87 state is up to the processor.
    let mmx = ended.cpuid_features().contains(&CpuidFeature::MMX)
        || (0..ended.op_count()).any(|i| ended.op_register(i).is_mm());
    let x87 = !(faulted && mmx);
    check("fcw", word(a, 0, 2), word(b, 0, 2));
    if x87 {
        check("fsw", word(a, 2, 2), word(b, 2, 2));
        check("ftw", word(a, 4, 1), word(b, 4, 1));
    }
    // PE beside an unmasked underflow tells of a result with another exponent, which nobody sees.
    let underflow = native.vector == 19 && word(a, 24, 4) & 0x810 == 0x10;
    let status = if underflow { !0x20 } else { u64::MAX };
    check("mxcsr", word(a, 24, 4) & status, word(b, 24, 4) & status);
    for i in (0..8).filter(|_| x87) {
        check(
            &format!("st{i} mantissa"),
            word(a, 32 + 16 * i, 8),
            word(b, 32 + 16 * i, 8),
        );
        check(
            &format!("st{i} exponent"),
            word(a, 40 + 16 * i, 2),
            word(b, 40 + 16 * i, 2),
        );
    }
    for i in 0..16 {
        check(
            &format!("xmm{i} low"),
            word(a, 160 + 16 * i, 8),
            word(b, 160 + 16 * i, 8),
        );
        check(
            &format!("xmm{i} high"),
            word(a, 168 + 16 * i, 8),
            word(b, 168 + 16 * i, 8),
        );
    }
    // A store of ten bytes that faults at its end may have written its first eight.
    let torn = faulted && ended.memory_size().size() == 10;
    if native_memory != engine_memory && !undefined_result && !torn {
        let at = native_memory
            .iter()
            .zip(engine_memory)
            .position(|(a, b)| a != b)
            .unwrap_or(0);
        found.push(format!(
            "memory at {:#x}: host {:02x?}, engine {:02x?}",
            DATA + at as u64,
            &native_memory[at..(at + 16).min(native_memory.len())],
            &engine_memory[at..(at + 16).min(engine_memory.len())]
        ));
    }
    if !engine.note.is_empty() {
        found.push(format!("engine: {}", engine.note));
    }
    found
}

struct Options {
    cases: u64,
    seed: u64,
    only: Option<u64>,
    most: usize,
}

fn options() -> Result<Options, String> {
    let mut options = Options {
        cases: 1_000_000,
        seed: 1,
        only: None,
        most: 10,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let value = arguments
            .next()
            .and_then(|v| v.parse::<u64>().ok())
            .ok_or(format!("{argument} takes a number"))?;
        match argument.as_str() {
            "--cases" => options.cases = value,
            "--seed" => options.seed = value,
            "--only" => options.only = Some(value),
            "--most" => options.most = value as usize,
            _ => {
                return Err(format!(
                    "unknown option {argument}; known: --cases --seed --only --most"
                ));
            }
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(2);
        }
    };
    let mut native = Native::new();
    let mut engine = Engine::new();
    let mut run: BTreeMap<Mnemonic, u64> = BTreeMap::new();
    let mut clean: BTreeMap<Mnemonic, u64> = BTreeMap::new();
    let mut bad: BTreeMap<Mnemonic, u64> = BTreeMap::new();
    let mut failures = 0;
    let indices = match options.only {
        Some(only) => only..only + 1,
        None => 0..options.cases,
    };
    for index in indices {
        let case = case(options.seed, index);
        let (mut native_memory, mut engine_memory) = (case.memory.clone(), case.memory.clone());
        let expected = native.run(&case.code, &case.registers, &mut native_memory);
        let got = engine.run(&case.code, &case.registers, &mut engine_memory);
        for ins in &case.instructions {
            *run.entry(ins.mnemonic()).or_default() += 1;
            if expected.vector == 3 {
                *clean.entry(ins.mnemonic()).or_default() += 1;
            }
        }
        let differences = compare(&case, &expected, &got, &native_memory, &engine_memory);
        if options.only.is_some() {
            println!(
                "{:x?}\nhost: {expected:x?}\nengine: {got:x?}",
                case.registers
            );
        }
        if !differences.is_empty() {
            failures += 1;
            for ins in &case.instructions {
                *bad.entry(ins.mnemonic()).or_default() += 1;
            }
            if failures <= options.most {
                println!(
                    "\nDIFFERENCE, again by: fuzz --seed {} --only {index}\n  bytes {:02x?}",
                    options.seed, case.code
                );
                for ins in &case.instructions {
                    println!(
                        "  {:?} {:?} {:?}",
                        ins.code(),
                        ins.op0_kind(),
                        ins.op1_kind()
                    );
                }
                for difference in differences.iter().take(8) {
                    println!("  {difference}");
                }
            }
        }
    }
    let missing: Vec<Mnemonic> = OPCODES
        .iter()
        .filter(|(m, support)| *support == Support::Exact && !clean.contains_key(m))
        .map(|&(m, _)| m)
        .collect();
    println!(
        "{} cases, {failures} differences, {} mnemonics run, {} of them to a clean end",
        options.cases,
        run.len(),
        clean.len()
    );
    if !bad.is_empty() {
        println!("differing: {bad:?}");
    }
    if options.only.is_none() && !missing.is_empty() {
        println!("never run to a clean end: {missing:?}");
        return ExitCode::FAILURE;
    }
    if failures > 0 {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}
