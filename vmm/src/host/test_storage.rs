//! File systems and devices of a test's own: they need root, and end with the test.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use lockstep_perf::not_run;

/// Runs a program of the system to its end.
fn call(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} {arguments:?}: {}", said.trim()))
}

/// Gives `body` a directory and mounts of its own, which end with it; says so if this process may not
/// mount. `body` says what else the host lacks.
pub fn with_mounts(test: &str, body: impl FnOnce(&Path) -> Result<(), String> + Send) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let outcome = std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            // SAFETY: no memory is passed. The mounts seen by this thread, and its working directory,
            // become its own; it ends with the test.
            if unsafe { libc::unshare(libc::CLONE_NEWNS) } < 0 {
                let error = std::io::Error::last_os_error();
                return Err(format!("mounts of its own: {error} (needs root)"));
            }
            call("mount", &["--make-rprivate", "/"])?;
            body(directory.path())
        });
        inside.join()
    });
    match outcome {
        Ok(Ok(())) => {}
        Ok(Err(lacking)) => not_run::report(test, &lacking),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Mounts an in-memory file system of at most `bytes` bytes (`ramfs` has no bound).
pub fn mount_memory(kind: &str, at: &Path, bytes: u64) -> Result<(), String> {
    let size = format!("size={bytes}");
    call("mount", &["-t", kind, "-o", &size, "none", text(at)]).map(drop)
}

/// A block device over a file.
pub struct LoopDevice(pub PathBuf);

impl LoopDevice {
    pub fn new(over: &Path, sector_bytes: u32) -> Result<Self, String> {
        let sector = sector_bytes.to_string();
        let device = call(
            "losetup",
            &["--find", "--show", "--sector-size", &sector, text(over)],
        )?;
        Ok(Self(device.into()))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // In use by a mount or a file, it goes with that.
        let _ = call("losetup", &["--detach", text(&self.0)]);
    }
}

/// An ext4 file system of 16 MiB at `directory/mounted`, over a loop device.
pub fn mount_ext4(directory: &Path) -> Result<(LoopDevice, PathBuf), String> {
    let image = directory.join("image");
    let bytes = 16 << 20;
    let file = File::create(&image).map_err(|error| error.to_string())?;
    file.set_len(bytes).map_err(|error| error.to_string())?;
    call("mkfs.ext4", &["-q", "-F", text(&image)])?;
    let device = LoopDevice::new(&image, 512)?;
    let at = directory.join("mounted");
    std::fs::create_dir(&at).map_err(|error| error.to_string())?;
    call("mount", &[text(&device.0), text(&at)])?;
    Ok((device, at))
}

/// A file system that lets no write through while this lives.
pub struct Frozen(PathBuf);

impl Frozen {
    pub fn new(at: &Path) -> Result<Self, String> {
        call("fsfreeze", &["--freeze", text(at)])?;
        Ok(Self(at.to_owned()))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        call("fsfreeze", &["--unfreeze", text(&self.0)]).expect("a frozen file system thaws");
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are UTF-8")
}
