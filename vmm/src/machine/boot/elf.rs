//! What must be known of an ELF64 image before it is loaded (System V ABI, "Object Files"). The
//! loading itself is `linux-loader`'s, which checks neither the machine nor where segments end.

use std::ops::Range;

const MAGIC: &[u8] = b"\x7fELF\x02\x01";
const HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: u16 = 56;
const MACHINE_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;

/// A loadable segment.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Guest-physical address.
    pub address: u64,
    /// Size in memory, which is at least that in the file.
    pub memory_bytes: u64,
}

/// A program's headers.
#[derive(Debug)]
pub struct Image<'a> {
    bytes: &'a [u8],
    /// Guest-physical entry point.
    pub entry: u64,
    /// Segments that take up memory.
    pub loads: Vec<Load>,
    notes: Vec<Range<usize>>,
}

fn field<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    std::array::from_fn(|index| bytes.get(offset + index).copied().unwrap_or(0))
}

fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(field(bytes, offset))
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(field(bytes, offset))
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(field(bytes, offset))
}

impl<'a> Image<'a> {
    /// Nothing if `bytes` is no ELF64 image for x86-64 at all; in words what is wrong with one.
    pub fn parse(bytes: &'a [u8]) -> Result<Option<Self>, String> {
        if bytes.len() < HEADER_BYTES
            || !bytes.starts_with(MAGIC)
            || u16_at(bytes, 18) != MACHINE_X86_64
        {
            return Ok(None);
        }
        let size = u16_at(bytes, 54);
        if size != PROGRAM_HEADER_BYTES {
            return Err(format!(
                "program headers have {size} bytes, expected {PROGRAM_HEADER_BYTES}"
            ));
        }
        let (start, count) = (u64_at(bytes, 32), u16_at(bytes, 56));
        let table = in_file(bytes, start, u64::from(count) * u64::from(size))
            .ok_or("the program headers lie outside the file")?;
        let mut image = Self {
            bytes,
            entry: u64_at(bytes, 24),
            loads: Vec::new(),
            notes: Vec::new(),
        };
        for header in bytes[table].chunks_exact(usize::from(size)) {
            let (kind, offset, file_bytes, memory_bytes) = (
                u32_at(header, 0),
                u64_at(header, 8),
                u64_at(header, 32),
                u64_at(header, 40),
            );
            if !matches!(kind, PT_LOAD | PT_NOTE) {
                continue;
            }
            let contents = in_file(bytes, offset, file_bytes)
                .ok_or("a segment's contents lie outside the file")?;
            if kind == PT_NOTE {
                image.notes.push(contents);
            } else if file_bytes > memory_bytes {
                return Err(format!(
                    "a segment has {file_bytes} bytes in the file and {memory_bytes} in memory"
                ));
            } else {
                image.loads.push(Load {
                    address: u64_at(header, 24),
                    memory_bytes,
                });
            }
        }
        Ok(Some(image))
    }

    /// Whether a note has the owner `name`.
    pub fn has_note_of(&self, name: &str) -> bool {
        self.notes
            .iter()
            .any(|range| owners(&self.bytes[range.clone()]).any(|owner| owner == name.as_bytes()))
    }
}

fn in_file(bytes: &[u8], offset: u64, length: u64) -> Option<Range<usize>> {
    let end = offset.checked_add(length)?;
    (end <= bytes.len() as u64).then_some(offset as usize..end as usize)
}

/// The owners of the notes in a note segment, without their terminating zeros.
fn owners(mut notes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        if notes.len() < 12 {
            return None;
        }
        let sizes = [u32_at(notes, 0), u32_at(notes, 4)].map(|size| size as usize);
        let owner = notes.get(12..12 + sizes[0])?;
        let whole = 12 + sizes[0].next_multiple_of(4) + sizes[1].next_multiple_of(4);
        notes = notes.get(whole..).unwrap_or(&[]);
        Some(owner.strip_suffix(&[0]).unwrap_or(owner))
    })
}
