//! A producer killed at any moment leaves a readable ring. Its own harness, because the producer is
//! this program again, as a process of its own that gets SIGKILL.

use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lockstep_ringbuf::{Consumer, Producer, Ring, RingOptions, WaitPolicy, Waited};

const CAPACITY: usize = 1 << 16;
const SIGKILL: i32 = 9;

fn main() {
    let role = std::env::args().nth(1).unwrap_or_default();
    match role.as_str() {
        "produce-half-an-entry" => produce_half_an_entry(),
        "produce-for-ever" => produce_for_ever(),
        _ => {
            // Whatever else cargo passes is for harnesses that choose among tests.
            run(
                "killed_between_reserve_and_commit_leaves_nothing_to_see",
                half_an_entry,
            );
            run(
                "killed_at_any_moment_leaves_whole_entries_in_order",
                any_moment,
            );
        }
    }
}

fn run(name: &str, test: fn()) {
    let start = Instant::now();
    test();
    println!(
        "test {name} ... ok ({:.2} s)",
        start.elapsed().as_secs_f32()
    );
}

/// The ring that the parent passed as standard input, attached by its descriptor.
fn inherited() -> Producer {
    let fd = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    Ring::attach(fd).unwrap().producer().unwrap()
}

/// This program as a child, with the ring as its standard input.
fn spawn(ring: &Ring, role: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .arg(role)
        .stdin(Stdio::from(ring.fd().try_clone_to_owned().unwrap()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn kill(mut child: Child) {
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(SIGKILL));
}

/// An entry: its length, its number, then bytes made from the number.
fn write_entry(producer: &mut Producer, number: u64, half: bool) {
    let len = 16 + (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 54) as usize;
    let entry = producer.reserve(len).unwrap();
    entry[..8].copy_from_slice(&(len as u64).to_le_bytes());
    entry[8..16].copy_from_slice(&number.to_le_bytes());
    let written = if half { len / 2 } else { len };
    entry[16..written.max(16)].fill(number as u8 | 1);
    if !half {
        producer.commit(len);
    }
}

/// Reads and releases all there is, checks each entry, and returns the number of the next.
fn read_entries(consumer: &mut Consumer, mut next: u64) -> u64 {
    loop {
        let bytes = consumer.readable();
        if bytes.is_empty() {
            return next;
        }
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let len = word(0) as usize;
        assert!(
            len <= bytes.len(),
            "entry {next}: {len} of {} bytes",
            bytes.len()
        );
        assert_eq!(word(8), next);
        assert!(bytes[16..len].iter().all(|byte| *byte == next as u8 | 1));
        consumer.release(len);
        next += 1;
    }
}

fn produce_half_an_entry() {
    let mut producer = inherited();
    write_entry(&mut producer, 0, false);
    write_entry(&mut producer, 1, true);
    println!("half");
    loop {
        std::thread::park();
    }
}

fn half_an_entry() {
    let ring = Ring::create(CAPACITY, RingOptions::default()).unwrap();
    let mut consumer = ring.consumer().unwrap();
    let mut child = spawn(&ring, "produce-half-an-entry");
    let mut said = [0; 5];
    let mut output = child.stdout.take().unwrap();
    output.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"half\n");
    kill(child);

    // The first entry and nothing of the second.
    assert_eq!(read_entries(&mut consumer, 0), 1);
    let brief = Some(Duration::from_millis(5));
    let end = consumer.released();
    assert_eq!(
        consumer.wait_committed(end, &WaitPolicy::Block, brief),
        Waited::TimedOut
    );
    // The next producer goes on where the killed one was, over the half-written bytes.
    let mut successor = ring.producer().unwrap();
    assert_eq!(successor.committed(), end);
    write_entry(&mut successor, 1, false);
    assert_eq!(read_entries(&mut consumer, 1), 2);
    assert_eq!(consumer.seal(), successor.committed());
    assert_eq!((consumer.fault(), successor.fault()), (None, None));
}

fn produce_for_ever() {
    let mut producer = inherited();
    // The parent read all entries of the one before, and says with which to go on.
    let first = std::env::args()
        .nth(2)
        .map_or(0, |first| first.parse().unwrap());
    for number in first.. {
        let policy = WaitPolicy::SpinThenBlock {
            spin: Duration::from_micros(50),
        };
        assert_eq!(producer.wait_free(2048, &policy, None), Waited::Ready);
        write_entry(&mut producer, number, false);
    }
}

fn any_moment() {
    let seed = std::env::var("RING_SEED").map_or(1, |seed| seed.parse().unwrap());
    println!("replay with RING_SEED={seed}");
    let mut random: u64 = seed;
    let ring = Ring::create(CAPACITY, RingOptions::default()).unwrap();
    let mut consumer = ring.consumer().unwrap();
    let mut next = 0;
    for round in 0..15 {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let lifetime = Duration::from_micros(random >> 48);
        let before = next;
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["produce-for-ever", &next.to_string()])
            .stdin(Stdio::from(ring.fd().try_clone_to_owned().unwrap()))
            .spawn()
            .unwrap();
        // Its life begins with its first entry.
        let end = consumer.released();
        let limit = Some(Duration::from_secs(20));
        assert_eq!(
            consumer.wait_committed(end, &WaitPolicy::Block, limit),
            Waited::Ready
        );
        let start = Instant::now();
        while start.elapsed() < lifetime {
            next = read_entries(&mut consumer, next);
        }
        kill(child);
        next = read_entries(&mut consumer, next);
        assert_eq!(consumer.fault(), None, "round {round}");
        assert!(next > before, "round {round} saw no entry");
    }
    println!("{next} entries from 15 producers");
}
