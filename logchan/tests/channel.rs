//! What every transport has to do, on each of them.

mod support;

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use lockstep_logchan::entry::{Flags, Sequence};
use lockstep_logchan::transport::ChannelError;
use lockstep_logchan::transport::tcp::{TcpBackup, TcpOptions, TcpPrimary};
use lockstep_perf::stamp;
use lockstep_ringbuf::WaitPolicy;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::sockopt;
use support::*;

fn every_entry_arrives(kind: Kind, wait: WaitPolicy, entries: u64) {
    let Ends {
        mut writer,
        mut primary,
        backup,
        mut reader,
    } = ends(kind, wait);
    let receiving = Receiving::start(backup);
    let report = receiving.report.clone();
    let replaying = std::thread::spawn(move || {
        let mut numbers = Numbers(17);
        for n in 1..=entries {
            let (sequence, payload) = read_next(&mut reader, &report);
            assert_eq!(sequence, Sequence(n));
            assert!(
                payload == numbers.payload(),
                "{kind:?}: payload of entry {n} differs"
            );
        }
    });
    let mut numbers = Numbers(17);
    for n in 0..entries {
        let flags = if n % 7 == 0 {
            Flags::ACK_AT_ONCE
        } else {
            Flags::NONE
        };
        write((&mut writer, primary.as_mut()), &numbers.payload(), flags);
        if n % 3 == 0 {
            primary.flush(&writer, stamp::now()).expect("flushed");
            primary.poll(&writer, stamp::now()).expect("polled");
            primary.wake_backup(&writer);
        }
    }
    settle(&writer, primary.as_mut());
    replaying.join().expect("the replay is right");
    assert_eq!(primary.stalled(stamp::now()), None);
    assert!(receiving.stop().is_none());
}

#[test]
fn every_entry_arrives_once_in_order_and_unchanged_over_tcp() {
    every_entry_arrives(Kind::Tcp, SPIN_THEN_BLOCK, 1500);
    every_entry_arrives(Kind::Tcp, WaitPolicy::Block, 500);
    every_entry_arrives(Kind::Tcp, WaitPolicy::Spin, 100);
}

#[test]
fn every_entry_arrives_once_in_order_and_unchanged_over_tcp_on_a_core() {
    every_entry_arrives(Kind::TcpOnCore, SPIN_THEN_BLOCK, 1500);
    every_entry_arrives(Kind::TcpOnCore, WaitPolicy::Block, 500);
}

#[test]
fn every_entry_arrives_once_in_order_and_unchanged_in_shared_memory() {
    for kind in [Kind::ShmCommitted, Kind::ShmReceived] {
        every_entry_arrives(kind, SPIN_THEN_BLOCK, 1500);
        every_entry_arrives(kind, WaitPolicy::Block, 500);
    }
}

#[test]
fn the_replay_is_reported_with_position_and_lag() {
    for kind in KINDS {
        let Ends {
            mut writer,
            mut primary,
            backup,
            mut reader,
        } = ends(kind, SPIN_THEN_BLOCK);
        let receiving = Receiving::start(backup);
        for n in 1..=4_usize {
            write(
                (&mut writer, primary.as_mut()),
                &vec![1; n * 8],
                Flags::ACK_AT_ONCE,
            );
        }
        settle(&writer, primary.as_mut());
        for _ in 0..3 {
            read_next(&mut reader, &receiving.report);
        }
        let start = Instant::now();
        loop {
            let known = primary.poll(&writer, stamp::now()).expect("polled");
            if known.replayed == Sequence(3) {
                // Entry n has position 8n.
                assert_eq!(known.replayed_position, 24, "{kind:?}");
                break;
            }
            assert!(start.elapsed() < PATIENCE, "{kind:?}: {known:?}");
            primary
                .wait(&writer, 0, Duration::from_millis(2))
                .expect("waited");
        }
        assert!(receiving.stop().is_none());
    }
}

#[test]
fn the_descriptor_wakes_a_thread_that_waits_for_an_acknowledgement() {
    for kind in [Kind::Tcp, Kind::TcpOnCore, Kind::ShmReceived] {
        let Ends {
            mut writer,
            mut primary,
            backup,
            mut reader,
        } = ends(kind, WaitPolicy::Block);
        let receiving = Receiving::start(backup);
        for round in 1..=2000 {
            let sequence = write(
                (&mut writer, primary.as_mut()),
                b"output",
                Flags::ACK_AT_ONCE,
            );
            primary.flush(&writer, stamp::now()).expect("flushed");
            let start = Instant::now();
            // The acknowledgement is to come at every moment between the looks and the sleep.
            let late = Duration::from_nanos(round % 100 * 500);
            while start.elapsed() < late {
                std::hint::spin_loop();
            }
            loop {
                let fd = primary
                    .wait_fd()
                    .try_clone_to_owned()
                    .expect("a descriptor");
                if primary.poll(&writer, stamp::now()).expect("polled").acked == sequence {
                    break;
                }
                let timeout = rustix::time::Timespec::try_from(PATIENCE).expect("in range");
                let mut fds = [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)];
                let ready = poll(&mut fds, Some(&timeout)).expect("polled");
                assert_eq!(
                    ready, 1,
                    "{kind:?}: round {round} slept through the acknowledgement"
                );
            }
            assert!(start.elapsed() < PATIENCE);
            primary.wake_backup(&writer);
            read_next(&mut reader, &receiving.report);
        }
        assert!(receiving.stop().is_none());
    }
}

#[test]
fn an_entry_that_does_not_ask_is_acknowledged_by_time_and_one_that_asks_at_once() {
    let mut options = tcp_options(SPIN_THEN_BLOCK);
    options.ack.entries = 1000;
    options.ack.delay_ns = 300_000_000;
    let Ends {
        mut writer,
        mut primary,
        backup,
        reader: _reader,
    } = tcp_ends(Kind::Tcp, &options);
    let receiving = Receiving::start(backup);
    write(
        (&mut writer, primary.as_mut()),
        b"first grants credit",
        Flags::ACK_AT_ONCE,
    );
    settle(&writer, primary.as_mut());

    let start = Instant::now();
    write((&mut writer, primary.as_mut()), b"patient", Flags::NONE);
    settle(&writer, primary.as_mut());
    let patient = start.elapsed();
    assert!(
        patient >= Duration::from_millis(290),
        "acknowledged after {patient:?} already"
    );

    write((&mut writer, primary.as_mut()), b"patient", Flags::NONE);
    let start = Instant::now();
    write(
        (&mut writer, primary.as_mut()),
        b"an output waits",
        Flags::ACK_AT_ONCE,
    );
    settle(&writer, primary.as_mut());
    let at_once = start.elapsed();
    assert!(
        at_once < Duration::from_millis(200),
        "acknowledged only after {at_once:?}"
    );
    assert!(receiving.stop().is_none());
}

#[test]
fn the_peers_end_is_noticed_by_either_side_and_by_who_sleeps_at_the_descriptor() {
    for kind in KINDS {
        let Ends {
            writer,
            mut primary,
            backup,
            reader,
        } = ends(kind, WaitPolicy::Block);
        primary.poll(&writer, stamp::now()).expect("polled");
        let dying = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            drop((backup, reader));
        });
        let start = Instant::now();
        let error = loop {
            let fd = primary
                .wait_fd()
                .try_clone_to_owned()
                .expect("a descriptor");
            match primary.poll(&writer, stamp::now()) {
                Ok(_) => {}
                Err(error) => break error,
            }
            let timeout = rustix::time::Timespec::try_from(PATIENCE).expect("in range");
            poll(
                &mut [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)],
                Some(&timeout),
            )
            .expect("polled");
            assert!(
                start.elapsed() < PATIENCE,
                "{kind:?}: the backup's end went unnoticed"
            );
        };
        assert!(
            matches!(error, ChannelError::Closed { .. }),
            "{kind:?}: {error}"
        );
        assert!(
            primary.poll(&writer, stamp::now()).is_err(),
            "{kind:?}: an error is for good"
        );
        dying.join().expect("the other thread ends");

        let Ends {
            writer,
            primary,
            backup,
            reader: _reader,
        } = ends(kind, WaitPolicy::Block);
        let receiving = Receiving::start(backup);
        drop((primary, writer));
        let error = receiving.end();
        assert!(
            matches!(error, ChannelError::Closed { .. }),
            "{kind:?}: {error}"
        );
    }
}

#[test]
fn a_backup_that_does_not_acknowledge_is_a_stall() {
    for kind in [Kind::Tcp, Kind::ShmReceived] {
        let Ends {
            mut writer,
            mut primary,
            mut backup,
            reader: _reader,
        } = ends(kind, SPIN_THEN_BLOCK);
        // Credit, and then silence.
        backup.receive(Duration::from_millis(2)).expect("received");
        let start = Instant::now();
        while kind == Kind::Tcp && primary.poll(&writer, stamp::now()).expect("polled").credit == 0
        {
            assert!(start.elapsed() < PATIENCE);
        }
        write(
            (&mut writer, primary.as_mut()),
            b"entry",
            Flags::ACK_AT_ONCE,
        );
        let sent = stamp::now();
        primary.flush(&writer, sent).expect("flushed");
        primary.poll(&writer, sent).expect("polled");
        let limit = 100_000_000;
        assert_eq!(primary.stalled(sent + limit / 2), None, "{kind:?}");
        let stall = primary.stalled(stamp::now() + limit).expect("a stall");
        assert_eq!(
            (stall.acked, stall.unacked_bytes),
            (Sequence::NONE, 48),
            "{kind:?}"
        );
        drop(backup);
    }
}

#[test]
fn a_full_backup_holds_the_primary_back_and_loses_nothing() {
    for kind in KINDS {
        let Ends {
            mut writer,
            mut primary,
            backup,
            mut reader,
        } = ends(kind, SPIN_THEN_BLOCK);
        let receiving = Receiving::start(backup);
        // Nobody replays: at most both rings fill up.
        let payload = vec![7; 10_000];
        let mut written = 0_u64;
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(100) {
            match writer.draft(payload.len()) {
                Ok(mut draft) => {
                    draft.payload_mut().copy_from_slice(&payload);
                    draft.commit(1, Flags::NONE, 0, 0, payload.len());
                    written += 1;
                }
                Err(_) => primary
                    .wait(&writer, payload.len() + 40, Duration::from_millis(5))
                    .expect("waited"),
            }
            primary.flush(&writer, stamp::now()).expect("flushed");
            primary.poll(&writer, stamp::now()).expect("polled");
        }
        let rings = if matches!(kind, Kind::Tcp | Kind::TcpOnCore) {
            2
        } else {
            1
        };
        let most = (rings * RING / payload.len()) as u64;
        assert!(
            written <= most && written > most / 2,
            "{kind:?}: wrote {written} of at most {most}"
        );
        let report = receiving.report.clone();
        let replaying = std::thread::spawn(move || {
            for n in 1..=written {
                assert_eq!(read_next(&mut reader, &report).0, Sequence(n));
            }
        });
        settle(&writer, primary.as_mut());
        replaying.join().expect("all of it arrived");
        assert!(receiving.stop().is_none());
    }
}

/// The stream of a killed primary stays open for as long as its `io_uring` takes to go.
#[test]
fn the_lifelines_end_is_the_primarys_and_what_it_had_sent_is_received_before() {
    let (ours, theirs) = tcp_pair();
    let (held, watched) = tcp_pair();
    let (near, far) = (ring(), ring());
    let options = tcp_options(WaitPolicy::Block);
    let mut primary = TcpPrimary::new(ours.into(), &near, Sequence::NONE, &agreed(), &options)
        .expect("the primary's end");
    let (backup, mut reader) =
        TcpBackup::new(theirs.into(), &far, Sequence::NONE, &options).expect("the backup's end");
    let receiving = Receiving::start(Box::new(backup.watching(Some(watched.into()))));
    let report = receiving.report.clone();
    let mut writer = writer(&near);
    let mut numbers = Numbers(3);
    for _ in 0..20 {
        write((&mut writer, &mut primary), &numbers.payload(), Flags::NONE);
    }
    settle(&writer, &mut primary);
    assert!(!receiving.is_finished());
    let killed = Instant::now();
    drop(held);
    let error = receiving.end();
    assert!(
        matches!(error, ChannelError::Closed { how } if how.contains("process ended")),
        "{error}"
    );
    assert!(killed.elapsed() < Duration::from_secs(1));
    for n in 1..=20 {
        assert_eq!(read_next(&mut reader, &report).0, Sequence(n));
    }
    drop(primary);
}

#[test]
fn the_logs_connection_has_the_congestion_control_that_the_knob_names() {
    for asked in [Some("cubic"), Some("reno"), None] {
        let (ours, theirs) = tcp_pair();
        let before = sockopt::tcp_congestion(&ours).expect("an answer");
        let seen = ours.try_clone().expect("a second descriptor");
        let options = TcpOptions {
            congestion_control: asked,
            ..TcpOptions::default()
        };
        let (near, agreed) = (ring(), agreed());
        let _primary = TcpPrimary::new(ours.into(), &near, Sequence::NONE, &agreed, &options)
            .expect("the primary's end");
        let after = sockopt::tcp_congestion(&seen).expect("an answer");
        assert_eq!(after, asked.unwrap_or(&before));
        drop(theirs);
    }
}

#[test]
fn a_congestion_control_that_the_kernel_lacks_is_an_error_that_says_what_to_do() {
    let (ours, _theirs) = tcp_pair();
    let options = TcpOptions {
        congestion_control: Some("pigeons"),
        ..TcpOptions::default()
    };
    let error = TcpPrimary::new(ours.into(), &ring(), Sequence::NONE, &agreed(), &options)
        .expect_err("no kernel has it")
        .to_string();
    assert!(error.contains("TCP_CONGESTION"), "{error}");
    assert!(error.contains("congestion-control to host"), "{error}");
}
