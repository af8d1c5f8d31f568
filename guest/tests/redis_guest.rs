//! Debian's own Redis: built from this host's archive, and started.

use lockstep_guest::debian::{Builder, Guest, GuestBuildError, GuestSpec, READY_MARKER, Recipe};
use lockstep_perf::not_run;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How long QEMU may take to the console's marker. It emulates, on a host that does other things.
const BOOT: Duration = Duration::from_secs(150);

/// The guest, from a cache that lives with the build: the first run fetches 60 MB, later ones nothing.
fn redis_guest(test: &str) -> Option<Guest> {
    let cache = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("guests");
    let recipe = Recipe::load("redis").expect("a ready recipe");
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

#[test]
fn the_redis_guest_is_small_and_holds_what_it_needs() {
    let Some(guest) = redis_guest("the_redis_guest_is_small_and_holds_what_it_needs") else {
        return;
    };
    guest.verify().expect("its digests");
    let manifest = &guest.manifest;
    assert!(
        manifest.initramfs.bytes < 60 << 20,
        "{} bytes",
        manifest.initramfs.bytes
    );
    for package in ["redis-server", "libc6", "busybox-static"] {
        assert!(
            manifest.packages.iter().any(|found| found.name == package),
            "{package}"
        );
    }
    for module in ["virtio_mmio", "virtio_net", "virtio-rng"] {
        let file = format!("/{module}.ko");
        assert!(
            manifest.modules.iter().any(|path| path.ends_with(&file)),
            "{module}"
        );
    }
    let position = |name: &str| {
        manifest
            .modules
            .iter()
            .position(|path| path.ends_with(name))
    };
    assert!(position("/failover.ko") < position("/virtio_net.ko"));
    let kernel = std::fs::read(guest.kernel()).expect("a kernel");
    // Documentation/x86/boot.rst: the header's magic at 0x202.
    assert_eq!(&kernel[0x202..0x206], b"HdrS");
}

struct Machine {
    child: Child,
    port: u16,
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Machine {
    /// A machine much like ours: virtio-mmio devices that ACPI names, a serial port, nothing else.
    fn start(guest: &Guest) -> std::io::Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        // Without a PIT that can be asked the kernel cannot measure its counter: with -icount it counts
        // nanoseconds.
        let command_line = format!(
            "{} tsc_early_khz=1000000",
            guest.command_line("10.0.2.15/24")
        );
        let child = Command::new("qemu-system-x86_64")
            .args([
                "-M",
                "microvm,acpi=on",
                "-accel",
                "tcg",
                "-icount",
                "shift=0,sleep=off",
            ])
            .args(["-m", &guest.manifest.memory_mib.to_string()])
            .args([
                "-nodefaults",
                "-no-user-config",
                "-no-reboot",
                "-display",
                "none",
            ])
            .arg("-kernel")
            .arg(guest.kernel())
            .arg("-initrd")
            .arg(guest.initramfs())
            .args(["-append", &command_line, "-serial", "stdio"])
            .args([
                "-netdev",
                &format!("user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-10.0.2.15:6379"),
            ])
            .args(["-device", "virtio-net-device,netdev=net"])
            .args(["-object", "rng-random,filename=/dev/urandom,id=random"])
            .args(["-device", "virtio-rng-device,rng=random"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()?;
        Ok(Self { child, port })
    }

    /// The console's lines up to the marker, if it comes in time.
    fn until_ready(&mut self) -> (bool, Vec<String>) {
        let console = BufReader::new(self.child.stdout.take().expect("a pipe"));
        let (to, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in console.split(b'\n').map_while(Result::ok) {
                if to
                    .send(String::from_utf8_lossy(&line).into_owned())
                    .is_err()
                {
                    return;
                }
            }
        });
        let started = Instant::now();
        let mut seen = Vec::new();
        while let Ok(line) = lines.recv_timeout(BOOT.saturating_sub(started.elapsed())) {
            let ready = line.starts_with(READY_MARKER);
            seen.push(line);
            if ready {
                return (true, seen);
            }
        }
        (false, seen)
    }
}

#[test]
fn the_redis_guest_starts_and_answers() {
    const TEST: &str = "the_redis_guest_starts_and_answers";
    let Some(guest) = redis_guest(TEST) else {
        return;
    };
    let mut machine = match Machine::start(&guest) {
        Ok(machine) => machine,
        Err(error) => {
            let why = format!(
                "qemu-system-x86_64 cannot be started ({error}): apt-get install qemu-system-x86"
            );
            return not_run::report(TEST, &why);
        }
    };
    let (ready, console) = machine.until_ready();
    assert!(
        ready,
        "no {READY_MARKER:?} in {BOOT:?}:\n{}",
        console.join("\n")
    );
    assert!(console.last().is_some_and(|line| line.contains(" redis ")));
    let mut redis = TcpStream::connect(("127.0.0.1", machine.port)).expect("it listens");
    redis
        .set_read_timeout(Some(Duration::from_secs(30)))
        .expect("a timeout");
    redis
        .write_all(b"SET k v\r\nINCR n\r\nGET k\r\n")
        .expect("it takes commands");
    let expected = b"+OK\r\n:1\r\n$1\r\nv\r\n";
    let mut answer = vec![0; expected.len()];
    redis.read_exact(&mut answer).expect("it answers");
    assert_eq!(answer, expected);
}
