//! Differential fuzzing: random user-mode instructions, run by the host's CPU and by the engine, must
//! leave the same registers, flags, memory and faults.
//!
//! `fuzz --cases N --seed S` runs cases 0..N of seed S; `fuzz --seed S --only I` runs case I of it and
//! prints it in full. Exits with 1 when anything differs, or when a listed mnemonic never ran to an end
//! without a fault.

mod compare;
mod engine;
mod generate;
mod native;
mod opcodes;
mod random;

use std::process::ExitCode;
use std::time::Instant;

use compare::Comparison;
use engine::Engine;
use generate::{Case, Pools, case};
use iced_x86::{Code, Mnemonic};
use lockstep_cpu::opcodes::{OPCODES, Support};
use native::Native;
use opcodes::Opcodes;

/// Linear address of the code pages, which may be executed and read: no number that a random register
/// is likely to hold.
pub const CODE: u64 = 0x1357_8000;
/// How many; nothing is mapped behind.
pub const CODE_PAGES: u64 = 2;
/// Of the data pages, which nothing surrounds; the last is read-only.
pub const DATA: u64 = 0x1358_8000;
/// How many.
pub const DATA_PAGES: u64 = 3;
/// Base of GS.
pub const GS_BASE: u64 = DATA - 0x1234;
/// INT3: what the code pages hold about the case.
pub const FILL: u8 = 0xcc;

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
    /// It goes round for ever (engine only, which has a budget; the host's CPU has none).
    pub endless: bool,
    /// Instructions (engine only).
    pub retired: u64,
    /// Anything that should not have been.
    pub note: String,
}

struct Options {
    cases: u64,
    seed: u64,
    only: Option<u64>,
    most: u64,
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
            "--most" => options.most = value,
            _ => {
                return Err(format!(
                    "unknown option {argument}; known: --cases N, --seed S, --only CASE, --most N (differences printed)"
                ));
            }
        }
    }
    Ok(options)
}

/// Cases by something that an instruction has.
struct Tally(Vec<u64>);

impl Tally {
    fn new() -> Tally {
        // More than iced-x86 has mnemonics or codes.
        Tally(vec![0; 8192])
    }

    fn add(&mut self, i: usize) {
        self.0[i] += 1;
    }

    fn kinds(&self) -> usize {
        self.0.iter().filter(|&&n| n > 0).count()
    }
}

/// Runs cases on both CPUs.
struct Bench {
    seed: u64,
    opcodes: Opcodes,
    pools: Pools,
    native: Native,
    engine: Engine,
    engine_memory: Vec<u8>,
    run: Tally,
    /// By mnemonic, those that faulted nowhere.
    clean: Tally,
    codes: Tally,
    bad: Tally,
    failures: u64,
    /// Cases that go round for ever, and so were not compared.
    endless: u64,
}

impl Bench {
    fn new(seed: u64) -> Bench {
        Bench {
            seed,
            opcodes: Opcodes::enumerate(),
            pools: Pools::new(seed),
            native: Native::new(),
            engine: Engine::new(),
            engine_memory: vec![0; (DATA_PAGES * 4096) as usize],
            run: Tally::new(),
            clean: Tally::new(),
            codes: Tally::new(),
            bad: Tally::new(),
            failures: 0,
            endless: 0,
        }
    }

    /// Runs one case; what differs goes to standard output, as long as `most` allows.
    fn case(&mut self, index: u64, most: u64, verbose: bool) {
        let case = case(&self.opcodes, self.seed, index);
        let memory = self.native.memory();
        memory.copy_from_slice(self.pools.of(&case));
        for (at, bytes) in &case.patches {
            memory[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        self.engine.fill(memory);
        let engine = self.engine.run(case.start, &case.code, &case.registers);
        if engine.endless {
            // A jump to itself, say. Nothing would ever bring the host's CPU back.
            self.endless += 1;
            return;
        }
        let native = self.native.run(case.start, &case.code, &case.registers);
        self.engine.read(&mut self.engine_memory);
        for ins in &case.instructions {
            self.run.add(ins.mnemonic() as usize);
            self.codes.add(ins.code() as usize);
            if native.vector == 3 {
                self.clean.add(ins.mnemonic() as usize);
            }
        }
        if verbose {
            println!(
                "{:x?}\nhost: {native:x?}\nengine: {engine:x?}",
                case.registers
            );
        }
        let differences = Comparison {
            case: &case,
            native: &native,
            engine: &engine,
            native_memory: self.native.memory(),
            engine_memory: &self.engine_memory,
        }
        .differences();
        if differences.is_empty() {
            return;
        }
        self.failures += 1;
        for ins in &case.instructions {
            self.bad.add(ins.mnemonic() as usize);
        }
        if self.failures <= most {
            self.print(&case, index, &differences);
        }
    }

    fn print(&self, case: &Case, index: u64, differences: &[String]) {
        println!(
            "\nDIFFERENCE, again by: cargo run --release -p lockstep-cpu --bin fuzz -- --seed {} --only {index}\n  at {:#x}: {:02x?}",
            self.seed, case.start, case.code
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

    /// Prints the figures; whether all is well.
    fn conclude(&self, cases: u64, seconds: f64) -> bool {
        let never = |tally: &Tally| -> Vec<Mnemonic> {
            OPCODES
                .iter()
                .filter(|(m, support)| {
                    matches!(support, Support::Exact | Support::ByRule) && tally.0[*m as usize] == 0
                })
                .map(|&(m, _)| m)
                .collect()
        };
        println!(
            "{cases} cases of seed {} in {seconds:.0} s ({:.0} a second), {} differences; {} mnemonics in {} of {} forms, {} to a clean end; {} cases without an end were not compared",
            self.seed,
            cases as f64 / seconds,
            self.failures,
            self.run.kinds(),
            self.codes.kinds(),
            self.opcodes.len(),
            self.clean.kinds(),
            self.endless,
        );
        if self.failures > 0 {
            let mut bad: Vec<(u64, Mnemonic)> = Mnemonic::values()
                .map(|m| (self.bad.0[m as usize], m))
                .filter(|&(n, _)| n > 0)
                .collect();
            bad.sort_by_key(|&(n, _)| std::cmp::Reverse(n));
            println!("differing: {bad:?}");
        }
        let missing = never(&self.clean);
        if !missing.is_empty() {
            println!("never run to a clean end: {missing:?}");
        }
        self.failures == 0 && missing.is_empty()
    }
}

fn main() -> ExitCode {
    let options = match options() {
        Ok(options) => options,
        Err(message) => {
            eprintln!("{message}");
            return ExitCode::from(2);
        }
    };
    debug_assert!(Code::values().len() < 8192);
    let mut bench = Bench::new(options.seed);
    if let Some(only) = options.only {
        bench.case(only, 1, true);
        return ExitCode::from(u8::from(bench.failures > 0));
    }
    let start = Instant::now();
    for index in 0..options.cases {
        bench.case(index, options.most, false);
    }
    if bench.conclude(options.cases, start.elapsed().as_secs_f64()) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
