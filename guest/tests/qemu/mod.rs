//! Debian guests in QEMU, in a machine much like ours: virtio-mmio devices that ACPI names, a serial port,
//! nothing else.

use lockstep_guest::debian::{
    Builder, CONTROL, Guest, GuestBuildError, GuestSpec, READY_MARKER, Recipe,
};
use lockstep_perf::not_run;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How long QEMU may take to the console's marker. It emulates, on a host that does other things.
const BOOT: Duration = Duration::from_secs(150);

/// The guest's control port.
const CONTROL_PORT: u16 = 9;

/// The guest of a recipe, from a cache that lives with the build: the first run fetches 60 MB, later ones
/// nothing.
pub fn guest(recipe: &str, test: &str) -> Option<Guest> {
    let cache = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("guests");
    let recipe = Recipe::load(recipe).expect("a ready recipe");
    let built = Builder::new(&cache).build(&GuestSpec::new(Some(recipe)), &mut |_| {});
    match built {
        Ok(guest) => Some(guest),
        // What this host has not: a package client, an archive, a network.
        Err(
            error @ (GuestBuildError::ProgramMissing { .. }
            | GuestBuildError::ProgramFailed { .. }
            | GuestBuildError::Unresolvable { .. }),
        ) => {
            not_run::report(test, &error.to_string());
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// A machine whose service answers.
pub struct Machine {
    child: Child,
    port: u16,
    control: u16,
    /// The console's line that says so.
    pub ready: String,
    console: mpsc::Receiver<String>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Machine {
    /// Boots `guest` with that file as its disk; `service` is the port at which it serves.
    pub fn boot(test: &str, guest: &Guest, service: u16, disk: Option<&Path>) -> Option<Self> {
        Self::boot_until(test, guest, service, disk, READY_MARKER)
    }

    /// The same, until a line of the console begins with `marker`.
    pub fn boot_until(
        test: &str,
        guest: &Guest,
        service: u16,
        disk: Option<&Path>,
        marker: &str,
    ) -> Option<Self> {
        let (port, control) = (free_port(), free_port());
        // Without a PIT that can be asked the kernel cannot measure its counter: with -icount it counts
        // nanoseconds.
        let command_line = format!(
            "{} tsc_early_khz=1000000 {CONTROL}",
            guest.command_line("10.0.2.15/24")
        );
        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-M", "microvm,acpi=on", "-accel", "tcg"])
            .args(["-icount", "shift=0,sleep=off"])
            .args(["-m", &guest.manifest.memory_mib.to_string()])
            .args(["-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-display", "none"])
            .arg("-kernel")
            .arg(guest.kernel())
            .arg("-initrd")
            .arg(guest.initramfs())
            .args(["-append", &command_line, "-serial", "stdio"])
            .args([
                "-netdev",
                &format!(
                    "user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-10.0.2.15:{service},\
                     hostfwd=tcp:127.0.0.1:{control}-10.0.2.15:{CONTROL_PORT}"
                ),
            ])
            .args(["-device", "virtio-net-device,netdev=net"])
            .args(["-object", "rng-random,filename=/dev/urandom,id=random"])
            .args(["-device", "virtio-rng-device,rng=random"]);
        if let Some(disk) = disk {
            let drive = format!("if=none,id=disk,format=raw,file={}", disk.display());
            command.args(["-drive", &drive]);
            command.args(["-device", "virtio-blk-device,drive=disk"]);
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn();
        let mut child = match child {
            Ok(child) => child,
            Err(error) => {
                let why = format!(
                    "qemu-system-x86_64 cannot be started ({error}): apt-get install qemu-system-x86"
                );
                not_run::report(test, &why);
                return None;
            }
        };
        let console = BufReader::new(child.stdout.take().expect("a pipe"));
        let (to, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in console.split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                if to.send(line).is_err() {
                    return;
                }
            }
        });
        let mut machine = Self {
            child,
            port,
            control,
            ready: String::new(),
            console: lines,
        };
        machine.ready = machine.until(marker);
        Some(machine)
    }

    fn until(&self, marker: &str) -> String {
        let started = Instant::now();
        let mut seen = Vec::new();
        while let Ok(line) = self
            .console
            .recv_timeout(BOOT.saturating_sub(started.elapsed()))
        {
            if line.starts_with(marker) {
                return line;
            }
            seen.push(line);
        }
        panic!("no {marker:?} in {BOOT:?}:\n{}", seen.join("\n"));
    }

    /// To its service.
    pub fn connect(&self) -> TcpStream {
        connect(self.port)
    }

    /// What its control port answers to `word`.
    pub fn control(&self, word: &str) -> Vec<String> {
        let mut control = connect(self.control);
        writeln!(control, "{word}").expect("it takes words");
        let mut said = Vec::new();
        for line in BufReader::new(control).lines() {
            let line = line.expect("it answers");
            let last = line == "ok" || line.starts_with("failed");
            said.push(line);
            if last {
                break;
            }
        }
        said
    }

    /// Waits until it has powered itself off.
    pub fn wait(mut self) {
        let status = self.child.wait().expect("QEMU");
        assert!(status.success(), "{status}");
    }
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .expect("a timeout");
    stream
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|socket| socket.local_addr())
        .expect("a port")
        .port()
}
