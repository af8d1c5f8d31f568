//! The file that is measured on.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use super::DiskBenchError;

/// A file that is written in full. It has no name, so that nothing of it is left however this ends.
pub(super) struct ScratchFile {
    file: File,
    bytes: u64,
}

impl ScratchFile {
    /// Makes one in `directory`, of content that no storage compresses, and sees it on the storage.
    pub(super) fn create(directory: &Path, bytes: u64) -> Result<Self, DiskBenchError> {
        let made = || -> io::Result<File> {
            let mut file = tempfile::tempfile_in(directory)?;
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
            file.sync_all()?;
            Ok(file)
        };
        let file = made().map_err(|source| DiskBenchError::File {
            path: directory.to_owned(),
            source,
        })?;
        Ok(Self { file, bytes })
    }

    /// Where this process and its children find it, as long as this lives.
    pub(super) fn path(&self) -> PathBuf {
        let fd = self.file.as_raw_fd();
        format!("/proc/{}/fd/{fd}", std::process::id()).into()
    }

    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }
}
