//! Builds the bare tenant with gcc: freestanding C has no place in cargo, and the machine that a guest
//! runs on has no target of its own in rustc.

use std::env;
use std::path::Path;
use std::process::{Command, exit};

const SOURCES: &[&str] = &[
    "boot.S",
    "boot_info.c",
    "clock.c",
    "console.c",
    "control.c",
    "interrupts.c",
    "kv.c",
    "main.c",
    "memory.c",
    "net.c",
    "reply.c",
    "store.c",
    "virtio_net.c",
];

const FLAGS: &[&str] = &[
    "-std=gnu11",
    "-O2",
    "-Wall",
    "-Wextra",
    // No library, no runtime, linked where it is loaded.
    "-ffreestanding",
    "-nostdlib",
    "-static",
    "-no-pie",
    "-fno-pie",
    "-mcmodel=small",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-fno-tree-loop-distribute-patterns",
    // Exceptions push onto the stack in use.
    "-mno-red-zone",
    // What every engine executes: general registers, no extension.
    "-m64",
    "-march=x86-64",
    "-mtune=generic",
    "-mgeneral-regs-only",
    "-fcf-protection=none",
    // The same source gives the same image: replicas compare digests.
    "-Wl,--build-id=none",
    "-Wl,-z,noexecstack",
    "-Wl,-T,tenant.ld",
];

fn main() {
    println!("cargo::rerun-if-changed=tenant");
    println!("cargo::rerun-if-env-changed=CC");
    let source =
        Path::new(&env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("tenant");
    let image = Path::new(&env::var_os("OUT_DIR").expect("cargo sets it")).join("tenant.elf");
    let version = env::var("CARGO_PKG_VERSION").expect("cargo sets it");
    let compiler = env::var("CC").unwrap_or_else(|_| "gcc".to_owned());

    let output = Command::new(&compiler)
        .current_dir(&source)
        .args(FLAGS)
        .arg(format!("-DTENANT_VERSION=\"{version}\""))
        .args(SOURCES)
        .arg("-o")
        .arg(&image)
        .output();
    let output = match output {
        Ok(output) => output,
        Err(error) => fail(&format!(
            "the bare tenant needs a C compiler for x86-64, and `{compiler}` cannot be started \
             ({error}): install gcc (Debian: apt-get install gcc binutils), or name a compiler in CC"
        )),
    };
    let messages = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        fail(&format!(
            "`{compiler}` could not build the bare tenant ({}):\n{messages}",
            output.status
        ));
    }
    for line in messages.lines() {
        println!("cargo::warning={line}");
    }
}

fn fail(message: &str) -> ! {
    eprintln!("{message}");
    exit(1);
}
