//! Assembles the bare guests of the cpu suite with gcc, as `lockstep-guest` builds its tenant.

use std::env;
use std::path::Path;
use std::process::{Command, exit};

const WORKLOADS: [&str; 4] = ["compute", "memory", "syscall", "fault"];

fn main() {
    println!("cargo::rerun-if-changed=guests");
    println!("cargo::rerun-if-env-changed=CC");
    let source =
        Path::new(&env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("guests");
    let out = env::var_os("OUT_DIR").expect("cargo sets it");
    let compiler = env::var("CC").unwrap_or_else(|_| "gcc".to_owned());
    for workload in WORKLOADS {
        let image = Path::new(&out).join(format!("{workload}.elf"));
        let status = Command::new(&compiler)
            .current_dir(&source)
            .args(["-m64", "-nostdlib", "-static", "-no-pie"])
            .args(["-Wl,--build-id=none", "-Wl,-z,noexecstack"])
            .args(["-Wl,-T,bare.ld", "-o"])
            .arg(&image)
            .arg("boot.S")
            .arg(format!("{workload}.S"))
            .status();
        match status {
            Ok(status) if status.success() => {}
            Ok(status) => {
                eprintln!("{compiler} could not assemble the bare guest {workload}: {status}");
                exit(1);
            }
            Err(error) => {
                eprintln!("{compiler}: {error}; install gcc, or name another compiler in CC");
                exit(1);
            }
        }
    }
}
