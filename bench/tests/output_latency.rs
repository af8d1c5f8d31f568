//! The suite `output-latency`, small: arms made of servers in this process.

mod support;

use std::time::Duration;

use lockstep_bench::load::{Load, LoadConfig, Retransmission};
use lockstep_bench::output_latency::{
    self, AddedPromise, Arm, ArmError, Options, OutputLatencyError, Running, Yardstick,
};
use lockstep_bench::pingpong::Waiting;
use lockstep_bench::report::Report;
use lockstep_perf::stages::StageHistograms;
use support::{Faults, Gate, KvServer};

const HOLD: Duration = Duration::from_micros(400);

struct Server {
    name: &'static str,
    hold: Option<Duration>,
    promise: Option<AddedPromise>,
}

struct Started(KvServer);

impl Arm for Server {
    fn name(&self) -> &str {
        self.name
    }

    fn protected(&self) -> bool {
        self.hold.is_some()
    }

    fn promise(&self) -> Option<AddedPromise> {
        self.promise
    }

    fn start(&mut self, warm_up: Duration) -> Result<Box<dyn Running + '_>, ArmError> {
        let gate = Gate {
            hold: self.hold,
            warm_up,
        };
        let server = KvServer::start_gated(Faults::default(), gate);
        Ok(Box::new(Started(server)))
    }
}

impl Running for Started {
    fn client(&self, load: &LoadConfig) -> Result<Load, ArmError> {
        Ok(Load::connect(LoadConfig {
            target: self.0.address,
            ..load.clone()
        })?)
    }

    fn stop(self: Box<Self>) -> Result<StageHistograms, ArmError> {
        Ok(self.0.stop())
    }
}

fn server(name: &'static str, hold: Option<Duration>) -> Server {
    Server {
        name,
        hold,
        promise: None,
    }
}

fn options() -> Options {
    Options {
        rounds: 2,
        warm_up: Duration::from_millis(150),
        measure: Duration::from_millis(400),
        load: LoadConfig {
            rate: 500.0,
            data_keys: 64,
            counter_keys: 16,
            retransmission: Retransmission {
                timeout: Duration::from_secs(1),
                attempts: 3,
            },
            ..LoadConfig::new(([127, 0, 0, 1], 0).into())
        },
    }
}

#[test]
fn what_a_gate_adds_is_found_inside_and_outside_and_judged() {
    let home = tempfile::tempdir().expect("a temporary directory");
    let mut report = Report::create(home.path(), "output-latency", "test").expect("created");
    let mut arms: Vec<Box<dyn Arm>> = vec![
        Box::new(server("unprotected", None)),
        Box::new(Server {
            promise: Some(AddedPromise::Microseconds(50.0)),
            ..server("broken", Some(HOLD))
        }),
        Box::new(Server {
            promise: Some(AddedPromise::RoundTrips(1e6)),
            ..server("kept", Some(HOLD))
        }),
    ];
    let mut yardsticks = [Yardstick::loopback(
        Waiting::Block,
        Duration::from_millis(50),
    )];
    let mut turns = Vec::new();
    let outcome = output_latency::run(
        &options(),
        &mut arms,
        &mut yardsticks,
        &mut report,
        &mut |turn| turns.push(turn.to_owned()),
    )
    .expect("measured");
    assert_eq!(turns.len(), 8, "{turns:?}");
    assert_eq!(turns[0], "round 1 of 2: unprotected");
    assert_eq!(turns[4], "round 2 of 2: broken");
    assert_eq!(outcome.wrong_keys, 0);
    assert!(!outcome.promises_kept);

    let summary = report.finish().expect("written");
    let hold_us = HOLD.as_secs_f64() * 1e6;
    for (name, added) in &outcome.inside {
        let p50 = added.p50.expect("measured");
        assert!(p50 > 0.9 * hold_us, "{name}: {added:?}\n{summary}");
    }
    for (name, added) in &outcome.client {
        // Sleeping servers on a busy host make a noisy client; the addition shows all the same.
        assert!(
            added.p50.expect("measured") > 0.5 * hold_us,
            "{name}: {added:?}\n{summary}"
        );
    }
    let judged: Vec<bool> = summary
        .promises
        .iter()
        .map(|promise| promise.kept)
        .collect();
    assert_eq!(judged, [false, true], "{summary}");
    // Warm-up is not counted: 2 rounds of 400 ms at 500/s, and what verification read.
    let inside = &summary.series["broken/kick-released"];
    assert!(
        (400..=400 + 2 * 80 + 120).contains(&inside.count),
        "{inside:?}"
    );
    assert_eq!(summary.series["broken/client"].count, 400);
    assert!(!summary.series.contains_key("unprotected/sent-acked"));
    for file in [
        "client.svg",
        "kick-released.svg",
        "kept-stages.svg",
        "ping-pong-block.hgrm",
    ] {
        assert!(
            summary.files.iter().any(|name| name == file),
            "{file}: {:?}",
            summary.files
        );
    }
}

#[test]
fn a_comparison_without_exactly_one_unprotected_arm_is_none() {
    for count in [0, 2] {
        let home = tempfile::tempdir().expect("a temporary directory");
        let mut report = Report::create(home.path(), "output-latency", "test").expect("created");
        let mut arms: Vec<Box<dyn Arm>> = vec![Box::new(server("held", Some(HOLD)))];
        for _ in 0..count {
            arms.push(Box::new(server("bare", None)));
        }
        let result = output_latency::run(&options(), &mut arms, &mut [], &mut report, &mut |_| {});
        assert!(
            matches!(result, Err(OutputLatencyError::Arms { unprotected, .. }) if unprotected == count),
            "{result:?}"
        );
    }
}

#[test]
fn an_arm_that_fails_is_named_with_its_round_and_its_step() {
    struct Fails;
    impl Arm for Fails {
        fn name(&self) -> &str {
            "fails"
        }
        fn protected(&self) -> bool {
            false
        }
        fn start(&mut self, _: Duration) -> Result<Box<dyn Running + '_>, ArmError> {
            Err("no such engine".into())
        }
    }
    let home = tempfile::tempdir().expect("a temporary directory");
    let mut report = Report::create(home.path(), "output-latency", "test").expect("created");
    let mut arms: Vec<Box<dyn Arm>> = vec![Box::new(Fails)];
    let error = output_latency::run(&options(), &mut arms, &mut [], &mut report, &mut |_| {})
        .expect_err("it fails");
    assert_eq!(
        error.to_string(),
        "fails, round 1: starting: no such engine"
    );
}
