use std::os::unix::fs::MetadataExt;

use super::*;
use crate::ft::disk::copy::PairingId;
use crate::host::test_storage::{mount_memory, with_mounts};

const MIB: u64 = 1 << 20;
const BYTES: u64 = 3 * MIB + 512;

struct Disk {
    directory: tempfile::TempDir,
}

impl Disk {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let disk = Self { directory };
        File::create(disk.path()).unwrap().set_len(BYTES).unwrap();
        disk
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("disk")
    }

    fn record(&self) -> PathBuf {
        self.directory.path().join("disk.copy")
    }

    fn open(&self) -> Result<CopyFile, CopyError> {
        CopyFile::open(&self.path(), BYTES, None)
    }

    fn paired(&self, standing: Standing) -> CopyFile {
        let mut copy = self.open().unwrap();
        copy.replace(Record::new(PairingId(7), standing, BYTES))
            .unwrap();
        copy
    }
}

#[test]
fn what_was_marked_and_committed_is_there_after_a_crash() {
    let disk = Disk::new();
    let mut copy = disk.paired(Standing::Led);
    assert!(copy.mark(2 * MIB, 512));
    assert!(!copy.mark(2 * MIB + 4096, 512), "the same chunk");
    copy.commit().unwrap();
    assert!(copy.mark(0, 512));
    copy.stand(Standing::Alone).unwrap();
    // Not committed: nothing was written there.
    drop(copy);
    let copy = disk.open().unwrap();
    let record = copy.record().unwrap();
    assert_eq!(
        (record.pairing, record.standing),
        (PairingId(7), Standing::Alone)
    );
    assert_eq!((record.map.count(), record.map.contains(2)), (1, true));
}

#[test]
fn a_new_record_takes_the_place_of_the_old_one_whole() {
    let disk = Disk::new();
    let mut copy = disk.paired(Standing::Followed);
    copy.mark(0, BYTES);
    copy.commit().unwrap();
    copy.replace(Record::new(PairingId(8), Standing::Led, BYTES))
        .unwrap();
    // What is marked from here on goes to the new one.
    copy.mark(MIB, 1);
    copy.commit().unwrap();
    drop(copy);
    let copy = disk.open().unwrap();
    let record = copy.record().unwrap();
    assert_eq!((record.pairing, record.map.count()), (PairingId(8), 1));
    let files = std::fs::read_dir(disk.directory.path()).unwrap().count();
    assert_eq!(files, 2, "the disk and its record");
}

#[test]
fn a_record_that_finds_no_room_is_an_error_and_the_one_before_it_stands() {
    let test = "a_record_that_finds_no_room_is_an_error_and_the_one_before_it_stands";
    with_mounts(test, |directory| {
        let records = directory.join("records");
        std::fs::create_dir(&records).unwrap();
        mount_memory("tmpfs", &records, MIB)?;
        let path = directory.join("disk");
        File::create(&path).unwrap().set_len(BYTES).unwrap();
        let open = || CopyFile::open(&path, BYTES, Some(&records)).unwrap();
        let mut copy = open();
        let record = |pairing| Record::new(PairingId(pairing), Standing::Led, BYTES);
        copy.replace(record(1)).unwrap();
        let mut ballast = File::create(records.join("ballast")).unwrap();
        while ballast.write_all(&[1; 4096]).is_ok() {}
        let error = copy.replace(record(2)).unwrap_err();
        assert!(
            matches!(&error, CopyError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull),
            "{error}"
        );
        // What is noted in the record needs no room: it has its pages already.
        assert!(copy.mark(MIB, 512));
        copy.commit().unwrap();
        copy.stand(Standing::Alone).unwrap();
        drop(copy);
        let mut copy = open();
        let found = copy.record().unwrap();
        assert_eq!(
            (found.pairing, found.standing, found.map.contains(1)),
            (PairingId(1), Standing::Alone, true)
        );
        ballast.set_len(0).unwrap();
        copy.replace(record(2)).unwrap();
        drop(copy);
        assert_eq!(open().record().unwrap().pairing, PairingId(2));
        Ok(())
    });
}

#[test]
fn a_disk_of_ones_own_is_one_processs_alone() {
    let disk = Disk::new();
    let first = disk.open().unwrap();
    assert!(matches!(disk.open(), Err(CopyError::InUse { .. })));
    drop(first);
    disk.open().unwrap();
}

#[test]
fn a_copy_is_not_shared_nor_run_on_before_it_is_whole() {
    let disk = Disk::new();
    check_shared(&disk.path(), None).unwrap();
    drop(disk.paired(Standing::Filling));
    let refused = check_shared(&disk.path(), None).unwrap_err();
    assert!(matches!(refused, CopyError::NotShared { .. }), "{refused}");
    let link = disk.directory.path().join("other name");
    std::os::unix::fs::symlink(disk.path(), &link).unwrap();
    assert!(check_shared(&link, None).is_err(), "by another name");
    let copy = disk.open().unwrap();
    assert!(matches!(
        copy.check_whole(),
        Err(CopyError::Incomplete { .. })
    ));
}

#[test]
fn a_record_that_is_none_is_refused_with_what_to_do() {
    let disk = Disk::new();
    drop(disk.paired(Standing::Led));
    let whole = std::fs::read(disk.record()).unwrap();
    let mut damaged = whole.clone();
    damaged[40] ^= 1;
    let longer = [&whole[..], &[0; 4096]].concat();
    for bytes in [&b"my notes"[..], &whole[..4096], &damaged, &longer] {
        std::fs::write(disk.record(), bytes).unwrap();
        let error = disk.open().unwrap_err();
        assert!(matches!(error, CopyError::Record { .. }), "{error}");
        assert!(error.to_string().contains("delete the record"), "{error}");
    }
    std::fs::write(disk.record(), whole).unwrap();
    disk.open().unwrap();
}

#[test]
fn a_record_may_lie_elsewhere() {
    let disk = Disk::new();
    let records = tempfile::tempdir().unwrap();
    let mut copy = CopyFile::open(&disk.path(), BYTES, Some(records.path())).unwrap();
    copy.replace(Record::new(PairingId(1), Standing::Led, BYTES))
        .unwrap();
    assert!(records.path().join("disk.copy").exists());
    assert!(!disk.record().exists());
    assert!(check_shared(&disk.path(), Some(records.path())).is_err());
}

#[test]
fn a_disk_without_a_record_is_blank_until_something_is_on_it() {
    let disk = Disk::new();
    let mut copy = disk.open().unwrap();
    assert_eq!(copy.state().unwrap(), CopyState::Blank);
    assert!(!copy.mark(0, 512), "nothing to be kept");
    copy.commit().unwrap();
    assert!(!disk.record().exists());
    let last = crate::ft::disk::resync::blocks_of(BYTES) - 1;
    copy.write_block(last, &[0; 512]).unwrap();
    assert_eq!(
        copy.state().unwrap(),
        CopyState::Blank,
        "zeros that are no hole"
    );
    copy.write_block(last, &[1; 512]).unwrap();
    assert_eq!(copy.state().unwrap(), CopyState::Unknown);
}

#[test]
fn blocks_are_read_as_they_were_written_holes_included() {
    let disk = Disk::new();
    let mut copy = disk.open().unwrap();
    let mut buffer = vec![9; BLOCK_BYTES];
    let last = crate::ft::disk::resync::blocks_of(BYTES) - 1;
    let data = [5; BLOCK_BYTES];
    copy.write_block(3, &data).unwrap();
    copy.write_block(last, &data[..512]).unwrap();
    for block in 0..=last {
        let expected = match block {
            3 => &data[..],
            block if block == last => &data[..512],
            _ => &[0; BLOCK_BYTES][..],
        };
        let found = copy.read_block(block, &mut buffer).unwrap();
        assert!(found == expected, "{block}");
    }
    copy.zero_block(3).unwrap();
    let zeroed = copy.read_block(3, &mut buffer).unwrap();
    assert!(zeroed.iter().all(|byte| *byte == 0));
    copy.sync().unwrap();
    let metadata = std::fs::metadata(disk.path()).unwrap();
    assert_eq!(metadata.len(), BYTES);
    let used = metadata.blocks() * 512;
    assert!(used <= 8192, "{used} bytes: a zeroed block is a hole again");
}
