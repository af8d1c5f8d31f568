//! What a disk holds, as the disk that goes with a snapshot: named by a digest, and copied for each
//! machine that starts from it. Neither sees where a file has holes: a hole is zeros.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::SeekFrom as Sparse;
use rustix::io::Errno;
use xxhash_rust::xxh3::Xxh3;

/// Bytes that are looked at together: those that are all zero count as a hole.
const CHUNK: u64 = 64 << 10;

/// Names the contents of the file or block device at `path`: XXH3-128 of its length and of every chunk of
/// 64 KiB that is not zero, behind its offset.
///
/// # Errors
/// It cannot be read.
pub fn digest(path: &Path) -> io::Result<u128> {
    let mut digest = Xxh3::new();
    let length = walk(&File::open(path)?, |offset, chunk| {
        digest.update(&offset.to_le_bytes());
        digest.update(chunk);
        Ok(())
    })?;
    digest.update(&length.to_le_bytes());
    Ok(digest.digest128())
}

/// Copies the file `from` to `to`, which must not exist, and leaves holes where it is zero. On disk when it
/// returns.
///
/// # Errors
/// One cannot be read, or the other written.
pub fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let mut copy = File::create_new(to)?;
    let length = walk(&File::open(from)?, |offset, chunk| {
        copy.write_all_at(chunk, offset)
    })?;
    copy.set_len(length)?;
    copy.flush()?;
    copy.sync_all()
}

/// Hands every chunk that is not zero to `each`, in order, with its offset. Returns the length.
fn walk(mut file: &File, mut each: impl FnMut(u64, &[u8]) -> io::Result<()>) -> io::Result<u64> {
    let length = file.seek(SeekFrom::End(0))?;
    let mut buffer = vec![0; CHUNK as usize];
    let mut offset = 0;
    while offset < length {
        match rustix::fs::seek(file, Sparse::Data(offset)) {
            // Chunks begin at multiples of their length, wherever data do.
            Ok(data) => offset = data - data % CHUNK,
            // No data from here on.
            Err(Errno::NXIO) => break,
            // Not for files of this kind: then all of it is data.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {}
            Err(error) => return Err(error.into()),
        }
        // As long as data go on: a look for holes at every chunk would be as many system calls again.
        let end = rustix::fs::seek(file, Sparse::Hole(offset)).unwrap_or(length);
        while offset < end.max(offset + 1).min(length) {
            let chunk = &mut buffer[..(length - offset).min(CHUNK) as usize];
            file.read_exact_at(chunk, offset)?;
            if chunk.iter().any(|byte| *byte != 0) {
                each(offset, chunk)?;
            }
            offset += CHUNK;
        }
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    /// 1 MiB and 512 bytes: a hole, a few bytes, zeros that are no hole, a hole, a last byte.
    fn sparse(path: &Path) {
        let file = File::create(path).unwrap();
        file.set_len((1 << 20) + 512).unwrap();
        file.write_all_at(b"data", 300_000).unwrap();
        file.write_all_at(&[0; 100_000], 400_000).unwrap();
        file.write_all_at(b"!", (1 << 20) + 511).unwrap();
    }

    #[test]
    fn a_copy_is_the_same_and_holds_no_more_than_is_not_zero() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("a"), directory.path().join("b"));
        sparse(&from);
        copy(&from, &to).unwrap();
        assert_eq!(std::fs::read(&from).unwrap(), std::fs::read(&to).unwrap());
        assert_eq!(digest(&from).unwrap(), digest(&to).unwrap());
        let used = std::fs::metadata(&to).unwrap().blocks() * 512;
        assert!(used <= 3 * CHUNK, "{used} bytes");
        assert!(copy(&from, &to).is_err(), "what is there is somebody's");
    }

    #[test]
    fn where_the_holes_are_changes_no_digest_and_every_byte_does() {
        let directory = tempfile::tempdir().unwrap();
        let (holes, full) = (directory.path().join("a"), directory.path().join("b"));
        sparse(&holes);
        std::fs::write(&full, std::fs::read(&holes).unwrap()).unwrap();
        let name = digest(&holes).unwrap();
        assert_eq!(name, digest(&full).unwrap());
        let file = File::options().write(true).open(&full).unwrap();
        for offset in [0, 300_001, 450_000, 1 << 20] {
            let mut was = [0];
            File::open(&full)
                .unwrap()
                .read_exact_at(&mut was, offset)
                .unwrap();
            file.write_all_at(&[was[0] ^ 1], offset).unwrap();
            assert_ne!(name, digest(&full).unwrap(), "byte {offset}");
            file.write_all_at(&was, offset).unwrap();
        }
        assert_eq!(name, digest(&full).unwrap());
        file.set_len((1 << 20) + 1024).unwrap();
        assert_ne!(name, digest(&full).unwrap(), "longer by zeros");
    }
}
