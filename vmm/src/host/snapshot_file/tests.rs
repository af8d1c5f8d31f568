use proptest::prelude::*;

use super::*;
use crate::ft::vm::{DigestScope, Vm};

/// A machine some way into the bare tenant's life.
fn machine() -> (Machine, Origin) {
    let kernel = lockstep_guest::bare_tenant();
    let config = MachineConfig {
        memory_bytes: 16 << 20,
        ..MachineConfig::default()
    };
    let mut machine = Machine::new(&config, kernel).unwrap();
    for _ in 0..100 {
        machine.run(machine.position() + 10_000).unwrap();
        while let Some(output) = machine.next_output() {
            machine.recycle(output);
        }
    }
    (machine, Origin::of(kernel, None))
}

fn saved() -> (tempfile::TempDir, PathBuf, Machine, Origin) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tenant.snapshot");
    let (mut machine, origin) = machine();
    let digest = SnapshotFile::write(&path, &mut machine, &origin, &[]).unwrap();
    assert_eq!(SnapshotFile::open(&path).unwrap().digest(), digest);
    (directory, path, machine, origin)
}

#[test]
fn a_machine_goes_on_from_its_file_as_if_nothing_had_happened() {
    let (_directory, path, mut original, origin) = saved();
    let file = SnapshotFile::open(&path).unwrap();
    file.check(original.config(), &origin).unwrap();
    let mut restored = file.restore(EngineKind::Soft).unwrap();
    let digests = |machine: &mut Machine| machine.digest(DigestScope::Full).unwrap();
    assert_eq!(restored.position(), original.position());
    assert_eq!(restored.clock(), original.clock());
    assert_eq!(digests(&mut restored), digests(&mut original));
    for machine in [&mut original, &mut restored] {
        let clock = machine.clock() + 5_000_000;
        machine
            .apply(clock, crate::ft::vm::Event::Console(b"x"))
            .unwrap();
        machine.run(machine.position() + 100_000).unwrap();
    }
    assert_eq!(digests(&mut restored), digests(&mut original));
}

#[test]
fn another_disk_is_refused_with_both_digests_and_a_copy_is_not() {
    let (directory, path, mut machine, origin) = saved();
    let disk = directory.path().join("disk");
    std::fs::write(&disk, vec![7; 100_000]).unwrap();
    SnapshotFile::write(&path, &mut machine, &origin, &[&disk]).unwrap();
    let file = SnapshotFile::open(&path).unwrap();
    let copy = directory.path().join("copy");
    disk_template::copy(&disk, &copy).unwrap();
    file.check_disks(&[&copy]).unwrap();
    let expected = format!("{:032x}", disk_template::digest(&disk).unwrap());
    std::fs::write(&copy, vec![8; 100_000]).unwrap();
    let found = format!("{:032x}", disk_template::digest(&copy).unwrap());
    for (disks, found) in [(&[&*copy][..], &*found), (&[], "none")] {
        let error = file.check_disks(disks).unwrap_err().to_string();
        for part in ["disk 0", found, &expected] {
            assert!(error.contains(part), "{error}");
        }
    }
    let error = file.check_disks(&[&disk, &disk]).unwrap_err();
    assert!(error.to_string().contains("disk 1"), "{error}");
}

#[test]
fn pages_of_zeros_are_not_in_the_file() {
    let (_directory, path, ..) = saved();
    let bytes = std::fs::metadata(&path).unwrap().len();
    assert!(bytes < 4 << 20, "{bytes} bytes for 16 MiB mostly untouched");
}

#[test]
fn another_machine_or_another_kernel_is_refused_by_name_with_both_values() {
    let (_directory, path, machine, origin) = saved();
    let file = SnapshotFile::open(&path).unwrap();
    let other = MachineConfig {
        memory_bytes: 32 << 20,
        ..machine.config().clone()
    };
    let error = file.check(&other, &origin).unwrap_err().to_string();
    for part in ["memory-bytes", "16777216", "33554432"] {
        assert!(error.contains(part), "{error}");
    }
    let other = Origin::of(b"another kernel", None);
    let error = file
        .check(machine.config(), &other)
        .unwrap_err()
        .to_string();
    for part in ["kernel-xxh3", &other.kernel_xxh3, &origin.kernel_xxh3] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_file_that_is_no_snapshot_or_of_another_version_is_refused() {
    let (directory, path, ..) = saved();
    let bytes = std::fs::read(&path).unwrap();
    let other = directory.path().join("other");
    let open = |bytes: &[u8]| {
        std::fs::write(&other, bytes).unwrap();
        SnapshotFile::open(&other).unwrap_err()
    };
    assert!(matches!(open(b"LSTEP"), SnapshotError::Magic { .. }));
    assert!(matches!(open(&bytes[..40]), SnapshotError::Field { .. }));
    let mut newer = bytes;
    newer[8] = VERSION as u8 + 1;
    let error = open(&newer);
    assert!(
        matches!(error, SnapshotError::Version { found } if found == VERSION + 1),
        "{error}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Wherever a byte changes or the file ends, nobody starts from it.
    #[test]
    fn a_damaged_file_is_refused(place: prop::sample::Index, flip in 1u8.., cut: bool) {
        let (_directory, path, ..) = saved();
        let mut bytes = std::fs::read(&path).unwrap();
        let header = SnapshotFile::open(&path).unwrap().header;
        let place = place.index(bytes.len());
        let parts = Parts::of(&header, bytes.len()).unwrap();
        if cut {
            bytes.truncate(place);
        } else {
            // Only the filling between the table and the page is nobody's.
            prop_assume!(!(parts.table.end..parts.memory.start).contains(&place));
            bytes[place] ^= flip;
        }
        std::fs::write(&path, &bytes).unwrap();
        let refused = SnapshotFile::open(&path)
            .and_then(|file| file.restore(EngineKind::Soft).map(drop));
        prop_assert!(refused.is_err());
    }
}
