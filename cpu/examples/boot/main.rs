//! Boots a Linux bzImage on the software CPU with the least machine that takes it to user space, and
//! says how many instructions and how long that took.
//!
//! `cargo run --release -p lockstep-cpu --example boot -- BZIMAGE BUSYBOX [--cut SEED] [--quiet] [--until TEXT]`
//!
//! The initrd is made here: busybox, and an init that mounts what a shell needs, prints
//! `LOCKSTEP-BOOTED` and starts the shell. With `--cut` the run is cut into random budgets, which
//! must not change the final digest: that of the state and memory a fixed number of instructions
//! behind the one that said the mark, wherever runs ended.

mod devices;
mod image;

use std::io::Write;
use std::time::Instant;

use devices::Board;
use lockstep_cpu::{Cpu, CpuModel, RunExit};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const RAM: usize = 256 << 20;
/// Gives up here.
const MOST: u64 = 20_000_000_000;
/// Instructions from the mark to the digest.
const BEHIND: u64 = 20_000_000;

struct Options {
    kernel: Vec<u8>,
    busybox: Vec<u8>,
    cut: Option<u64>,
    quiet: bool,
    until: String,
    append: String,
}

fn options() -> Result<Options, String> {
    let mut files = Vec::new();
    let mut options = Options {
        kernel: Vec::new(),
        busybox: Vec::new(),
        cut: None,
        quiet: false,
        until: "LOCKSTEP-BOOTED".into(),
        append: String::new(),
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{argument} takes a value"));
        match argument.as_str() {
            "--cut" => options.cut = Some(value()?.parse().map_err(|e| format!("--cut: {e}"))?),
            "--until" => options.until = value()?,
            "--append" => options.append = value()?,
            "--quiet" => options.quiet = true,
            _ => files.push(argument),
        }
    }
    let [kernel, busybox] = files.as_slice() else {
        return Err("usage: boot BZIMAGE BUSYBOX [--cut SEED] [--quiet]".into());
    };
    let read = |path: &String| std::fs::read(path).map_err(|e| format!("{path}: {e}"));
    options.kernel = read(kernel)?;
    options.busybox = read(busybox)?;
    Ok(options)
}

fn main() -> Result<(), String> {
    let options = options()?;
    let memory =
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM)]).map_err(|e| e.to_string())?;
    let command_line = format!(
        "console=ttyS0 earlyprintk=serial,ttyS0 nolapic noapic acpi=off pci=off tsc_early_khz=1000000 \
         cryptomgr.notests panic=-1 {}",
        options.append
    );
    let state = image::load(
        &memory,
        RAM as u64,
        &options.kernel,
        &image::initrd(&options.busybox),
        &command_line,
    )?;
    let mut cpu = Cpu::new(memory.clone(), CpuModel::x86_64_v1());
    cpu.set_state(&state).map_err(|e| e.to_string())?;
    let mut board = Board::new(&options.until);
    let mut random = options.cut;
    let mut shown = 0;
    let started = Instant::now();
    let mut mark: Option<(u64, f64)> = None;
    let mut end = MOST;
    while cpu.retired() < end {
        let now = cpu.retired();
        board.tick(now);
        let mut budget = board
            .next_event(now)
            .unwrap_or(1_000_000_000)
            .clamp(1, 10_000_000)
            .min(end - now);
        if let Some(state) = &mut random {
            *state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            budget = budget.min(1 + (*state >> 33) % 100_000);
        }
        let exit = cpu.run(budget, &mut board);
        match exit {
            RunExit::Budget => {}
            RunExit::StopRequested => board.resume(),
            RunExit::Halted => {
                if !board.skip(cpu.retired()) {
                    break;
                }
                cpu.set_tsc(board.time(cpu.retired()));
            }
            _ => {
                eprintln!(
                    "\n{exit:x?} after {} instructions\n{:x?}",
                    cpu.retired(),
                    cpu.state()
                );
                return Err("the guest ended".into());
            }
        }
        if !options.quiet {
            std::io::stdout()
                .write_all(&board.text[shown..])
                .map_err(|e| e.to_string())?;
            shown = board.text.len();
        }
        if mark.is_none()
            && let Some(at) = board.said_at
        {
            mark = Some((at, started.elapsed().as_secs_f64()));
            end = at + BEHIND;
        }
    }
    let (retired, seconds) = mark.unwrap_or((cpu.retired(), started.elapsed().as_secs_f64()));
    let mut digest = 0xcbf2_9ce4_8422_2325_u64;
    let mut page = vec![0; 1 << 20];
    for at in (0..RAM).step_by(page.len()) {
        memory
            .read_slice(&mut page, GuestAddress(at as u64))
            .map_err(|e| e.to_string())?;
        for word in page.chunks_exact(8) {
            digest = (digest ^ u64::from_le_bytes(word.try_into().expect("eight bytes")))
                .wrapping_mul(0x100_0000_01b3)
                .rotate_left(17);
        }
    }
    for byte in format!("{:x?}", cpu.state()).bytes() {
        digest = (digest ^ u64::from(byte))
            .wrapping_mul(0x100_0000_01b3)
            .rotate_left(17);
    }
    println!(
        "\n{} {retired} instructions, {seconds:.3} s, {:.0} million a second; at {}: rip {:#x}, digest {digest:016x}",
        if mark.is_some() {
            "reached the mark:"
        } else {
            "NOT reached:"
        },
        retired as f64 / seconds / 1e6,
        cpu.retired(),
        cpu.state().rip,
    );
    if mark.is_some() {
        Ok(())
    } else {
        Err("the mark was not printed".into())
    }
}
