//! The load generator against servers that lose, forget, stall and die.

mod support;

use std::net::UdpSocket;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lockstep_bench::load::echo::{self, EchoConfig};
use lockstep_bench::load::{Arrivals, Load, LoadConfig, LoadError, Retransmission};
use lockstep_perf::not_run;
use support::{Faults, KvServer};

fn config(server: &KvServer) -> LoadConfig {
    LoadConfig {
        rate: 4_000.0,
        data_keys: 128,
        counter_keys: 32,
        retransmission: Retransmission {
            timeout: Duration::from_millis(20),
            attempts: 10,
        },
        ..LoadConfig::new(server.address)
    }
}

#[test]
fn over_a_network_that_loses_and_doubles_every_acknowledged_write_is_found_again() {
    for seed in 1..=3 {
        let server = KvServer::start(Faults {
            drop_requests: 60,
            drop_replies: 60,
            double_replies: 60,
            seed,
        });
        let mut load = Load::connect(LoadConfig {
            arrivals: Arrivals::Poisson,
            seed,
            ..config(&server)
        })
        .expect("connected");
        load.prepare().expect("the server answers");
        let report = load.run(Duration::from_millis(400)).expect("ran");
        assert!(report.retransmissions > 50, "seed {seed}: {report:?}");
        assert!(report.stray_replies > 20, "seed {seed}: {report:?}");
        assert!(report.acknowledged_writes > 500, "seed {seed}: {report:?}");
        assert_eq!((report.errors, report.stale_reads), (0, 0), "seed {seed}");
        let verdict = load.verify().expect("verified");
        assert!(verdict.passed(), "seed {seed}: {verdict:?}");
        assert_eq!(verdict.keys, 160);
        // The keys' first values were acknowledged, too.
        let expected = report.acknowledged_writes + 128;
        assert_eq!(verdict.acknowledged_writes, expected, "seed {seed}");
    }
}

#[test]
fn each_acknowledged_write_that_the_server_forgets_is_counted() {
    for forgotten in [1, 2, 57] {
        let server = KvServer::start(Faults::default());
        let mut load = Load::connect(config(&server)).expect("connected");
        load.run(Duration::from_millis(200)).expect("ran");
        assert_eq!(server.undo_writes(forgotten), forgotten);
        let verdict = load.verify().expect("verified");
        assert_eq!(verdict.lost_writes, forgotten as u64, "{verdict:?}");
        assert_eq!((verdict.corrupt_keys, verdict.unread_keys), (0, 0));
        assert!(!verdict.examples.is_empty());
    }
}

#[test]
fn a_read_that_goes_back_in_time_is_noticed_while_the_load_runs() {
    let server = KvServer::start(Faults::default());
    let mut load = Load::connect(config(&server)).expect("connected");
    load.run(Duration::from_millis(100)).expect("ran");
    server.undo_writes(100);
    let report = load.run(Duration::from_millis(200)).expect("ran");
    assert!(report.stale_reads > 0, "{report:?}");
}

#[test]
fn a_stall_counts_for_every_request_that_was_due_in_it() {
    let server = KvServer::start(Faults::default());
    let mut load = Load::connect(LoadConfig {
        retransmission: Retransmission {
            timeout: Duration::from_secs(2),
            attempts: 3,
        },
        ..config(&server)
    })
    .expect("connected");
    load.prepare().expect("the server answers");
    let stall = Duration::from_millis(300);
    let report = std::thread::scope(|scope| {
        let run = scope.spawn(|| load.run(Duration::from_millis(1000)));
        std::thread::sleep(Duration::from_millis(300));
        server.stall(stall);
        run.join().expect("no panic").expect("ran")
    });
    assert_eq!(
        report.requests, 4_000,
        "the schedule does not wait for the server"
    );
    assert_eq!(report.answered, 4_000);
    // 30 % of the requests were due in the stall and waited for the rest of it, 150 ms on average. A
    // client that stops asking would have found one or a few slow ones.
    let latency = report.latency.total();
    assert_eq!(latency.count(), 4_000);
    let p75 = Duration::from_nanos(latency.value_at(0.75));
    let p98 = Duration::from_nanos(latency.value_at(0.98));
    assert!(p75 > Duration::from_millis(20), "{latency:?}");
    assert!(p98 > Duration::from_millis(250), "{latency:?}");
    assert!(
        report.worst_gap.length > stall * 9 / 10,
        "{:?}",
        report.worst_gap
    );
    assert!(
        report.worst_gap.length < stall * 5,
        "{:?}",
        report.worst_gap
    );
    // There are only 160 keys: the later ones waited for a key, which is the server's doing.
    assert!(report.own_delay.max() > 100_000_000);
}

#[test]
fn a_server_that_dies_ends_the_run_and_leaves_nothing_verified() {
    let server = KvServer::start(Faults::default());
    let mut load = Load::connect(LoadConfig {
        retransmission: Retransmission {
            timeout: Duration::from_millis(5),
            attempts: 3,
        },
        ..config(&server)
    })
    .expect("connected");
    load.prepare().expect("the server answers");
    server.stop();
    let begun = Instant::now();
    let report = load.run(Duration::from_millis(200)).expect("ran");
    assert!(begun.elapsed() < Duration::from_secs(3));
    assert_eq!((report.answered, report.gave_up), (0, report.requests));
    assert!(report.refusals > 0, "the network says that nobody listens");
    let counted = report.latency.total();
    assert_eq!(counted.count(), report.requests, "what was given up counts");
    assert!(counted.value_at(0.0) >= 15_000_000, "{counted:?}");
    let verdict = load.verify().expect("bounded");
    assert_eq!(verdict.unread_keys, 160);
    assert!(!verdict.passed());
}

#[test]
fn a_server_that_is_no_key_value_store_is_refused_with_what_it_said() {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let address = socket.local_addr().expect("bound");
    let server = std::thread::spawn(move || {
        let mut datagram = [0; 2048];
        for _ in 0..2 {
            let (_, from) = socket.recv_from(&mut datagram).expect("a request");
            let reply = [&datagram[..8], b"SERVER_ERROR out of memory\r\n"].concat();
            socket.send_to(&reply, from).expect("sent");
        }
    });
    let mut load = Load::connect(LoadConfig {
        data_keys: 1,
        counter_keys: 1,
        ..LoadConfig::new(address)
    })
    .expect("connected");
    let error = load.prepare().expect_err("refused");
    assert!(
        matches!(
            error,
            LoadError::Prepare {
                failed: 2,
                keys: 2,
                ..
            }
        ),
        "{error}"
    );
    assert!(
        error.to_string().contains("SERVER_ERROR out of memory"),
        "{error}"
    );
    server.join().expect("no panic");
}

#[test]
fn a_run_ends_when_its_watcher_says_so() {
    let server = KvServer::start(Faults::default());
    let mut load = Load::connect(config(&server)).expect("connected");
    let progress = load.progress();
    let begun = Instant::now();
    let report = std::thread::scope(|scope| {
        let run = scope.spawn(|| load.run(Duration::from_secs(30)));
        while progress.answered.get() < 200 {
            std::thread::sleep(Duration::from_millis(1));
        }
        progress.stop();
        run.join().expect("no panic").expect("ran")
    });
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!(
        report.answered, report.requests,
        "what was in flight is waited for"
    );
    assert!(load.verify().expect("verified").passed());
}

#[test]
fn settings_out_of_range_are_refused_with_the_value_and_the_range() {
    let good = LoadConfig::new("127.0.0.1:1".parse().expect("an address"));
    good.validate().expect("the defaults are in range");
    let bad = [
        LoadConfig {
            rate: 0.0,
            ..good.clone()
        },
        LoadConfig {
            rate: f64::NAN,
            ..good.clone()
        },
        LoadConfig {
            connections: 0,
            ..good.clone()
        },
        LoadConfig {
            connections: 65,
            ..good.clone()
        },
        LoadConfig {
            data_keys: u32::MAX,
            ..good.clone()
        },
        LoadConfig {
            counter_keys: 0,
            ..good.clone()
        },
        LoadConfig {
            value_bytes: 31,
            ..good.clone()
        },
        LoadConfig {
            value_bytes: 1201,
            ..good.clone()
        },
    ];
    for config in bad {
        let error = config.validate().expect_err("out of range");
        let text = error.to_string();
        assert!(
            matches!(error, LoadError::Config { .. }) && text.contains("; use "),
            "{text}"
        );
    }
}

/// The reference implementation, in a process of its own.
struct Memcached(Child);

impl Memcached {
    fn start(port: u16) -> std::io::Result<Self> {
        let port = port.to_string();
        Command::new("memcached")
            .args([
                "-l",
                "127.0.0.1",
                "-U",
                &port,
                "-p",
                "0",
                "-u",
                "nobody",
                "-m",
                "16",
                "-t",
                "1",
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map(Self)
    }
}

impl Drop for Memcached {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn memcached_itself_understands_every_request() {
    let port = {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        socket.local_addr().expect("bound").port()
    };
    let server = match Memcached::start(port) {
        Ok(server) => server,
        Err(error) => {
            not_run::report(
                "memcached_itself_understands_every_request",
                &format!("memcached: {error}; install the package memcached"),
            );
            return;
        }
    };
    let mut load = Load::connect(LoadConfig {
        value_bytes: 1_200,
        ..LoadConfig::new(([127, 0, 0, 1], port).into())
    })
    .expect("connected");
    // It takes a moment to listen.
    load.prepare().expect("memcached stores");
    let report = load.run(Duration::from_millis(500)).expect("ran");
    assert_eq!(
        (report.errors, report.stale_reads, report.gave_up),
        (0, 0, 0),
        "{report:?}"
    );
    assert_eq!(report.answered, 5_000);
    let verdict = load.verify().expect("verified");
    assert!(verdict.passed(), "{verdict:?}");
    drop(server);
}

#[test]
fn echo_counts_what_came_back_and_what_did_not() {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let target = socket.local_addr().expect("bound");
    socket
        .set_read_timeout(Some(Duration::from_secs(2)))
        .expect("a timeout");
    let dropped = Arc::new(AtomicU64::new(0));
    let server = std::thread::spawn({
        let dropped = Arc::clone(&dropped);
        move || {
            let mut datagram = [0; 2048];
            let mut seen = 0_u64;
            while let Ok((length, from)) = socket.recv_from(&mut datagram) {
                seen += 1;
                if datagram[..length] == *b"stop" {
                    break;
                }
                if seen.is_multiple_of(50) {
                    dropped.fetch_add(1, Ordering::SeqCst);
                } else {
                    socket.send_to(&datagram[..length], from).expect("sent");
                }
            }
        }
    });
    for spin in [false, true] {
        let config = EchoConfig {
            target,
            payload_bytes: 64,
            spin,
            interval: Duration::ZERO,
            timeout: Duration::from_millis(60),
        };
        let before = dropped.load(Ordering::SeqCst);
        let report = echo::run(&config, Duration::from_millis(300)).expect("ran");
        let dropped = dropped.load(Ordering::SeqCst) - before;
        assert!(report.answered > 49 && dropped > 0, "{report:?}");
        // On a busy host a reply may be late.
        assert!(
            (dropped..=dropped + 2).contains(&report.lost),
            "{dropped}: {report:?}"
        );
        assert_eq!(report.latency.count(), report.answered + report.lost);
        assert!(report.latency.max() >= 59_900_000, "{report:?}");
    }
    let refused = EchoConfig {
        target,
        payload_bytes: 7,
        spin: false,
        interval: Duration::ZERO,
        timeout: Duration::from_millis(10),
    };
    let error = echo::run(&refused, Duration::from_millis(1)).expect_err("too short");
    assert!(error.to_string().contains("8 to 1472"), "{error}");
    let stop = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    stop.send_to(b"stop", target).expect("sent");
    server.join().expect("no panic");
}
