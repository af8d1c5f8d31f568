//! RESP2, the protocol of Redis (redis.io, "Redis serialization protocol specification"): as much of it
//! as this client asks for, and nothing tolerated beyond.

/// Longest bulk string that is accepted, bytes.
pub const BULK_MOST: usize = 1 << 20;
/// Longest line that is accepted, bytes.
pub const LINE_MOST: usize = 4096;

/// A reply. Arrays are none of ours: no command of this client's is answered by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply<'a> {
    /// `+OK`
    Simple(&'a [u8]),
    /// `-ERR what`
    Error(&'a [u8]),
    /// `:42`
    Integer(i64),
    /// `$3`, and three bytes.
    Bulk(&'a [u8]),
    /// `$-1`: there is none.
    Null,
}

/// What a server sent is not RESP2, or not in the sizes that are expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RespError {
    /// The first byte.
    #[error("a reply begins with byte {0:#04x}; expected one of `+-:$`")]
    Type(u8),
    /// A line that does not end.
    #[error("a line has more than {LINE_MOST} bytes")]
    LineTooLong,
    /// A carriage return or line feed where the other belongs.
    #[error("a line ends in {found:?}; expected \"\\r\\n\"")]
    LineEnd {
        /// What is there.
        found: String,
    },
    /// No number, or not in its shortest form.
    #[error("{found:?} is no {expected}")]
    Number {
        /// What is there.
        found: String,
        /// What should be.
        expected: &'static str,
    },
    /// A string behind which there is something else.
    #[error("a bulk string of {bytes} bytes is not followed by \"\\r\\n\"")]
    BulkEnd {
        /// Its length.
        bytes: usize,
    },
}

/// The reply at the start of `bytes`, and how many of them it takes; `None` if it is not whole yet.
///
/// # Errors
/// What is there can never become a reply.
pub fn parse(bytes: &[u8]) -> Result<Option<(Reply<'_>, usize)>, RespError> {
    let Some((&kind, rest)) = bytes.split_first() else {
        return Ok(None);
    };
    if !b"+-:$".contains(&kind) {
        return Err(RespError::Type(kind));
    }
    let Some(line) = line(rest)? else {
        return Ok(None);
    };
    let used = 1 + line.len() + 2;
    Ok(match kind {
        b'+' => Some((Reply::Simple(line), used)),
        b'-' => Some((Reply::Error(line), used)),
        b':' => Some((Reply::Integer(integer(line, "64-bit integer")?), used)),
        _ if line == b"-1" => Some((Reply::Null, used)),
        _ => {
            let wrong = || RespError::Number {
                found: line.escape_ascii().to_string(),
                expected: "length of a bulk string up to 1 MiB",
            };
            let length = integer(line, "length")?;
            let length = usize::try_from(length)
                .ok()
                .filter(|length| *length <= BULK_MOST)
                .ok_or_else(wrong)?;
            let data = &bytes[used..];
            if data.len() < length + 2 {
                return Ok(None);
            }
            let (data, end) = data.split_at(length);
            if !end.starts_with(b"\r\n") {
                return Err(RespError::BulkEnd { bytes: length });
            }
            Some((Reply::Bulk(data), used + length + 2))
        }
    })
}

/// Appends a command to `to`.
pub fn command(to: &mut Vec<u8>, words: &[&[u8]]) {
    header(to, b'*', words.len());
    for word in words {
        header(to, b'$', word.len());
        to.extend_from_slice(word);
        to.extend_from_slice(b"\r\n");
    }
}

/// A number's text, on the stack.
pub fn decimal(number: usize, buffer: &mut [u8; 20]) -> &[u8] {
    let mut at = buffer.len();
    let mut rest = number;
    loop {
        at -= 1;
        buffer[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            return &buffer[at..];
        }
    }
}

fn header(to: &mut Vec<u8>, kind: u8, count: usize) {
    to.push(kind);
    to.extend_from_slice(decimal(count, &mut [0; 20]));
    to.extend_from_slice(b"\r\n");
}

/// What is before the first `\r\n`.
fn line(bytes: &[u8]) -> Result<Option<&[u8]>, RespError> {
    let window = &bytes[..bytes.len().min(LINE_MOST + 2)];
    let Some(end) = window.iter().position(|byte| matches!(byte, b'\r' | b'\n')) else {
        return if bytes.len() > LINE_MOST {
            Err(RespError::LineTooLong)
        } else {
            Ok(None)
        };
    };
    match &bytes[end..bytes.len().min(end + 2)] {
        b"\r\n" => Ok(Some(&bytes[..end])),
        b"\r" => Ok(None),
        other => Err(RespError::LineEnd {
            found: other.escape_ascii().to_string(),
        }),
    }
}

fn integer(text: &[u8], expected: &'static str) -> Result<i64, RespError> {
    let wrong = || RespError::Number {
        found: text.escape_ascii().to_string(),
        expected,
    };
    let number: i64 = std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(wrong)?;
    // Redis writes numbers in one way; `+7` and `007` come from something else.
    if number.to_string().as_bytes() != text {
        return Err(wrong());
    }
    Ok(number)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encode(reply: Reply<'_>) -> Vec<u8> {
        match reply {
            Reply::Simple(text) => [b"+", text, b"\r\n"].concat(),
            Reply::Error(text) => [b"-", text, b"\r\n"].concat(),
            Reply::Integer(number) => format!(":{number}\r\n").into_bytes(),
            Reply::Bulk(data) => {
                [format!("${}\r\n", data.len()).as_bytes(), data, b"\r\n"].concat()
            }
            Reply::Null => b"$-1\r\n".to_vec(),
        }
    }

    proptest! {
        #[test]
        fn a_reply_is_read_whole_wherever_it_is_cut(
            kind in 0..5,
            data in proptest::collection::vec(any::<u8>(), 0..60),
            number in any::<i64>(),
            behind in proptest::collection::vec(any::<u8>(), 0..9),
        ) {
            let text: Vec<u8> = data.iter().copied().filter(|byte| !matches!(byte, b'\r' | b'\n')).collect();
            let reply = match kind {
                0 => Reply::Simple(&text),
                1 => Reply::Error(&text),
                2 => Reply::Integer(number),
                3 => Reply::Bulk(&data),
                _ => Reply::Null,
            };
            let whole = encode(reply);
            for cut in 0..whole.len() {
                prop_assert_eq!(parse(&whole[..cut]), Ok(None), "cut at {}", cut);
            }
            let more = [whole.clone(), behind].concat();
            prop_assert_eq!(parse(&more), Ok(Some((reply, whole.len()))));
        }

        #[test]
        fn no_bytes_make_it_panic_or_wait_for_ever(
            start in "[+:$-]?-?[0-9]{0,22}",
            rest in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let bytes = [start.as_bytes(), &rest].concat();
            if let Ok(Some((_, used))) = parse(&bytes) {
                prop_assert!(used <= bytes.len());
            }
        }
    }

    #[test]
    fn what_redis_does_not_send_is_refused() {
        assert_eq!(parse(b"*1\r\n"), Err(RespError::Type(b'*')));
        assert!(matches!(parse(b"+OK\n"), Err(RespError::LineEnd { .. })));
        assert!(matches!(parse(b"+OK\rX"), Err(RespError::LineEnd { .. })));
        for text in [
            ":\r\n",
            ":+1\r\n",
            ":01\r\n",
            ":9223372036854775808\r\n",
            "$-2\r\n",
            "$1048577\r\n",
        ] {
            assert!(
                matches!(parse(text.as_bytes()), Err(RespError::Number { .. })),
                "{text:?}"
            );
        }
        assert_eq!(parse(b"$2\r\nabcd"), Err(RespError::BulkEnd { bytes: 2 }));
        let endless = vec![b'+'; LINE_MOST + 2];
        assert_eq!(parse(&endless), Err(RespError::LineTooLong));
    }

    #[test]
    fn a_command_is_an_array_of_bulk_strings() {
        let mut to = Vec::new();
        command(&mut to, &[b"SET", b"k", b""]);
        assert_eq!(to, b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$0\r\n\r\n");
        let mut buffer = [0; 20];
        assert_eq!(
            decimal(usize::MAX, &mut buffer),
            usize::MAX.to_string().as_bytes()
        );
    }
}
