//! The block devices against a driver that keeps the rules, and against one that keeps none.

mod driver;
mod hostile;

use driver::*;
use lockstep_vmm::ft::disk::{DiskOp, DiskRequest, DiskStatus};
use lockstep_vmm::machine::DiskSpec;
use lockstep_vmm::machine::disks::DiskDoneError;
use xxhash_rust::xxh3::xxh3_64;

#[test]
fn the_driver_reads_what_disk_it_has() {
    let mut bench = Bench::live(vec![
        spec("one"),
        DiskSpec {
            read_only: true,
            write_cache: false,
            ..spec("two")
        },
    ]);
    assert_eq!(bench.read(0, 8), 2, "a block device");
    let half = |bench: &mut Bench, offset| bench.read(0, CONFIG + offset);
    assert_eq!(half(&mut bench, 0), (DISK_BYTES / 512) as u32);
    assert_eq!((half(&mut bench, 8), half(&mut bench, 12)), (4096, 30));
    assert_eq!(half(&mut bench, 20), 512);
    let mut byte = [0];
    for (disk, writeback) in [(0, 1), (1, 0)] {
        bench.disks.read(disk, WRITEBACK, &mut byte);
        assert_eq!(byte[0], writeback);
    }
    bench.write(0, 0x14, 0);
    bench.write(1, 0x14, 0);
    let read_only = |features: u32| features >> 5 & 1;
    assert_eq!(read_only(bench.read(0, 0x10)), 0);
    assert_eq!(read_only(bench.read(1, 0x10)), 1);
}

#[test]
fn a_read_is_asked_for_at_the_kick_and_reaches_the_guest_with_its_end() {
    let mut bench = Bench::live(vec![spec("a")]);
    bench.offer(0, 0, 0, IN, 8, 8192);
    bench.kick(0, 0);
    let [request] = bench.said()[..] else {
        panic!("one request")
    };
    assert_eq!(
        request,
        DiskRequest {
            id: 1,
            disk: 0,
            op: DiskOp::Read,
            offset: 4096,
            length: 8192,
            bounce: 0,
            digest: 0,
        }
    );
    assert_eq!(bench.disks.outstanding().collect::<Vec<_>>(), [request]);
    assert_eq!(bench.status(0), UNTOUCHED);
    assert!(!bench.line(0) && bench.take_used(0, 0).is_empty());
    let data: Vec<u8> = (0..8192u32).map(|byte| byte as u8 ^ 0x5a).collect();
    bench.done(1, DiskStatus::Done, &data).unwrap();
    assert_eq!(bench.memory(Bench::data(0), 8192), data);
    assert_eq!(bench.status(0), DONE);
    assert_eq!(bench.take_used(0, 0), [(0, 8193)]);
    assert!(bench.line(0));
    bench.write(0, INTERRUPT_ACK, 1);
    assert!(!bench.line(0));
    assert_eq!(bench.disks.outstanding().len(), 0);
}

#[test]
fn a_writes_data_is_that_of_the_kick_and_named_by_its_digest() {
    let mut bench = Bench::live(vec![spec("a")]);
    let data = vec![0xab; 1024];
    bench.ram.write(Bench::data(0), &data).unwrap();
    bench.offer(0, 0, 0, OUT, 2, 1024);
    bench.kick(0, 0);
    let [request] = bench.said()[..] else {
        panic!("one request")
    };
    assert_eq!(request.op, DiskOp::Write { durable: false });
    assert_eq!((request.offset, request.length), (1024, 1024));
    assert_eq!(request.digest, xxh3_64(&data));
    bench.ram.write(Bench::data(0), &[0xff; 1024]).unwrap();
    assert_eq!(bench.bounced(&request), data, "the guest cannot change it");
    bench.done(1, DiskStatus::Failed, &[]).unwrap();
    assert_eq!(bench.status(0), FAILED);
    assert_eq!(bench.take_used(0, 0), [(0, 1)]);
}

#[test]
fn flush_discard_and_zeroes_are_asked_for_without_a_buffer() {
    let mut bench = Bench::live(vec![spec("a")]);
    let range = |sector: u64, sectors: u32, flags: u32| {
        let mut bytes = sector.to_le_bytes().to_vec();
        bytes.extend(sectors.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes
    };
    bench.offer(0, 0, 0, FLUSH_REQUEST, 0, 0);
    let cases = [
        (DISCARD, range(8, 16, 0)),
        (WRITE_ZEROES, range(0, 2048, 0)),
        (WRITE_ZEROES, range(2047, 1, 1)),
        // Not known, too much, not there, two ranges.
        (DISCARD, range(8, 16, 1)),
        (DISCARD, range(2040, 9, 0)),
        (WRITE_ZEROES, range(u64::MAX, 1, 0)),
        (WRITE_ZEROES, range(0, 0, 0)),
        (DISCARD, [range(0, 1, 0), range(2, 1, 0)].concat()),
    ];
    for (slot, (kind, bytes)) in (1..).zip(&cases) {
        bench.ram.write(Bench::data(slot), bytes).unwrap();
        bench.offer(0, 0, slot, *kind, 0, bytes.len() as u32);
    }
    bench.kick(0, 0);
    let said = bench.said();
    let asked: Vec<_> = said.iter().map(|r| (r.op, r.offset, r.length)).collect();
    assert_eq!(
        asked,
        [
            (DiskOp::Flush, 0, 0),
            (DiskOp::Discard, 4096, 8192),
            (DiskOp::WriteZeroes { unmap: false }, 0, 1 << 20),
            (DiskOp::WriteZeroes { unmap: true }, 2047 * 512, 512),
        ]
    );
    let status: Vec<u8> = (4..9).map(|slot| bench.status(slot)).collect();
    assert_eq!(status, [UNSUPPORTED, FAILED, FAILED, FAILED, FAILED]);
    for request in said {
        bench
            .done(request.id, DiskStatus::Unsupported, &[])
            .unwrap();
    }
    assert_eq!(bench.status(1), UNSUPPORTED);
}

#[test]
fn what_a_request_is_wrong_about_the_device_says_at_once() {
    let read_only = DiskSpec {
        read_only: true,
        ..spec("b")
    };
    let mut bench = Bench::live(vec![spec("a"), read_only]);
    let last = DISK_BYTES / 512;
    for (disk, kind, sector, length, status) in [
        (0, IN, last, 512, FAILED),
        (0, IN, last - 1, 1024, FAILED),
        (0, OUT, u64::MAX, 512, FAILED),
        (0, OUT, 1 << 55, 512, FAILED),
        (0, IN, 0, 511, FAILED),
        (0, IN, 0, 0, FAILED),
        (0, OUT, 0, 513, FAILED),
        (0, IN, 0, 121 << 10, FAILED),
        (0, GET_ID, 0, 19, FAILED),
        (0, 99, 0, 512, UNSUPPORTED),
        (1, OUT, 0, 512, FAILED),
    ] {
        bench.offer(disk, 1, 7, kind, sector, length);
        bench.kick(disk, 1);
        assert_eq!(bench.said(), [], "{kind} at {sector}, {length}");
        assert_eq!(bench.status(7), status, "{kind} at {sector}, {length}");
        assert_eq!(bench.take_used(disk, 1), [(21, 1)]);
    }
    assert_eq!(bench.counters().driver_faults, 0);
    assert_eq!(bench.counters().answered, 11);
}

#[test]
fn the_serial_number_is_padded_with_zeros() {
    let mut bench = Bench::live(vec![spec("disk-7")]);
    bench.offer(0, 0, 0, GET_ID, 0, 20);
    bench.kick(0, 0);
    assert_eq!(
        bench.memory(Bench::data(0), 20),
        *b"disk-7\0\0\0\0\0\0\0\0\0\0\0\0\0\0"
    );
    assert_eq!(
        (bench.status(0), bench.take_used(0, 0)),
        (DONE, vec![(0, 21)])
    );
}

#[test]
fn a_write_is_durable_while_the_cache_is_off_and_where_no_flush_is_known() {
    let mut bench = Bench::live(vec![spec("a")]);
    let asked = |bench: &mut Bench| {
        bench.offer(0, 0, 0, OUT, 0, 512);
        bench.kick(0, 0);
        let request = bench.said()[0];
        bench.done(request.id, DiskStatus::Done, &[]).unwrap();
        request.op
    };
    assert_eq!(asked(&mut bench), DiskOp::Write { durable: false });
    bench.write_bytes(0, WRITEBACK, &[0]);
    assert_eq!(asked(&mut bench), DiskOp::Write { durable: true });
    bench.write_bytes(0, WRITEBACK, &[1]);
    assert_eq!(asked(&mut bench), DiskOp::Write { durable: false });
    bench.write_bytes(0, WRITEBACK, &[0]);
    bench.write(0, STATUS, 0);
    bench.drive(0, 2, 0);
    assert_eq!(asked(&mut bench), DiskOp::Write { durable: true });
}

#[test]
fn buffers_may_be_cut_anywhere() {
    let mut bench = Bench::live(vec![spec("a")]);
    let header = HEADERS;
    let mut bytes = OUT.to_le_bytes().to_vec();
    bytes.extend([0; 4]);
    bytes.extend(3u64.to_le_bytes());
    bytes.extend([7; 100]);
    bench.ram.write(header, &bytes).unwrap();
    bench.ram.write(DATA, &[9; 412]).unwrap();
    // Header in two pieces, the second with the first data; an empty buffer.
    let chain = [
        (header, 5, 0),
        (header + 5, 111, 0),
        (0, 0, 0),
        (DATA, 412, 0),
        (DATA + 0x1000, 1, WRITE),
    ];
    bench.offer_raw(0, 0, 0, &chain);
    bench.kick(0, 0);
    let request = bench.said()[0];
    assert_eq!((request.offset, request.length), (1536, 512));
    assert_eq!(
        bench.bounced(&request),
        [vec![7; 100], vec![9; 412]].concat()
    );
    // A read into pieces, the last of which takes the status as well.
    bench.ram.write(header, &IN.to_le_bytes()).unwrap();
    let chain = [
        (header, 16, 0),
        (DATA + 0x2000, 500, WRITE),
        (DATA + 0x3000, 13, WRITE),
    ];
    bench.offer_raw(0, 0, 10, &chain);
    bench.kick(0, 0);
    let request = bench.said()[0];
    assert_eq!((request.op, request.length), (DiskOp::Read, 512));
    bench.done(request.id, DiskStatus::Done, &[3; 512]).unwrap();
    assert_eq!(
        bench.memory(DATA + 0x2000, 501),
        [vec![3; 500], vec![0]].concat()
    );
    assert_eq!(
        bench.memory(DATA + 0x3000, 13),
        [vec![3; 12], vec![DONE]].concat()
    );
}

#[test]
fn queues_and_disks_number_their_requests_together_and_end_in_any_order() {
    let mut bench = Bench::live(vec![spec("a"), spec("b")]);
    let places = [(0, 0), (1, 1), (0, 1), (1, 0)];
    for (slot, (disk, queue)) in (0..).zip(places) {
        bench.offer(disk, queue, slot, IN, u64::from(slot), 512);
        bench.kick(disk, queue);
    }
    let said = bench.said();
    let ids: Vec<_> = said.iter().map(|r| (r.id, usize::from(r.disk))).collect();
    assert_eq!(ids, [(1, 0), (2, 1), (3, 0), (4, 1)]);
    for id in [3, 1, 4, 2] {
        let (disk, queue) = places[id as usize - 1];
        bench.done(id, DiskStatus::Done, &[id as u8; 512]).unwrap();
        let slot = id as u16 - 1;
        assert_eq!(bench.take_used(disk, queue), [(3 * u32::from(slot), 513)]);
        assert_eq!(bench.memory(Bench::data(slot), 512), [id as u8; 512]);
    }
}

#[test]
fn without_a_buffer_a_chain_stays_in_its_ring_and_is_served_in_turn() {
    let mut bench = Bench::live(vec![spec("a"), spec("b")]);
    // 1 MiB of buffers, 16 KiB a request: 64 find room.
    for slot in 0..42 {
        bench.offer(0, 0, slot, IN, 0, 0x4000);
    }
    bench.kick(0, 0);
    for slot in 0..40 {
        bench.offer(1, 0, slot, OUT, 0, 0x4000);
    }
    bench.kick(1, 0);
    // Small, but not before those that wait.
    bench.offer(0, 1, 41, FLUSH_REQUEST, 0, 0);
    bench.kick(0, 1);
    let said = bench.said();
    assert_eq!(said.len(), 64);
    assert_eq!(said.iter().filter(|request| request.disk == 1).count(), 22);
    assert!(bench.disks.save().is_none());
    let mut next = 64;
    for id in 1..=64 {
        let data = match said[id as usize - 1].op {
            DiskOp::Read => vec![1; 0x4000],
            _ => Vec::new(),
        };
        bench.done(id, DiskStatus::Done, &data).unwrap();
        for request in bench.said() {
            next += 1;
            assert_eq!(request.id, next);
            let flush = next == 64 + 18 + 1;
            assert_eq!(request.op == DiskOp::Flush, flush, "request {next}");
            assert_eq!(request.disk, u8::from(!flush));
        }
    }
    assert_eq!(next, 64 + 18 + 1, "all were served");
    assert!(bench.counters().waited > 0);
    for id in 65..=next {
        bench.done(id, DiskStatus::Done, &[]).unwrap();
    }
    assert!(bench.disks.save().is_some());
}

#[test]
fn requests_without_data_are_bounded_too() {
    let mut bench = Bench::live(vec![spec("a")]);
    let mut made = 0;
    for _ in 0..40 {
        for slot in 0..42 {
            bench.offer(0, 0, slot, FLUSH_REQUEST, 0, 0);
        }
        bench.kick(0, 0);
        made += bench.said().len();
        bench.write(0, STATUS, 0);
        bench.drive(0, 2, FLUSH);
    }
    assert_eq!(made, 1024);
    assert_eq!(bench.disks.outstanding().len(), 1024);
    for id in 1..=1024 {
        bench.done(id, DiskStatus::Done, &[]).unwrap();
    }
    assert_eq!(bench.counters().swallowed, 1024);
}

#[test]
fn a_reset_forgets_requests_and_their_ends_reach_nobody() {
    let mut bench = Bench::live(vec![spec("a")]);
    bench.offer(0, 0, 0, IN, 0, 512);
    bench.offer(0, 0, 1, OUT, 8, 512);
    bench.kick(0, 0);
    assert_eq!(bench.said().len(), 2);
    bench.write(0, STATUS, 0);
    assert_eq!(
        bench.disks.outstanding().len(),
        2,
        "the world still answers"
    );
    assert!(bench.disks.save().is_none());
    bench.drive(0, 2, FLUSH | CONFIG_WCE);
    bench.offer(0, 0, 2, IN, 1, 512);
    bench.kick(0, 0);
    let request = bench.said()[0];
    assert_eq!(
        (request.id, request.bounce),
        (3, 8192),
        "buffers are taken still"
    );
    bench.done(1, DiskStatus::Done, &[1; 512]).unwrap();
    bench.done(2, DiskStatus::Done, &[]).unwrap();
    assert_eq!(bench.memory(Bench::data(0), 512), [0; 512]);
    assert_eq!((bench.status(0), bench.status(1)), (UNTOUCHED, UNTOUCHED));
    assert!(bench.take_used(0, 0).is_empty() && !bench.line(0));
    bench.done(3, DiskStatus::Done, &[3; 512]).unwrap();
    assert_eq!(bench.memory(Bench::data(2), 512), [3; 512]);
    assert_eq!(bench.counters().swallowed, 2);
    assert!(bench.disks.save().is_some());
}

#[test]
fn an_end_that_cannot_be_is_refused_and_changes_nothing() {
    let mut bench = Bench::live(vec![spec("a")]);
    bench.offer(0, 0, 0, IN, 0, 512);
    bench.offer(0, 0, 1, OUT, 0, 512);
    bench.kick(0, 0);
    bench.said();
    let before = bench.digest();
    for (id, status, bytes) in [
        (0, DiskStatus::Done, 0),
        (3, DiskStatus::Done, 0),
        (1, DiskStatus::Done, 511),
        (1, DiskStatus::Failed, 512),
        (2, DiskStatus::Done, 512),
    ] {
        assert!(
            bench.done(id, status, &vec![1; bytes]).is_err(),
            "{id} {bytes}"
        );
    }
    assert_eq!(bench.digest(), before);
    bench.done(1, DiskStatus::Done, &[1; 512]).unwrap();
    assert!(matches!(
        bench.done(1, DiskStatus::Done, &[1; 512]),
        Err(DiskDoneError::Unknown { id: 1 })
    ));
}

#[test]
fn rules_that_the_driver_breaks_put_the_device_into_needs_reset() {
    let chains: [&[(u64, u32, u16)]; 6] = [
        &[(HEADERS, 15, 0), (DATA, 513, WRITE)], // a short header
        &[(HEADERS, 16, 0)],                     // no status
        &[(DATA, 513, WRITE), (HEADERS, 16, 0)], // the wrong way round
        &[(RAM_BYTES - 8, 16, 0), (DATA, 513, WRITE)], // a header outside RAM
        &[(HEADERS, 16, 0), (DATA, 512, WRITE), (0, 0, WRITE | NEXT)], // goes on nowhere
        &[(HEADERS, 16, NEXT), (DATA, 16, NEXT)], // goes on outside what is there
    ];
    for (index, chain) in chains.into_iter().enumerate() {
        let mut bench = Bench::live(vec![spec("a")]);
        let head = if index == 5 { SIZE - 2 } else { 0 };
        bench.offer_raw(0, 0, head, chain);
        bench.kick(0, 0);
        let status = bench.read(0, STATUS);
        assert_eq!(status & NEEDS_RESET, NEEDS_RESET, "chain {index}");
        assert_eq!(bench.said(), [], "chain {index}");
        bench.offer(0, 0, 1, IN, 0, 512);
        bench.kick(0, 0);
        assert_eq!(bench.said(), [], "until it is reset");
    }
}

#[test]
fn memory_that_is_gone_when_a_read_ends_is_the_drivers_fault() {
    let mut bench = Bench::live(vec![spec("a")]);
    let chain = [(HEADERS, 16, 0), (RAM_BYTES - 100, 513, WRITE)];
    bench.offer_raw(0, 0, 0, &chain);
    bench.kick(0, 0);
    let request = bench.said()[0];
    bench.done(request.id, DiskStatus::Done, &[1; 512]).unwrap();
    assert_eq!(bench.read(0, STATUS) & NEEDS_RESET, NEEDS_RESET);
    assert_eq!(bench.disks.outstanding().len(), 0);
}
