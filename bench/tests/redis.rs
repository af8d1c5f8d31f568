//! The checking client against servers that keep their word, lie, stall and die.

mod resp_server;

use lockstep_bench::load::{Arrivals, Pace};
use lockstep_bench::redis::{Redis, RedisConfig, RedisError, RedisMix};
use lockstep_perf::not_run;
use resp_server::{Lie, RespServer};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

fn config(target: SocketAddr) -> RedisConfig {
    RedisConfig {
        ledger_keys: 200,
        patience: Duration::from_secs(5),
        ..RedisConfig::new(target)
    }
}

fn open_loop(rate: f64) -> Pace {
    Pace::Open {
        rate,
        arrivals: Arrivals::Poisson,
    }
}

#[test]
fn a_server_that_keeps_its_word_passes_in_both_paces() {
    let server = RespServer::start(Lie::None);
    for pace in [open_loop(3_000.0), Pace::Closed] {
        let mut redis = Redis::connect(RedisConfig {
            pace,
            depth: 4,
            ..config(server.address)
        })
        .expect("it listens");
        redis.prepare().expect("it takes keys");
        for _ in 0..2 {
            let report = redis.run(Duration::from_millis(400)).expect("a run");
            assert_eq!(report.answered, report.requests, "{report:?}");
            assert_eq!(
                (report.errors, report.connections_lost, report.unsent),
                (0, 0, 0)
            );
            assert_eq!(report.ended_early, None);
            assert!(
                report.acknowledged_writes > 100,
                "{}",
                report.acknowledged_writes
            );
            assert_eq!(report.service.count(), report.answered);
            if let Pace::Open { rate, .. } = pace {
                assert!((report.requests as f64 / (rate * 0.4) - 1.0).abs() < 0.15);
            }
        }
        let verdict = redis.verify().expect("a verdict");
        assert!(verdict.passed(), "{verdict}");
        assert!(
            verdict.operations() > 500 && verdict.ledger.keys > 50,
            "{verdict}"
        );
        assert!(verdict.keys.iter().all(|key| key.unanswered == 0));
    }
}

#[test]
fn every_lie_is_found_and_told_with_its_place() {
    for (lie, says) in [
        (Lie::StaleRead, "fits nowhere"),
        (Lie::LostUpdate, "fits nowhere"),
        (Lie::DoubledIncrement, "fits nowhere"),
        (Lie::ValueFromNowhere, "fits nowhere"),
        (Lie::ForgottenWrite, "was acknowledged"),
    ] {
        let server = RespServer::start(lie);
        let mut redis = Redis::connect(RedisConfig {
            pace: Pace::Closed,
            depth: 1,
            ..config(server.address)
        })
        .expect("it listens");
        redis.prepare().expect("it takes keys");
        redis.run(Duration::from_millis(400)).expect("a run");
        let verdict = redis.verify().expect("a verdict");
        assert!(!verdict.passed(), "{lie:?} was believed");
        assert!(verdict.to_string().contains(says), "{lie:?}: {verdict}");
        let directory = tempfile::tempdir().expect("a directory");
        let files = verdict
            .dump(redis.histories(), directory.path())
            .expect("files");
        let wrong = verdict.keys.iter().filter(|key| key.wrong.is_some());
        assert_eq!(files.len(), wrong.count());
        for file in files {
            let text = std::fs::read_to_string(file).expect("a file");
            for line in text.lines() {
                serde_json::from_str::<serde_json::Value>(line).expect("JSON");
            }
        }
    }
}

#[test]
fn what_a_lost_connection_asked_may_have_happened_and_the_loss_is_counted() {
    let server = RespServer::start(Lie::CutAfter(300));
    let mut redis = Redis::connect(RedisConfig {
        depth: 8,
        pace: Pace::Closed,
        connections: 4,
        ..config(server.address)
    })
    .expect("it listens");
    redis.prepare().expect("it takes keys");
    let report = redis.run(Duration::from_millis(500)).expect("a run");
    assert!(report.connections_lost >= 1, "{report:?}");
    assert_eq!(report.losses.len(), report.connections_lost as usize);
    assert!(report.answered < report.requests);
    let verdict = redis.verify().expect("a verdict");
    assert!(verdict.passed(), "{verdict}");
    assert!(verdict.keys.iter().any(|key| key.unanswered > 0));
}

#[test]
fn a_stall_is_the_worst_gap_and_open_loop_latencies_count_from_when_requests_were_due() {
    let server = RespServer::start(Lie::StallOnce(Duration::from_millis(200)));
    let mut redis = Redis::connect(RedisConfig {
        pace: open_loop(1_000.0),
        ..config(server.address)
    })
    .expect("it listens");
    redis.prepare().expect("it takes keys");
    let report = redis.run(Duration::from_millis(800)).expect("a run");
    let gap = report.worst_gap.length;
    assert!(
        gap >= Duration::from_millis(180) && gap < Duration::from_millis(500),
        "{gap:?}"
    );
    // A fifth of the requests were due during the stall, and waited half of it on average.
    let p95 = report.latency.total().value_at(0.95);
    assert!(p95 > 60_000_000, "{p95}");
    assert!(redis.verify().expect("a verdict").passed());
}

#[test]
fn a_server_that_falls_silent_ends_the_run_and_leaves_keys_unread() {
    let server = RespServer::start(Lie::SilentAfter(500));
    let mut redis = Redis::connect(RedisConfig {
        pace: Pace::Closed,
        depth: 4,
        patience: Duration::from_millis(200),
        ..config(server.address)
    })
    .expect("it listens");
    redis.prepare().expect("it takes keys");
    let started = Instant::now();
    let report = redis.run(Duration::from_secs(60)).expect("a run");
    assert!(started.elapsed() < Duration::from_secs(5));
    let why = report.ended_early.expect("it ended early");
    assert!(why.contains("no reply for 200ms"), "{why}");
    let verdict = redis.verify().expect("a verdict");
    assert!(
        !verdict.passed() && verdict.ledger.unread_keys > 0,
        "{verdict}"
    );
    assert!(
        verdict.keys.iter().all(|key| key.wrong.is_none()),
        "{verdict}"
    );
}

#[test]
fn the_run_ends_where_nothing_more_could_be_remembered() {
    let server = RespServer::start(Lie::None);
    let mut redis = Redis::connect(RedisConfig {
        pace: Pace::Closed,
        history_most: 1_000,
        ..config(server.address)
    })
    .expect("it listens");
    redis.prepare().expect("it takes keys");
    let report = redis.run(Duration::from_secs(60)).expect("a run");
    assert!(
        report
            .ended_early
            .expect("early")
            .contains("as many as were allowed")
    );
    let verdict = redis.verify().expect("a verdict");
    assert!(
        verdict.passed() && verdict.operations() < 2_000,
        "{verdict}"
    );
}

#[test]
fn settings_and_servers_that_cannot_work_are_named() {
    let target: SocketAddr = "127.0.0.1:1".parse().expect("an address");
    let says = |change: fn(&mut RedisConfig)| {
        let mut config = config(target);
        change(&mut config);
        Redis::connect(config).expect_err("refused").to_string()
    };
    assert!(says(|config| config.connections = 0).contains("connections is 0; use 1 to 256"));
    assert!(says(|config| config.pace = open_loop(0.0)).contains("rate is 0"));
    assert!(
        says(|config| config.mix = RedisMix {
            get: 0,
            set: 0,
            append: 0,
            cas: 0,
            incr: 0,
            ledger: 0
        })
        .contains("mix")
    );
    assert!(says(|_| {}).contains("is a Redis listening there?"));
    let refusing = RespServer::start(Lie::Refusing);
    let mut redis = Redis::connect(config(refusing.address)).expect("it listens");
    let error = redis.prepare().expect_err("it refuses");
    assert!(matches!(error, RedisError::Prepare { .. }));
    assert!(error.to_string().contains("NOAUTH"), "{error}");
}

/// Debian's own server, on loopback.
struct RealRedis {
    child: Child,
    address: SocketAddr,
}

impl RealRedis {
    fn start(test: &str) -> Option<Self> {
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|socket| socket.local_addr())
            .expect("a port")
            .port();
        let child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--appendonly", "no", "--daemonize", "no"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn();
        let child = match child {
            Ok(child) => child,
            Err(error) => {
                not_run::report(
                    test,
                    &format!(
                        "redis-server cannot be started ({error}): apt-get install redis-server"
                    ),
                );
                return None;
            }
        };
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let started = Instant::now();
        while TcpStream::connect(address).is_err() {
            assert!(
                started.elapsed() < Duration::from_secs(10),
                "redis-server does not listen"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(Self { child, address })
    }
}

impl Drop for RealRedis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_real_redis_is_linearizable_and_loses_nothing_while_it_lives() {
    const TEST: &str = "the_real_redis_is_linearizable_and_loses_nothing_while_it_lives";
    let Some(server) = RealRedis::start(TEST) else {
        return;
    };
    let mut redis = Redis::connect(RedisConfig {
        pace: open_loop(4_000.0),
        connections: 16,
        ..config(server.address)
    })
    .expect("it listens");
    redis.prepare().expect("it takes keys");
    let report = redis.run(Duration::from_secs(1)).expect("a run");
    assert_eq!(
        (report.errors, report.connections_lost),
        (0, 0),
        "{:?}",
        report.error_examples
    );
    assert_eq!(report.answered, report.requests);
    let mut fast = Redis::connect(config(server.address).closed(16)).expect("it listens");
    fast.prepare().expect("it takes keys");
    let report = fast.run(Duration::from_secs(1)).expect("a run");
    assert!(report.rate() > 1_000.0, "{}", report.rate());
    let verdict = fast.verify().expect("a verdict");
    assert!(verdict.passed(), "{verdict}");
}

#[test]
fn a_redis_that_was_restarted_empty_has_lost_what_it_acknowledged() {
    const TEST: &str = "a_redis_that_was_restarted_empty_has_lost_what_it_acknowledged";
    let Some(server) = RealRedis::start(TEST) else {
        return;
    };
    let mut redis = Redis::connect(config(server.address).closed(4)).expect("it listens");
    redis.prepare().expect("it takes keys");
    let report = redis.run(Duration::from_millis(300)).expect("a run");
    // As good as a restart, and the connections live.
    let mut other = TcpStream::connect(server.address).expect("it listens");
    std::io::Write::write_all(&mut other, b"FLUSHALL\r\n").expect("it takes commands");
    let _ = std::io::Read::read(&mut other, &mut [0; 64]).expect("it answers");
    let verdict = redis.verify().expect("a verdict");
    assert!(!verdict.passed());
    assert_eq!(
        verdict.ledger.lost_writes,
        verdict.ledger.acknowledged_writes
    );
    assert!(
        verdict.ledger.lost_writes > 0 && verdict.ledger.lost_writes < report.acknowledged_writes
    );
    let lost = |key: &&lockstep_bench::redis::KeyVerdict| key.wrong.is_some();
    assert_eq!(
        verdict.keys.iter().filter(lost).count(),
        verdict.keys.len(),
        "{verdict}"
    );
}
