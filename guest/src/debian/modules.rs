//! Which kernel modules a guest loads, and in which order.
//!
//! Debian's package has no `modules.dep` (its maintainer script makes it), so dependencies are read
//! where depmod(8) reads them: from `depends=` in each module's `.modinfo` section.

use super::error::GuestBuildError;
use object::{Object, ObjectSection};
use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;

/// What the machine has: virtio over MMIO, a network interface, a source of entropy, a disk. ext4 is
/// here for kernels that do not have it built in.
pub(super) const NEEDED: [&str; 5] = [
    "virtio_mmio",
    "virtio_net",
    "virtio_rng",
    "virtio_blk",
    "ext4",
];

/// Depth of dependencies that is followed: real ones have five levels.
const DEPTH_MOST: usize = 32;

/// A module: its path, and its contents.
pub(super) type Module = (String, Arc<[u8]>);

/// The modules of one kernel.
#[derive(Debug)]
pub(super) struct Modules {
    release: String,
    /// By name, with `_` for `-` as the kernel has it: path and contents.
    loadable: BTreeMap<String, Module>,
    built_in: Vec<String>,
}

impl Modules {
    /// `files` are paths and contents; `built_in` is the kernel's `modules.builtin`.
    pub(super) fn new(release: &str, files: impl Iterator<Item = Module>, built_in: &str) -> Self {
        Self {
            release: release.to_owned(),
            loadable: files
                .filter_map(|(path, contents)| Some((name_of(&path)?, (path, contents))))
                .collect(),
            built_in: built_in.lines().filter_map(name_of).collect(),
        }
    }

    /// The modules among `wanted` that are not built in, and what they depend on, each after its
    /// dependencies: path without suffixes of compression, and contents.
    pub(super) fn in_order(&self, wanted: &[String]) -> Result<Vec<Module>, GuestBuildError> {
        let mut order = Vec::new();
        for name in wanted {
            self.add(&name.replace('-', "_"), 0, &mut order)?;
        }
        Ok(order)
    }

    fn add(
        &self,
        name: &str,
        depth: usize,
        order: &mut Vec<Module>,
    ) -> Result<(), GuestBuildError> {
        if depth > DEPTH_MOST {
            return Err(GuestBuildError::ModuleUnreadable {
                module: name.to_owned(),
                what: format!("it depends on itself, or on more than {DEPTH_MOST} levels"),
            });
        }
        let Some((path, contents)) = self.loadable.get(name) else {
            if self.built_in.iter().any(|built_in| built_in == name) {
                return Ok(());
            }
            return Err(GuestBuildError::ModuleMissing {
                release: self.release.clone(),
                module: name.to_owned(),
            });
        };
        let plain_path = path.split_inclusive(".ko").next().unwrap_or(path);
        if order.iter().any(|(there, _)| there == plain_path) {
            return Ok(());
        }
        let contents = plain(name, path, contents)?;
        for dependency in dependencies(name, &contents)? {
            self.add(&dependency, depth + 1, order)?;
        }
        order.push((plain_path.to_owned(), contents));
        Ok(())
    }
}

/// `kernel/drivers/char/hw_random/virtio-rng.ko.xz` is `virtio_rng`.
fn name_of(path: &str) -> Option<String> {
    let file = path.rsplit('/').next()?;
    let (name, _) = file.split_once(".ko")?;
    Some(name.replace('-', "_"))
}

fn dependencies(name: &str, contents: &[u8]) -> Result<Vec<String>, GuestBuildError> {
    let unreadable = |what: String| GuestBuildError::ModuleUnreadable {
        module: name.to_owned(),
        what,
    };
    let file = object::File::parse(contents).map_err(|error| unreadable(error.to_string()))?;
    let section = file
        .section_by_name(".modinfo")
        .ok_or_else(|| unreadable("it has no section .modinfo".to_owned()))?;
    let information = section
        .data()
        .map_err(|error| unreadable(error.to_string()))?;
    Ok(information
        .split(|byte| *byte == 0)
        .filter_map(|field| std::str::from_utf8(field).ok()?.strip_prefix("depends="))
        .flat_map(|names| names.split(','))
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect())
}

/// The module itself: later Debians compress them, and what the guest would spend on that is spent here.
fn plain(name: &str, path: &str, contents: &Arc<[u8]>) -> Result<Arc<[u8]>, GuestBuildError> {
    let program = match path.rsplit('.').next() {
        Some("ko") => return Ok(Arc::clone(contents)),
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => {
            return Err(GuestBuildError::ModuleUnreadable {
                module: name.to_owned(),
                what: format!(
                    "{path} is compressed in an unknown way; expected .ko, .ko.xz or .ko.zst"
                ),
            });
        }
    };
    let unreadable = |what: String| GuestBuildError::ModuleUnreadable {
        module: name.to_owned(),
        what,
    };
    let mut child = Command::new(program)
        .args(["-d", "-c"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| {
            unreadable(format!(
                "it is compressed, and `{program}` cannot be started ({error}): install it"
            ))
        })?;
    let mut to = child.stdin.take();
    let output = std::thread::scope(|scope| {
        // From a thread of its own: both pipes have an end, and neither waits for the other.
        scope.spawn(move || to.as_mut().map(|to| to.write_all(contents)));
        child.wait_with_output()
    })
    .map_err(|error| unreadable(error.to_string()))?;
    if !output.status.success() {
        return Err(unreadable(format!(
            "`{program}` cannot decompress it: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )));
    }
    Ok(output.stdout.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use object::write::Object as Written;
    use object::{Architecture, BinaryFormat, Endianness, SectionKind};

    fn module(depends: &str) -> Arc<[u8]> {
        let mut file = Written::new(BinaryFormat::Elf, Architecture::X86_64, Endianness::Little);
        let section = file.add_section(Vec::new(), b".modinfo".to_vec(), SectionKind::ReadOnlyData);
        let text = format!("license=GPL\0depends={depends}\0name=x\0");
        file.append_section_data(section, text.as_bytes(), 1);
        file.write().expect("an object").into()
    }

    fn modules(list: &[(&str, &str)]) -> Modules {
        let files = list
            .iter()
            .map(|(path, depends)| ((*path).to_owned(), module(depends)));
        Modules::new("6.1", files, "kernel/fs/ext4/ext4.ko\n")
    }

    fn order(modules: &Modules, wanted: &[&str]) -> Vec<String> {
        let wanted: Vec<String> = wanted.iter().map(|name| (*name).to_owned()).collect();
        let order = modules.in_order(&wanted).expect("an order");
        order.into_iter().map(|(path, _)| path).collect()
    }

    #[test]
    fn a_module_comes_after_those_it_depends_on_and_once() {
        let modules = modules(&[
            ("kernel/net_failover.ko", "failover"),
            ("kernel/virtio_net.ko", "virtio,net-failover"),
            ("kernel/failover.ko", ""),
            ("kernel/virtio-rng.ko", "virtio"),
            ("kernel/virtio.ko", ""),
            ("kernel/not-wanted.ko", ""),
        ]);
        assert_eq!(
            order(&modules, &["virtio_net", "virtio_rng", "ext4"]),
            [
                "kernel/virtio.ko",
                "kernel/failover.ko",
                "kernel/net_failover.ko",
                "kernel/virtio_net.ko",
                "kernel/virtio-rng.ko"
            ]
        );
    }

    #[test]
    fn what_cannot_be_loaded_is_named() {
        let modules = modules(&[("a.ko", "b"), ("b.ko", "a"), ("c.ko", "d")]);
        let says = |name: &str| {
            let error = modules.in_order(&[name.to_owned()]).expect_err(name);
            error.to_string()
        };
        assert!(says("a").contains("depends on itself"), "{}", says("a"));
        assert!(says("c").contains("no module d"), "{}", says("c"));
        let broken: Arc<[u8]> = Arc::from(&b"\x7fELF but not for long"[..]);
        let modules = Modules::new("6.1", [("e.ko".to_owned(), broken)].into_iter(), "");
        modules.in_order(&["e".to_owned()]).expect_err("no module");
    }
}
