//! `--disk`: what backs a machine's disks on this host.

use super::machine::MachineError;
use crate::config::DiskSection;
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
    /// For the run; the copy record of an own disk lies in `records`, or beside the disk.
    pub fn backing(&self, records: Option<&Path>) -> DiskBacking {
        DiskBacking {
            path: self.path.clone(),
            sharing: self.sharing,
            records: records.map(Path::to_owned),
        }
    }
}

/// The machine's disks: each as large as what backs it, and otherwise as its section of the VM's file says.
///
/// # Errors
/// A file cannot be opened, or a section has none.
pub fn disk_specs(
    arguments: &[DiskArgument],
    sections: &[DiskSection],
) -> Result<Vec<DiskSpec>, MachineError> {
    if sections.len() > arguments.len() {
        return Err(MachineError::DiskSections {
            sections: sections.len(),
            arguments: arguments.len(),
        });
    }
    let spec = |(number, disk): (usize, &DiskArgument)| {
        let bytes = size(&disk.path).map_err(|source| MachineError::Disk {
            path: disk.path.clone(),
            source,
        })?;
        let section = sections.get(number).cloned().unwrap_or_default();
        Ok(DiskSpec {
            serial: (section.serial).unwrap_or_else(|| format!("lockstep-{number}")),
            bytes,
            read_only: section.read_only,
            queues: section.queues,
            write_cache: section.write_cache,
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
        let parse = |text: &str| text.parse::<DiskArgument>().unwrap().backing(None);
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
    fn a_disk_is_as_large_as_its_file_and_otherwise_as_its_section_says() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let argument: DiskArgument = file.path().to_str().unwrap().parse().unwrap();
        let arguments = [argument.clone(), argument];
        let section = DiskSection {
            serial: Some("web-data".to_owned()),
            queues: 4,
            read_only: true,
            write_cache: false,
        };
        let specs = disk_specs(&arguments, &[section]).unwrap();
        let first = DiskSpec {
            serial: "web-data".to_owned(),
            bytes: 1 << 20,
            read_only: true,
            queues: 4,
            write_cache: false,
        };
        let second = DiskSpec {
            serial: "lockstep-1".to_owned(),
            bytes: 1 << 20,
            ..DiskSpec::default()
        };
        assert_eq!(specs, [first, second]);
    }

    #[test]
    fn a_disk_without_a_file_is_refused() {
        let missing = ["/nonexistent".parse().unwrap()];
        assert!(disk_specs(&missing, &[]).is_err());
        let error = disk_specs(&[], &[DiskSection::default()]).unwrap_err();
        assert!(error.to_string().contains("--disk FILE"), "{error}");
    }
}
