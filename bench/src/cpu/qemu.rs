//! QEMU in a process of its own.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::param::clock_ticks_per_second;

use super::console::{Console, Mark};
use super::guest::Guest;
use super::{Contender, CpuBenchError, Lap};

/// One way of running QEMU.
pub struct Qemu {
    name: &'static str,
    program: PathBuf,
    flags: &'static [&'static str],
}

/// What `program` says that it is.
pub fn version(program: &Path) -> io::Result<String> {
    let output = Command::new(program).arg("--version").output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// A QEMU that ends with the measurement, whatever way that ends.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself: then there is nothing to end.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Process {
    /// Processor time of all its threads so far (proc(5), `stat`: `utime` and `stime`).
    fn processor(&self) -> io::Result<Duration> {
        let path = format!("/proc/{}/stat", self.0.id());
        let stat = fs::read_to_string(&path)?;
        let damaged = || io::Error::other(format!("{path} has an unknown form: {stat:?}"));
        // The second field is in parentheses, and may hold any character.
        let (_, behind) = stat.rsplit_once(')').ok_or_else(damaged)?;
        let mut fields = behind.split_ascii_whitespace().skip(11);
        let mut ticks = 0;
        for _ in 0..2 {
            let field = fields.next().ok_or_else(damaged)?;
            ticks += field.parse::<u64>().map_err(|_| damaged())?;
        }
        Ok(Duration::from_secs_f64(
            ticks as f64 / clock_ticks_per_second() as f64,
        ))
    }
}

impl Qemu {
    pub fn new(name: &'static str, program: &Path, flags: &'static [&'static str]) -> Self {
        Self {
            name,
            program: program.to_owned(),
            flags,
        }
    }

    fn command(&self, guest: &Guest, images: &Path) -> io::Result<Command> {
        let kernel = images.join("kernel");
        fs::write(&kernel, &guest.kernel)?;
        let mut command = Command::new(&self.program);
        command
            .args(["-nodefaults", "-no-reboot", "-display", "none"])
            .args(["-machine", "microvm", "-accel", "tcg", "-smp", "1"])
            .arg("-m")
            .arg(format!("{}k", guest.memory_bytes >> 10))
            .args(["-serial", "stdio", "-kernel"])
            .arg(kernel)
            .args(self.flags)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        if let Some(bytes) = &guest.initrd {
            let initrd = images.join("initrd");
            fs::write(&initrd, bytes)?;
            command.arg("-initrd").arg(initrd);
        }
        let line = guest.full_command_line();
        if !line.is_empty() {
            command.arg("-append").arg(line);
        }
        Ok(command)
    }
}

impl Contender for Qemu {
    fn name(&self) -> &'static str {
        self.name
    }

    fn run(&mut self, guest: &Guest, patience: Duration) -> Result<Lap, CpuBenchError> {
        let failed = |source| CpuBenchError::Qemu {
            guest: guest.name.clone(),
            contender: self.name,
            source,
        };
        let images = tempfile::tempdir().map_err(failed)?;
        let mut command = self.command(guest, images.path()).map_err(failed)?;
        let started = Instant::now();
        let mut process = Process(command.spawn().map_err(failed)?);
        let mut output = process.0.stdout.take().expect("piped");
        let mut begun = (started, Duration::ZERO);
        let mut console = Console::new(guest);
        let mut bytes = [0; 4096];
        loop {
            let left = patience.saturating_sub(started.elapsed());
            let timeout = Timespec::try_from(left).expect("patience is not for ever");
            let mut wait = [PollFd::new(&output, PollFlags::IN)];
            if poll(&mut wait, Some(&timeout)).map_err(|e| failed(e.into()))? == 0 {
                return Err(CpuBenchError::TooLong {
                    guest: guest.name.clone(),
                    contender: self.name,
                    mark: console.awaited().to_owned(),
                    patience,
                    words: console.last_words(),
                });
            }
            let count = output.read(&mut bytes).map_err(failed)?;
            if count == 0 {
                return Err(CpuBenchError::Ended {
                    guest: guest.name.clone(),
                    contender: self.name,
                    mark: console.awaited().to_owned(),
                    words: console.last_words(),
                });
            }
            console.say(&bytes[..count]);
            while let Some(mark) = console.mark() {
                let now = Instant::now();
                let used = process.processor().map_err(failed)?;
                if mark == Mark::End {
                    return Ok(Lap {
                        wall: now - begun.0,
                        processor: used.saturating_sub(begun.1),
                        instructions: None,
                    });
                }
                begun = (now, used);
            }
        }
    }
}
