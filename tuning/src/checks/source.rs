//! Where facts are read: the files of the kernel, or a directory that looks like them.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// What a file says, or why it cannot be read.
pub(super) type Text = Result<String, String>;

/// Most that is read of a file. `/proc/interrupts` of a large host is the longest of them.
const LONGEST: u64 = 4 << 20;

/// Most entries of a directory that are looked at.
const MOST_ENTRIES: usize = 4096;

/// A tree of files.
pub(super) struct Source {
    root: PathBuf,
}

impl Source {
    /// This host.
    pub fn host() -> Self {
        Self::at("/")
    }

    /// A tree below `root`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn place(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// The text of a file, without the white space around it; of a longer one its beginning.
    pub fn text(&self, path: &str) -> Text {
        let mut bytes = Vec::new();
        File::open(self.place(path))
            .and_then(|file| file.take(LONGEST).read_to_end(&mut bytes))
            .map_err(|error| format!("{path}: {error}"))?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// The names in a directory, in order.
    pub fn names(&self, path: &str) -> Result<Vec<String>, String> {
        let entries =
            std::fs::read_dir(self.place(path)).map_err(|error| format!("{path}: {error}"))?;
        let mut names: Vec<String> = entries
            .take(MOST_ENTRIES)
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        names.sort_unstable();
        Ok(names)
    }

    /// The last part of where a symbolic link leads.
    pub fn link_name(&self, path: &str) -> Option<String> {
        let target = std::fs::read_link(self.place(path)).ok()?;
        let name = Path::new(&target).file_name()?;
        Some(name.to_str()?.to_owned())
    }
}
