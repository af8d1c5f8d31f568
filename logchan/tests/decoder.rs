//! What comes from outside is an entry, or an error that names the field.

use lockstep_logchan::entry::{
    ALIGN, Entry, EntryError, Flags, HEADER_BYTES, Limits, MAX_ENTRY_BYTES, MAX_PAYLOAD_BYTES,
    Sequence, decode, padded, whole_entries,
};
use lockstep_logchan::fuzz::{Mutation, any_bytes, changed_log};
use lockstep_logchan::reader::{Checked, EntryReader};
use lockstep_logchan::writer::{DraftError, EntryWriter};
use lockstep_ringbuf::{Ring, RingOptions};
use proptest::prelude::*;

const RING: usize = 256 << 10;

/// The log with these payloads, written by the real writer.
fn log(payloads: &[Vec<u8>]) -> Vec<u8> {
    let ring = Ring::create(RING, RingOptions::default()).expect("a ring");
    let mut writer = EntryWriter::new(ring.producer().expect("free"), Sequence::NONE);
    for (n, payload) in payloads.iter().enumerate() {
        let n = n as u64;
        let mut draft = writer.draft(payload.len()).expect("room");
        draft.payload_mut().copy_from_slice(payload);
        draft.commit(
            n as u16,
            Flags::ACK_AT_ONCE,
            100 + n,
            1000 * n,
            payload.len(),
        );
    }
    ring.consumer().expect("free").readable().to_vec()
}

fn first(bytes: &[u8]) -> Result<Option<Entry<'_>>, EntryError> {
    decode(bytes, Limits::of_ring(RING as u64))
}

/// One entry, changed by `change`, with a CRC that fits.
fn forged(payload: usize, change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut bytes = log(&[vec![0xAA; payload]]);
    change(&mut bytes);
    let crc = crc32c::crc32c(&bytes[4..]);
    bytes[..4].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn put32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

#[test]
fn an_entry_lies_in_the_ring_as_the_table_says() {
    let bytes = log(&[b"hello".to_vec()]);
    assert_eq!(bytes.len(), 48);
    assert_eq!(bytes[..4], crc32c::crc32c(&bytes[4..]).to_le_bytes());
    assert_eq!(bytes[4..8], 45_u32.to_le_bytes());
    assert_eq!(bytes[8..16], 1_u64.to_le_bytes());
    assert_eq!(bytes[16..24], 100_u64.to_le_bytes());
    assert_eq!(bytes[24..32], 0_u64.to_le_bytes());
    assert_eq!(bytes[32..34], 0_u16.to_le_bytes());
    assert_eq!(bytes[34..36], 1_u16.to_le_bytes());
    assert_eq!(bytes[36..40], [0; 4]);
    assert_eq!(bytes[40..], *b"hello\0\0\0");
}

#[test]
fn each_wrong_field_is_named_with_what_was_found_and_what_was_expected() {
    let mut damaged = log(&[vec![1; 20]]);
    damaged[45] ^= 1;
    let found = u32::from_le_bytes(damaged[..4].try_into().expect("four bytes"));
    let expected = crc32c::crc32c(&damaged[4..]);
    assert_eq!(
        first(&damaged).unwrap_err(),
        EntryError::Crc {
            found,
            expected,
            length: 60
        }
    );

    let short = forged(20, |bytes| put32(bytes, 4, 39));
    assert_eq!(
        first(&short).unwrap_err(),
        EntryError::LengthBelowHeader { found: 39 }
    );

    let long = MAX_ENTRY_BYTES as u32 + 1;
    let longer = forged(20, |bytes| put32(bytes, 4, long));
    let error = EntryError::LengthAboveMaximum {
        found: long,
        maximum: long - 1,
    };
    assert_eq!(first(&longer).unwrap_err(), error);

    let large = log(&[vec![1; 5000]]);
    let error = EntryError::LengthAboveRing {
        found: 5040,
        ring: 4096,
    };
    assert_eq!(decode(&large, Limits::of_ring(4096)).unwrap_err(), error);

    let flags = forged(20, |bytes| bytes[35] = 0x80);
    assert_eq!(
        first(&flags).unwrap_err(),
        EntryError::Flags {
            found: 0x8001,
            known: 1
        }
    );

    let reserved = forged(20, |bytes| put32(bytes, 36, 7));
    assert_eq!(
        first(&reserved).unwrap_err(),
        EntryError::Reserved { found: 7 }
    );

    let padding = forged(20, |bytes| bytes[62] = 9);
    assert_eq!(
        first(&padding).unwrap_err(),
        EntryError::Padding {
            offset: 62,
            found: 9
        }
    );
}

#[test]
fn a_wrong_length_is_found_as_soon_as_the_field_is_there() {
    let bytes = forged(20, |bytes| put32(bytes, 4, u32::MAX));
    assert!(first(&bytes[..7]).expect("too early to tell").is_none());
    assert!(matches!(
        first(&bytes[..8]),
        Err(EntryError::LengthAboveMaximum {
            found: u32::MAX,
            ..
        })
    ));
}

#[test]
fn an_entry_is_incomplete_until_its_last_byte() {
    let bytes = log(&[vec![3; 100]]);
    for length in 0..bytes.len() {
        assert!(
            first(&bytes[..length])
                .expect("nothing wrong so far")
                .is_none(),
            "{length} bytes"
        );
    }
    assert_eq!(
        first(&bytes).expect("right").expect("complete").payload(),
        [3; 100]
    );
}

#[test]
fn no_payload_and_the_longest_payload_are_entries_and_one_byte_more_is_none() {
    for size in [0, 1, MAX_PAYLOAD_BYTES] {
        let bytes = log(&[vec![7; size]]);
        let entry = first(&bytes).expect("right").expect("complete");
        assert_eq!(
            (entry.payload().len(), entry.bytes_in_log()),
            (size, padded(HEADER_BYTES + size))
        );
    }
    let ring = Ring::create(RING, RingOptions::default()).expect("a ring");
    let mut writer = EntryWriter::new(ring.producer().expect("free"), Sequence::NONE);
    let error = writer.draft(MAX_PAYLOAD_BYTES + 1).expect_err("too large");
    let (found, maximum) = (MAX_PAYLOAD_BYTES + 1, MAX_PAYLOAD_BYTES);
    assert_eq!(error, DraftError::TooLarge { found, maximum });
}

#[test]
fn a_dropped_draft_leaves_nothing_and_takes_no_number() {
    let ring = Ring::create(RING, RingOptions::default()).expect("a ring");
    let mut writer = EntryWriter::new(ring.producer().expect("free"), Sequence(41));
    writer.draft(64).expect("room").payload_mut().fill(0xFF);
    assert_eq!(
        (writer.last_sequence(), writer.producer().committed()),
        (Sequence(41), 0)
    );
    // A shorter entry than was drafted, over the leftovers: its padding is zero all the same.
    let mut draft = writer.draft(64).expect("room");
    draft.payload_mut()[0] = 5;
    assert_eq!(draft.commit(1, Flags::NONE, 2, 3, 1), Sequence(42));
    let mut reader = EntryReader::new(
        ring.consumer().expect("free"),
        Sequence(41),
        Checked::ByReader,
    );
    let entry = reader.peek().expect("right").expect("there");
    assert_eq!(
        (entry.sequence(), entry.payload(), entry.flags()),
        (Sequence(42), &[5][..], Flags::NONE)
    );
    assert_eq!(ring.fill(), 48);
}

#[test]
fn a_full_log_says_how_much_it_needs_and_has_room_again_after_a_release() {
    let ring = Ring::create(RING, RingOptions::default()).expect("a ring");
    let mut writer = EntryWriter::new(ring.producer().expect("free"), Sequence::NONE);
    let payload = 64 << 10;
    let mut written = 0;
    let full = loop {
        match writer.draft(payload) {
            Ok(draft) => {
                draft.commit(0, Flags::NONE, 0, 0, payload);
                written += 1;
            }
            Err(full) => break full,
        }
    };
    let needed = payload + HEADER_BYTES;
    assert_eq!(
        full,
        DraftError::Full {
            needed,
            free: RING - 3 * needed
        }
    );
    assert_eq!(written, 3);
    let mut reader = EntryReader::new(
        ring.consumer().expect("free"),
        Sequence::NONE,
        Checked::ByReader,
    );
    assert!(reader.peek().expect("right").is_some());
    reader.release();
    assert!(writer.draft(payload).is_ok());
}

#[test]
fn the_reader_refuses_a_gap_a_repetition_and_half_an_entry() {
    let two = log(&[vec![1; 8], vec![2; 8]]);
    let cases: [(&[u8], EntryError); 3] = [
        (
            &two[48..],
            EntryError::Sequence {
                found: Sequence(2),
                expected: Sequence(1),
            },
        ),
        (
            &[&two[..48], &two[..48]].concat(),
            EntryError::Sequence {
                found: Sequence(1),
                expected: Sequence(2),
            },
        ),
        (&two[..88], EntryError::Truncated { found: 40 }),
    ];
    for (bytes, expected) in cases {
        let ring = Ring::create(RING, RingOptions::default()).expect("a ring");
        let mut producer = ring.producer().expect("free");
        producer
            .reserve(bytes.len())
            .expect("room")
            .copy_from_slice(bytes);
        producer.commit(bytes.len());
        let mut reader = EntryReader::new(
            ring.consumer().expect("free"),
            Sequence::NONE,
            Checked::ByReader,
        );
        let error = loop {
            match reader.peek() {
                Ok(entry) => assert!(entry.is_some()),
                Err(error) => break error,
            }
            reader.release();
        };
        assert_eq!(error, expected);
        assert_eq!(
            reader.peek().unwrap_err(),
            expected,
            "the front stays where it is"
        );
    }
}

fn payloads() -> impl Strategy<Value = Vec<Vec<u8>>> {
    proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 1..8)
}

fn mutation() -> impl Strategy<Value = Mutation> {
    prop_oneof![
        4 => any::<usize>().prop_map(Mutation::Flip),
        1 => any::<usize>().prop_map(Mutation::Cut),
        2 => (any::<usize>(), any::<usize>()).prop_map(|(at, count)| Mutation::Remove(at, count)),
        2 => (any::<usize>(), any::<usize>()).prop_map(|(at, count)| Mutation::Repeat(at, count)),
        2 => (any::<usize>(), proptest::collection::vec(any::<u8>(), 1..64))
            .prop_map(|(at, bytes)| Mutation::Insert(at, bytes)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn no_bytes_break_a_decoder(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        any_bytes(&bytes);
    }

    #[test]
    fn nothing_that_was_changed_is_taken_from_a_log(
        payloads in payloads(),
        mutations in proptest::collection::vec(mutation(), 0..4),
    ) {
        changed_log(&log(&payloads), &mutations);
    }

    #[test]
    fn what_was_written_is_what_is_read(payloads in payloads()) {
        let bytes = log(&payloads);
        prop_assert_eq!(bytes.len() % ALIGN, 0);
        let mut at = 0;
        for (n, payload) in payloads.iter().enumerate() {
            let n = n as u64;
            let entry = first(&bytes[at..]).expect("right").expect("complete");
            prop_assert_eq!(entry.payload(), payload.as_slice());
            prop_assert_eq!(entry.sequence(), Sequence(n + 1));
            prop_assert_eq!((entry.position(), entry.clock()), (100 + n, 1000 * n));
            prop_assert_eq!(u64::from(entry.kind()), n);
            prop_assert!(entry.flags().ack_at_once());
            at += entry.bytes_in_log();
        }
        prop_assert_eq!(at, bytes.len());
    }

    #[test]
    fn a_packet_is_cut_between_entries_only(payloads in payloads(), maximum in 0..4000_usize) {
        let bytes = log(&payloads);
        let cut = whole_entries(&bytes, maximum);
        prop_assert!(cut <= maximum && cut <= bytes.len());
        let mut at = 0;
        while at < cut {
            at += first(&bytes[at..]).expect("right").expect("complete").bytes_in_log();
        }
        prop_assert_eq!(at, cut);
        // As much as fits.
        if cut < bytes.len() {
            prop_assert!(cut + first(&bytes[cut..]).expect("right").expect("complete").bytes_in_log() > maximum);
        }
    }
}
