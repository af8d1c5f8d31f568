//! What a fuzzer does to the decoders: any bytes at all, and logs that were right until something
//! changed. Shared by the fuzz target (`logchan/fuzz`) and by a bounded run in the tests.

use crate::entry::{EntryError, HEADER_BYTES, Limits, MAX_ENTRY_BYTES, Sequence, decode, padded};
use crate::protocol::ack::{ACK_BYTES, Ack};
use crate::protocol::heartbeat::Heartbeat;
use crate::protocol::hello::{MAX_BODY_BYTES, Message, PREAMBLE_BYTES, needed};
use crate::protocol::receiver::{AckPolicy, Receiver, Verdict};
use crate::protocol::sender::Sender;

/// Feeds `bytes` to everything that decodes what comes from outside.
///
/// # Panics
/// One of the decoders' promises does not hold.
pub fn any_bytes(bytes: &[u8]) {
    entries(bytes);
    whole_log(bytes);
    if let Ok(Some(message)) = Message::decode(bytes) {
        // What was understood can be said again, and is understood the same.
        let again = message
            .encode()
            .expect("a message that was received can be sent");
        assert_eq!(Message::decode(&again).expect("understood"), Some(message));
    }
    assert!(needed(bytes) <= PREAMBLE_BYTES + MAX_BODY_BYTES);
    let _ = Heartbeat::decode(bytes);
    if let Some(bytes) = bytes.first_chunk::<ACK_BYTES>()
        && let Ok(ack) = Ack::decode(bytes)
    {
        assert_eq!(ack.encode(), *bytes);
        // Nothing was sent, so nothing can be settled.
        let mut sender = Sender::new(Sequence::NONE, 0, 1 << 20, 1);
        assert!(!matches!(sender.acknowledge(&ack, &[], 0), Ok(true)));
    }
}

/// An entry is what the decoder says that it is, or there is an error.
fn entries(bytes: &[u8]) {
    for ring in [HEADER_BYTES as u64, 4096, u64::MAX] {
        match decode(bytes, Limits::of_ring(ring)) {
            Ok(Some(entry)) => {
                let length = entry.header().length.get() as usize;
                assert_eq!(entry.payload().len(), length - HEADER_BYTES);
                assert_eq!(entry.as_bytes(), &bytes[..padded(length)]);
                assert!(length <= MAX_ENTRY_BYTES && padded(length) as u64 <= ring);
            }
            // Nobody waits for more than the longest entry.
            Ok(None) => assert!(bytes.len() < MAX_ENTRY_BYTES),
            Err(_) => {}
        }
    }
}

/// A receiver takes entries in order until the first error, and never beyond the bytes there are.
fn whole_log(bytes: &[u8]) {
    let policy = AckPolicy {
        entries: 4,
        delay_ns: 1000,
    };
    let mut receiver = Receiver::new(Sequence::NONE, 1 << 20, policy);
    let mut at = 0;
    let mut last = Sequence::NONE;
    while let Ok(Verdict::Next(entry)) = receiver.accept(&bytes[at..], 0) {
        assert_eq!(entry.sequence(), last.next());
        last = entry.sequence();
        at += entry.bytes_in_log();
    }
    assert_eq!(receiver.last_sequence(), last);
}

/// A change to a log that is right otherwise.
#[derive(Debug, Clone)]
pub enum Mutation {
    /// One bit flips.
    Flip(usize),
    /// The rest is gone.
    Cut(usize),
    /// Some bytes are gone.
    Remove(usize, usize),
    /// Some bytes come twice.
    Repeat(usize, usize),
    /// Some other bytes come in between.
    Insert(usize, Vec<u8>),
}

/// Changes `log`, which holds the whole entries 1, 2, 3 and so on, and checks that whatever a
/// receiver still takes of it is a prefix of what was written.
///
/// # Panics
/// A changed entry was taken.
pub fn changed_log(log: &[u8], mutations: &[Mutation]) {
    let mut changed = log.to_vec();
    for mutation in mutations {
        mutation.apply(&mut changed);
    }
    any_bytes(&changed);
    let policy = AckPolicy {
        entries: 1,
        delay_ns: 0,
    };
    let mut receiver = Receiver::new(Sequence::NONE, 1 << 20, policy);
    let mut at = 0;
    loop {
        match receiver.accept(&changed[at..], 0) {
            Ok(Verdict::Next(entry)) => at += entry.bytes_in_log(),
            Ok(_) => break,
            // A log that ends in the middle is incomplete, not wrong.
            Err(EntryError::Truncated { .. }) => panic!("a stream is never truncated"),
            Err(_) => break,
        }
    }
    assert!(
        log.starts_with(&changed[..at]),
        "{at} bytes were taken, changed by {mutations:?}"
    );
}

impl Mutation {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let length = bytes.len();
        if length == 0 {
            return;
        }
        match self {
            Self::Flip(bit) => bytes[bit / 8 % length] ^= 1 << (bit % 8),
            Self::Cut(at) => bytes.truncate(at % length),
            Self::Remove(at, count) => {
                let at = at % length;
                bytes.drain(at..(at + count % 100).min(length));
            }
            Self::Repeat(at, count) => {
                let at = at % length;
                let twice = bytes[at..(at + count % 200).min(length)].to_vec();
                bytes.splice(at..at, twice);
            }
            Self::Insert(at, other) => {
                let at = at % length;
                bytes.splice(at..at, other.iter().copied());
            }
        }
    }
}
