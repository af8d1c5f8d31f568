//! The part of memcached's ASCII protocol over UDP that the load speaks (memcached, `doc/protocol.txt`,
//! "UDP protocol").
//!
//! A datagram is a frame header of four big-endian `u16` (request id, sequence number, datagrams in
//! the message, reserved 0) and the text of one request or reply. Every message here fits into one
//! datagram.

use std::io::Write;

/// Length of the frame header, bytes.
pub const HEADER: usize = 8;
/// Room for the longest request made here, bytes: header, command line, value, line ends.
pub const DATAGRAM_MAX: usize = 1400;
/// Longest value, bytes, that leaves room for the rest in [`DATAGRAM_MAX`].
pub const VALUE_MAX: usize = 1200;
/// Shortest value, bytes: the key's index and the write's number, ten digits each, and some letters.
pub const VALUE_MIN: usize = 32;

/// A key: the index within all keys of one load, data and counters alike.
pub type Key = u32;

/// What a request does. Both kinds of key are numbered alike, and never used for the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Stores write number `write` of the key, in so many bytes.
    Set {
        /// The write's number, counted per key from 1.
        write: u32,
        /// Length of the value.
        bytes: u16,
    },
    /// Stores 0.
    SetZero,
    /// Reads.
    Get,
    /// Adds 1.
    Increment,
}

/// A reply, in the terms of [`Command`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply<'a> {
    /// A set took effect.
    Stored,
    /// The value of this key.
    Value {
        /// The key's text.
        key: &'a [u8],
        /// The value.
        data: &'a [u8],
    },
    /// A get found nothing.
    Missing,
    /// The counter's new value.
    Number(u64),
    /// An increment found no counter.
    NotFound,
    /// Anything else: `ERROR`, `CLIENT_ERROR`, `SERVER_ERROR`, or no reply at all.
    Unexpected(&'a [u8]),
}

/// Writes the datagram of one request into `buffer`, replacing what it held.
pub fn encode(buffer: &mut Vec<u8>, id: u16, key: Key, command: Command) {
    buffer.clear();
    buffer.extend_from_slice(&id.to_be_bytes());
    buffer.extend_from_slice(&[0, 0, 0, 1, 0, 0]);
    // Writing to a vector cannot fail.
    let _ = match command {
        Command::Set { write, bytes } => {
            let _ = write!(buffer, "set {} 0 0 {bytes}\r\n", name(key));
            value(buffer, key, write, bytes.into());
            buffer.write_all(b"\r\n")
        }
        Command::SetZero => write!(buffer, "set {} 0 0 1\r\n0\r\n", name(key)),
        Command::Get => write!(buffer, "get {}\r\n", name(key)),
        Command::Increment => write!(buffer, "incr {} 1\r\n", name(key)),
    };
}

/// The key's text.
fn name(key: Key) -> impl std::fmt::Display {
    struct Name(Key);
    impl std::fmt::Display for Name {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "load:{}", self.0)
        }
    }
    Name(key)
}

/// Appends the value of write number `write`: key and number in digits, then letters that depend on
/// both, so that a value put together from two writes is no value at all.
fn value(buffer: &mut Vec<u8>, key: Key, write: u32, bytes: usize) {
    let end = buffer.len() + bytes;
    let _ = write!(buffer, "{key:010}.{write:010}.");
    let mut letter = (key.wrapping_mul(7).wrapping_add(write) % 26) as u8;
    while buffer.len() < end {
        buffer.push(b'a' + letter);
        letter = if letter == 25 { 0 } else { letter + 1 };
    }
}

/// The number of the write that `data` is the value of; `None` if no write of this key made it.
/// `scratch` is overwritten.
#[must_use]
pub fn write_of(scratch: &mut Vec<u8>, key: Key, data: &[u8]) -> Option<u32> {
    let digits = std::str::from_utf8(data.get(11..21)?).ok()?;
    let write = digits.parse().ok()?;
    scratch.clear();
    value(scratch, key, write, data.len());
    (data == scratch.as_slice()).then_some(write)
}

/// Whether `text` is the text of `key`.
#[must_use]
pub fn is_name(key: Key, text: &[u8]) -> bool {
    text.strip_prefix(b"load:")
        .is_some_and(|digits| decimal(digits) == Some(key.into()))
}

/// A counter's value as a get shows it. Some servers pad a number with spaces.
#[must_use]
pub fn decimal(text: &[u8]) -> Option<u64> {
    let text = text.trim_ascii_end();
    let plain = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(text)
        .ok()
        .filter(|_| plain)?
        .parse()
        .ok()
}

/// Takes a datagram apart: request id and reply. `None`: not one datagram with a header.
#[must_use]
pub fn decode(datagram: &[u8]) -> Option<(u16, Reply<'_>)> {
    let (header, text) = datagram.split_at_checked(HEADER)?;
    let id = u16::from_be_bytes([header[0], header[1]]);
    let number = u16::from_be_bytes([header[2], header[3]]);
    let count = u16::from_be_bytes([header[4], header[5]]);
    if (number, count) != (0, 1) {
        return None;
    }
    Some((id, reply(text).unwrap_or(Reply::Unexpected(text))))
}

fn reply(text: &[u8]) -> Option<Reply<'_>> {
    match text {
        b"STORED\r\n" => return Some(Reply::Stored),
        b"END\r\n" => return Some(Reply::Missing),
        b"NOT_FOUND\r\n" => return Some(Reply::NotFound),
        _ => {}
    }
    let end = text.windows(2).position(|pair| pair == b"\r\n")?;
    let (line, rest) = (&text[..end], &text[end + 2..]);
    let Some(line) = line.strip_prefix(b"VALUE ") else {
        return rest.is_empty().then(|| decimal(line).map(Reply::Number))?;
    };
    let mut words = line.split(|byte| *byte == b' ');
    let (key, _flags, bytes) = (words.next()?, words.next()?, words.next()?);
    let bytes = usize::try_from(decimal(bytes)?).ok()?;
    let (data, tail) = rest.split_at_checked(bytes)?;
    (tail == b"\r\nEND\r\n").then_some(Reply::Value { key, data })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(key: Key, command: Command) -> String {
        let mut buffer = vec![9; 3];
        encode(&mut buffer, 0x1234, key, command);
        assert_eq!(buffer[..HEADER], [0x12, 0x34, 0, 0, 0, 1, 0, 0]);
        String::from_utf8(buffer[HEADER..].to_vec()).expect("ASCII")
    }

    #[test]
    fn requests_are_those_of_the_protocol() {
        let set = text(
            7,
            Command::Set {
                write: 3,
                bytes: 25,
            },
        );
        assert_eq!(set, "set load:7 0 0 25\r\n0000000007.0000000003.abc\r\n");
        assert_eq!(text(8, Command::SetZero), "set load:8 0 0 1\r\n0\r\n");
        assert_eq!(text(9, Command::Get), "get load:9\r\n");
        assert_eq!(text(9, Command::Increment), "incr load:9 1\r\n");
        let longest = Command::Set {
            write: u32::MAX,
            bytes: VALUE_MAX as u16,
        };
        assert!(text(Key::MAX, longest).len() + HEADER <= DATAGRAM_MAX);
    }

    #[test]
    fn replies_are_told_apart() {
        let of = |text: &'static str| {
            let datagram = [&[0, 5, 0, 0, 0, 1, 0, 0], text.as_bytes()].concat();
            let datagram: &'static [u8] = datagram.leak();
            let (id, reply) = decode(datagram).expect("a datagram");
            assert_eq!(id, 5);
            reply
        };
        assert_eq!(of("STORED\r\n"), Reply::Stored);
        assert_eq!(of("END\r\n"), Reply::Missing);
        assert_eq!(of("NOT_FOUND\r\n"), Reply::NotFound);
        assert_eq!(of("42\r\n"), Reply::Number(42));
        let value = of("VALUE load:1 0 4\r\na\r\nb\r\nEND\r\n");
        assert_eq!(
            value,
            Reply::Value {
                key: b"load:1",
                data: b"a\r\nb"
            }
        );
        for odd in [
            "",
            "ERROR\r\n",
            "SERVER_ERROR out of memory\r\n",
            "42",
            "42\r\n43\r\n",
            "4 2\r\n",
            "VALUE load:1 0 9\r\nab\r\nEND\r\n",
            "VALUE load:1 0\r\nab\r\nEND\r\n",
            "-1\r\n",
            "VALUE load:1 0 2\r\nab\r\nVALUE load:2 0 2\r\nab\r\nEND\r\n",
        ] {
            assert_eq!(of(odd), Reply::Unexpected(odd.as_bytes()));
        }
    }

    #[test]
    fn a_message_of_several_datagrams_is_none() {
        for header in [[0, 5, 0, 0, 0, 2, 0, 0], [0, 5, 0, 1, 0, 2, 0, 0], [0; 8]] {
            assert_eq!(decode(&[&header[..], b"STORED\r\n"].concat()), None);
        }
        assert_eq!(decode(&[0, 5, 0, 0, 0, 1, 0]), None);
    }

    proptest! {
        #[test]
        fn a_value_names_its_write_and_a_damaged_one_none(
            key: Key, number: u32, bytes in VALUE_MIN..=VALUE_MAX, at: prop::sample::Index, flip in 1..=255_u8
        ) {
            let (mut data, mut scratch) = (Vec::new(), Vec::new());
            value(&mut data, key, number, bytes);
            prop_assert_eq!(data.len(), bytes);
            prop_assert_eq!(write_of(&mut scratch, key, &data), Some(number));
            prop_assert_eq!(write_of(&mut scratch, key.wrapping_add(1), &data), None);
            let at = at.index(bytes);
            data[at] ^= flip;
            prop_assert_eq!(write_of(&mut scratch, key, &data), None);
        }

        #[test]
        fn no_datagram_breaks_the_reader(datagram in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Some((_, Reply::Value { key, data })) = decode(&datagram) {
                prop_assert!(key.len() + data.len() < datagram.len());
            }
            let _ = write_of(&mut Vec::new(), 1, &datagram);
        }
    }
}
