//! A saved log: the entries of a run in a file that describes itself, for replay offline.
//!
//! | offset | size | what |
//! |---|---|---|
//! | 0 | 8 | magic, [`MAGIC`] |
//! | 8 | 4 | version of this format, [`VERSION`], little-endian |
//! | 12 | 4 | bytes of the hello that follows, little-endian |
//! | 16 | | the hello of the side that saved, as it travels: VM, engine, machine, image digests |
//! | behind it | | entries, as they were in the ring |
//!
//! A file whose writer was killed ends anywhere; the whole entries in it are good.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::entry::Entry;
use crate::protocol::hello::{Hello, HelloError, MAX_BODY_BYTES, Message, PREAMBLE_BYTES};

/// How every saved log begins.
pub const MAGIC: [u8; 8] = *b"LSTEPLOG";

/// Version of the format.
pub const VERSION: u32 = 1;

const HEADER_BYTES: usize = 16;

/// A saved log cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum LogFileError {
    /// The file system refused.
    #[error("{step} {}: {source}", path.display())]
    Io {
        /// What was being done.
        step: &'static str,
        /// The file.
        path: PathBuf,
        /// The answer.
        source: io::Error,
    },
    /// No saved log.
    #[error(
        "saved log field `magic`: found {found:02x?}, expected {MAGIC:02x?}: this is no file that Lockstep saved"
    )]
    Magic {
        /// What the file begins with, at most 8 bytes.
        found: Vec<u8>,
    },
    /// Another version's.
    #[error(
        "saved log field `version`: found {found}, expected {VERSION}: replay it with the version that saved it"
    )]
    Version {
        /// In the file.
        found: u32,
    },
    /// The header is longer than any.
    #[error("saved log field `hello length`: found {found}, expected at most {maximum}", maximum = PREAMBLE_BYTES + MAX_BODY_BYTES)]
    HelloLength {
        /// In the file.
        found: u32,
    },
    /// The file ends before its entries begin.
    #[error("the saved log ends after {found} bytes, expected at least {expected}: it was cut off")]
    Truncated {
        /// Bytes there are.
        found: usize,
        /// Bytes the header needs.
        expected: usize,
    },
    /// The hello in it is damaged.
    #[error("the saved log's header: {0}")]
    Hello(#[from] HelloError),
}

/// Writes a saved log.
#[derive(Debug)]
pub struct LogFileWriter {
    file: BufWriter<File>,
    path: PathBuf,
}

impl LogFileWriter {
    /// Creates (or empties) the file and writes its header.
    ///
    /// # Errors
    /// The file system refused, or the hello is none that can travel.
    pub fn create(path: &Path, hello: &Hello) -> Result<Self, LogFileError> {
        let io = |step| {
            let path = path.to_owned();
            move |source| LogFileError::Io { step, path, source }
        };
        let hello = Message::Hello(hello.clone()).encode()?;
        let file = File::create(path).map_err(io("creating"))?;
        let mut file = BufWriter::with_capacity(1 << 20, file);
        // At most `PREAMBLE_BYTES + MAX_BODY_BYTES`, by `encode`.
        let length = hello.len() as u32;
        let header = [
            &MAGIC[..],
            &VERSION.to_le_bytes(),
            &length.to_le_bytes(),
            &hello,
        ];
        file.write_all(&header.concat()).map_err(io("writing"))?;
        Ok(Self {
            file,
            path: path.to_owned(),
        })
    }

    /// Appends one entry, in its wire form with its padding.
    ///
    /// # Errors
    /// The file system refused.
    pub fn append(&mut self, entry: &Entry<'_>) -> Result<(), LogFileError> {
        let written = self.file.write_all(entry.as_bytes());
        written.map_err(|source| self.error("writing", source))
    }

    /// Writes out what is buffered.
    ///
    /// # Errors
    /// The file system refused.
    pub fn flush(&mut self) -> Result<(), LogFileError> {
        self.file
            .flush()
            .map_err(|source| self.error("writing", source))
    }

    fn error(&self, step: &'static str, source: io::Error) -> LogFileError {
        LogFileError::Io {
            step,
            path: self.path.clone(),
            source,
        }
    }
}

/// A saved log, mapped.
#[derive(Debug)]
pub struct LogFile {
    map: Mmap,
    hello: Hello,
    entries_at: usize,
}

impl LogFile {
    /// Opens the file and checks its header. Entries are checked as they are read.
    ///
    /// # Errors
    /// It cannot be read, or is no saved log of this version.
    pub fn open(path: &Path) -> Result<Self, LogFileError> {
        let io = |step| {
            let path = path.to_owned();
            move |source| LogFileError::Io { step, path, source }
        };
        let file = File::open(path).map_err(io("opening"))?;
        // SAFETY: the mapping is private and only read. Should another process shorten the file
        // meanwhile, reading ends this process with SIGBUS, which `lockstep replay` risks on files
        // that its user names; changed bytes are caught by each entry's CRC, or are garbage that the
        // decoder refuses.
        let map = unsafe { Mmap::map(&file) }.map_err(io("mapping"))?;
        let (hello, entries_at) = header(&map)?;
        Ok(Self {
            map,
            hello,
            entries_at,
        })
    }

    /// What was run: the hello of the side that saved it.
    #[must_use]
    pub const fn hello(&self) -> &Hello {
        &self.hello
    }

    /// The bytes of the entries.
    #[must_use]
    pub fn entries(&self) -> &[u8] {
        &self.map[self.entries_at..]
    }
}

fn header(bytes: &[u8]) -> Result<(Hello, usize), LogFileError> {
    let magic = &bytes[..bytes.len().min(MAGIC.len())];
    if magic != MAGIC {
        return Err(LogFileError::Magic {
            found: magic.to_vec(),
        });
    }
    let short = |expected| LogFileError::Truncated {
        found: bytes.len(),
        expected,
    };
    let word = |at: usize| {
        let four = bytes.get(at..at + 4).and_then(|four| four.try_into().ok());
        four.map(u32::from_le_bytes)
            .ok_or_else(|| short(HEADER_BYTES))
    };
    let version = word(8)?;
    if version != VERSION {
        return Err(LogFileError::Version { found: version });
    }
    let length = word(12)?;
    if length as usize > PREAMBLE_BYTES + MAX_BODY_BYTES {
        return Err(LogFileError::HelloLength { found: length });
    }
    let end = HEADER_BYTES + length as usize;
    let hello = bytes.get(HEADER_BYTES..end).ok_or_else(|| short(end))?;
    match Message::decode(hello)? {
        Some(Message::Hello(hello)) => Ok((hello, end)),
        Some(Message::Refusal(refusal)) => Err(HelloError::Refused(refusal).into()),
        Some(other @ (Message::Lifeline(_) | Message::Resync(_))) => Err(HelloError::OutOfPlace {
            found: other.name(),
            expected: "hello",
        }
        .into()),
        None => Err(short(end + 1)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::entry::Sequence;
    use crate::protocol::Role;

    fn hello() -> Hello {
        Hello {
            role: Role::Backup,
            vm: "saved".into(),
            generation: Some(3),
            ring_bytes: 1 << 20,
            starts_behind: Sequence::NONE,
            configuration: BTreeMap::new(),
        }
    }

    fn saved() -> (tempfile::TempDir, PathBuf, Vec<u8>) {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("log");
        let mut writer = LogFileWriter::create(&path, &hello()).expect("created");
        writer.flush().expect("written");
        let bytes = std::fs::read(&path).expect("read back");
        (directory, path, bytes)
    }

    #[test]
    fn a_saved_log_says_what_was_run() {
        let (_directory, path, _) = saved();
        let file = LogFile::open(&path).expect("opened");
        assert_eq!(*file.hello(), hello());
        assert_eq!(file.entries(), b"");
    }

    #[test]
    fn a_header_cut_off_anywhere_is_said_to_be() {
        let (_directory, path, bytes) = saved();
        for length in 0..bytes.len() {
            std::fs::write(&path, &bytes[..length]).expect("written");
            assert!(
                LogFile::open(&path).is_err(),
                "{length} of {} bytes",
                bytes.len()
            );
        }
    }

    #[test]
    fn a_changed_header_is_refused_by_the_name_of_its_field() {
        let (_directory, path, bytes) = saved();
        for (at, field) in [
            (0, "magic"),
            (8, "version"),
            (14, "hello length"),
            (60, "crc"),
        ] {
            let mut changed = bytes.clone();
            changed[at] ^= 0x40;
            std::fs::write(&path, &changed).expect("written");
            let error = LogFile::open(&path).expect_err("refused").to_string();
            assert!(error.contains(field), "byte {at}: {error}");
        }
    }
}
