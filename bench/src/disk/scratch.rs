//! The file that is measured on.

use std::io;
use std::io::Write;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use super::DiskBenchError;

/// A file that is written in full, and removed with this.
pub(super) struct ScratchFile {
    file: NamedTempFile,
    bytes: u64,
}

impl ScratchFile {
    /// Makes one in `directory`, of content that no storage compresses, and sees it on the storage.
    pub(super) fn create(directory: &Path, bytes: u64) -> Result<Self, DiskBenchError> {
        let made = || -> io::Result<NamedTempFile> {
            let mut file = tempfile::Builder::new()
                .prefix("lockstep-bench-disk-")
                .tempfile_in(directory)?;
            let mut chunk = vec![0_u8; 1 << 20];
            let mut state = 0x2545_f491_4f6c_dd1d_u64;
            for _ in 0..bytes / chunk.len() as u64 {
                for word in chunk.chunks_exact_mut(8) {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    word.copy_from_slice(&state.to_le_bytes());
                }
                file.write_all(&chunk)?;
            }
            file.as_file().sync_all()?;
            Ok(file)
        };
        let file = made().map_err(|source| DiskBenchError::File {
            path: directory.to_owned(),
            source,
        })?;
        Ok(Self { file, bytes })
    }

    pub(super) fn path(&self) -> PathBuf {
        self.file.path().to_owned()
    }

    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }
}
