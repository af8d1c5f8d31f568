//! `--disk`: what backs a machine's disks on this host.

use super::machine::MachineError;
use lockstep_vmm::host::disk::Sharing;
use lockstep_vmm::machine::DiskSpec;
use lockstep_vmm::run::DiskBacking;
use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// `[shared:|own:]FILE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskArgument {
    path: PathBuf,
    sharing: Sharing,
}

impl FromStr for DiskArgument {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        let (sharing, path) = match text.split_once(':') {
            Some(("own", path)) => (Sharing::Own, path),
            Some(("shared", path)) => (Sharing::Shared, path),
            _ => (Sharing::Shared, text),
        };
        Ok(Self {
            path: path.into(),
            sharing,
        })
    }
}

impl DiskArgument {
    /// For the run.
    pub fn backing(&self) -> DiskBacking {
        DiskBacking {
            path: self.path.clone(),
            sharing: self.sharing,
        }
    }
}

/// The machine's disks: as large as what backs them, named `lockstep-0` and so on.
///
/// # Errors
/// A file cannot be opened.
pub fn disk_specs(arguments: &[DiskArgument]) -> Result<Vec<DiskSpec>, MachineError> {
    let spec = |(number, disk): (usize, &DiskArgument)| {
        let bytes = size(&disk.path).map_err(|source| MachineError::Disk {
            path: disk.path.clone(),
            source,
        })?;
        Ok(DiskSpec {
            serial: format!("lockstep-{number}"),
            bytes,
            ..DiskSpec::default()
        })
    };
    arguments.iter().enumerate().map(spec).collect()
}

/// Of a file or a block device, bytes.
fn size(path: &Path) -> io::Result<u64> {
    File::open(path)?.seek(SeekFrom::End(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_shared_unless_it_is_said_to_be_own() {
        let parse = |text: &str| text.parse::<DiskArgument>().unwrap().backing();
        for (text, path, sharing) in [
            ("/srv/a.img", "/srv/a.img", Sharing::Shared),
            ("shared:/srv/a.img", "/srv/a.img", Sharing::Shared),
            ("own:b", "b", Sharing::Own),
            (
                "/dev/disk/by-path/pci-0:1",
                "/dev/disk/by-path/pci-0:1",
                Sharing::Shared,
            ),
        ] {
            let found = parse(text);
            assert_eq!(
                (found.path, found.sharing),
                (path.into(), sharing),
                "{text}"
            );
        }
    }

    #[test]
    fn a_disk_is_as_large_as_its_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let argument: DiskArgument = file.path().to_str().unwrap().parse().unwrap();
        let specs = disk_specs(&[argument]).unwrap();
        assert_eq!((specs[0].bytes, &*specs[0].serial), (1 << 20, "lockstep-0"));
        assert!(disk_specs(&["/nonexistent".parse().unwrap()]).is_err());
    }
}
