//! The archive that the kernel unpacks: cpio's "newc" format (Linux,
//! `Documentation/driver-api/early-userspace/buffer-format.rst`).
//!
//! The same tree gives the same bytes: entries in order, i-nodes numbered from 1, one modification time.

use super::tree::{Entry, Node, Tree};
use std::io::{self, Write};

/// Modification time of everything, Unix seconds: 2023-11-14. Not 0, which some programs take for "none".
pub const MODIFIED: u32 = 1_700_000_000;
const MAGIC: &str = "070701";
const TRAILER: &str = "TRAILER!!!";
/// Bytes of a header: the magic and 13 fields of 8 hexadecimal digits.
const HEADER: usize = 6 + 13 * 8;

const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;
const S_IFCHR: u32 = 0o020_000;

/// Writes `tree` as one archive.
///
/// # Errors
/// `to` fails, or a file has 4 GiB or more, which the format cannot say (`InvalidInput`).
pub fn write(tree: &Tree, to: &mut impl Write) -> io::Result<()> {
    let mut inode = 0;
    for (path, entry) in tree.iter() {
        inode += 1;
        write_entry(inode, path, entry, to)?;
    }
    header(to, &Fields::default(), TRAILER)?;
    Ok(())
}

#[derive(Default)]
struct Fields {
    inode: u32,
    mode: u32,
    uid: u32,
    gid: u32,
    links: u32,
    modified: u32,
    bytes: u32,
    major: u32,
    minor: u32,
}

fn write_entry(inode: u32, path: &str, entry: &Entry, to: &mut impl Write) -> io::Result<()> {
    let (kind, data): (u32, &[u8]) = match &entry.node {
        Node::Directory => (S_IFDIR, &[]),
        Node::File(contents) => (S_IFREG, contents),
        Node::Symlink(target) => (S_IFLNK, target.as_bytes()),
        Node::CharacterDevice { .. } => (S_IFCHR, &[]),
    };
    let (major, minor) = match entry.node {
        Node::CharacterDevice { major, minor } => (major, minor),
        _ => (0, 0),
    };
    let bytes = u32::try_from(data.len()).map_err(|_| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "{path} has {} bytes, and a cpio archive holds files of less than 4 GiB",
                data.len()
            ),
        )
    })?;
    let fields = Fields {
        inode,
        mode: kind | (entry.mode & 0o7777),
        uid: entry.uid,
        gid: entry.gid,
        links: if kind == S_IFDIR { 2 } else { 1 },
        modified: MODIFIED,
        bytes,
        major,
        minor,
    };
    header(to, &fields, path)?;
    to.write_all(data)?;
    pad(to, data.len())
}

fn header(to: &mut impl Write, fields: &Fields, name: &str) -> io::Result<()> {
    // Device numbers of where the file was archived from: none. Checksum: none in this variant.
    let (device_major, device_minor, check) = (0, 0, 0);
    let name_bytes = name.len() as u32 + 1;
    write!(to, "{MAGIC}")?;
    for field in [
        fields.inode,
        fields.mode,
        fields.uid,
        fields.gid,
        fields.links,
        fields.modified,
        fields.bytes,
        device_major,
        device_minor,
        fields.major,
        fields.minor,
        name_bytes,
        check,
    ] {
        write!(to, "{field:08X}")?;
    }
    to.write_all(name.as_bytes())?;
    to.write_all(&[0])?;
    pad(to, HEADER + name.len() + 1)
}

/// Zeros up to a multiple of 4.
fn pad(to: &mut impl Write, written: usize) -> io::Result<()> {
    to.write_all(&[0; 3][..written.next_multiple_of(4) - written])
}
