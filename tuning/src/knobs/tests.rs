//! The table against the settings, and every way in and out.

use super::domain::plain;
use super::*;
use clap::error::ErrorKind;
use proptest::prelude::*;
use serde_json::json;
use std::collections::BTreeSet;

fn command() -> clap::Command {
    arguments(clap::Command::new("lockstep"))
}

fn parsed(line: &[&str]) -> Result<Settings, String> {
    let matches = command()
        .try_get_matches_from([&["lockstep"], line].concat())
        .map_err(|error| error.to_string())?;
    settings_from(&matches, Settings::default()).map_err(|error| error.to_string())
}

/// The field names of the settings, as serde writes them.
fn fields() -> BTreeSet<String> {
    let tree = serde_json::to_value(Settings::default()).expect("settings are plain data");
    let groups = tree.as_object().expect("groups");
    groups
        .iter()
        .flat_map(|(group, fields)| {
            let fields = fields.as_object().expect("a group of fields");
            fields.keys().map(move |field| format!("{group}.{field}"))
        })
        .collect()
}

/// Some values at the edges of what a knob admits, and one on each side of them that it does not.
fn edges(knob: &Knob) -> (Vec<Value>, Vec<Value>) {
    match knob.domain {
        Domain::Integer { least, most } => (
            vec![json!(least), json!(most)],
            vec![json!(least - 1), json!(most + 1), json!("x"), json!(1.5)],
        ),
        Domain::PowerOfTwo { least, most } => (
            vec![json!(least), json!(most)],
            vec![json!(least / 2), json!(most * 2), json!(least + 1)],
        ),
        Domain::OneOf(words) => (
            words.iter().map(|word| json!(word)).collect(),
            vec![json!("nonsense"), json!(1)],
        ),
        Domain::Switch => (vec![json!(true), json!(false)], vec![json!("on"), json!(1)]),
    }
}

fn any_assignment() -> impl Strategy<Value = (&'static Knob, Value)> {
    (0..TABLE.len()).prop_flat_map(|index| {
        let knob = &TABLE[index];
        let value = match knob.domain {
            Domain::Integer { least, most } => (least..=most).prop_map(Value::from).boxed(),
            Domain::PowerOfTwo { least, most } => (least.ilog2()..=most.ilog2())
                .prop_map(|power| Value::from(1_i64 << power))
                .boxed(),
            Domain::OneOf(words) => proptest::sample::select(words)
                .prop_map(Value::from)
                .boxed(),
            Domain::Switch => any::<bool>().prop_map(Value::from).boxed(),
        };
        (Just(knob), value)
    })
}

fn any_settings() -> impl Strategy<Value = Settings> {
    proptest::collection::vec(any_assignment(), 0..40).prop_map(|assignments| {
        let mut settings = Settings::default();
        for (knob, value) in assignments {
            set(&mut settings, knob.name, &plain(&value)).expect("the table admits it");
        }
        // The values that have to go together.
        let failure = &mut settings.failure;
        failure.heartbeat_interval_ms = failure
            .heartbeat_interval_ms
            .min(failure.heartbeat_timeout_ms / 2);
        settings.channel.ack_delay_us = settings
            .channel
            .ack_delay_us
            .min(failure.stall_timeout_ms / 2 * 1000);
        settings
    })
}

#[test]
fn every_setting_is_a_knob_and_every_knob_a_setting() {
    let knobs: BTreeSet<String> = TABLE.iter().map(|knob| knob.name.to_owned()).collect();
    assert_eq!(knobs, fields());
    assert_eq!(knobs.len(), TABLE.len(), "a knob is there twice");
    for knob in TABLE {
        assert_eq!(knob.argument, knob.name.replace('.', "-"));
    }
}

#[test]
fn the_defaults_are_in_range_and_go_together() {
    check(&Settings::default()).expect("the defaults");
}

#[test]
fn the_settings_take_all_that_the_table_admits_and_the_table_nothing_else() {
    for knob in TABLE {
        let (good, bad) = edges(knob);
        for value in good {
            let mut settings = Settings::default();
            set(&mut settings, knob.name, &plain(&value)).expect("the table admits it");
            assert_eq!(get(&settings, knob), value, "{}", knob.name);
        }
        for value in bad {
            let mut settings = Settings::default();
            let error = assign::assign(&mut settings, knob, value.clone())
                .expect_err("not in the domain")
                .to_string();
            assert!(error.contains(knob.name), "{error}");
            assert!(error.contains(&plain(&value)), "{error}");
            assert!(error.contains(&knob.domain.to_string()), "{error}");
            assert_eq!(settings, Settings::default(), "changed by a refused value");
        }
    }
}

#[test]
fn the_table_lists_every_word_that_the_settings_take() {
    for knob in TABLE {
        let Domain::OneOf(words) = knob.domain else {
            continue;
        };
        // serde names every variant when it meets one that it does not know.
        let (group, field) = knob.path();
        let error = serde_json::from_value::<Settings>(json!({ group: { field: "nonsense" } }))
            .expect_err("no such word")
            .to_string();
        let taken: BTreeSet<&str> = error.split('`').skip(1).step_by(2).skip(1).collect();
        assert_eq!(taken, words.iter().copied().collect(), "{error}");
    }
}

#[test]
fn a_unit_stands_with_every_number_and_in_no_other_place() {
    for knob in TABLE {
        let number = matches!(
            knob.domain,
            Domain::Integer { .. } | Domain::PowerOfTwo { .. }
        );
        assert_eq!(number, knob.unit != Unit::None, "{}", knob.name);
        let (_, field) = knob.path();
        for (suffix, unit) in [
            ("-us", Unit::Microseconds),
            ("-ms", Unit::Milliseconds),
            ("-bytes", Unit::Bytes),
            ("-entries", Unit::Entries),
            ("-frames", Unit::Frames),
            ("-core", Unit::Core),
        ] {
            assert_eq!(field.ends_with(suffix), knob.unit == unit, "{}", knob.name);
        }
    }
}

#[test]
fn an_unknown_name_is_answered_with_the_nearest() {
    for (name, nearest) in [
        ("channel.ring_bytes", "channel.ring-bytes"),
        ("ring-bytes", "channel.ring-bytes"),
        ("failure.heartbeat-timeout", "failure.heartbeat-timeout-ms"),
        ("cpu.spin", "cpu.spin-us"),
        ("chanel.sqpoll", "channel.sqpoll"),
    ] {
        let error = set(&mut Settings::default(), name, "1").expect_err("no such knob");
        assert!(
            matches!(&error, KnobError::Unknown { nearest: found, .. } if *found == nearest),
            "{error}"
        );
        assert!(error.to_string().contains(&format!("`{name}`")), "{error}");
    }
    let error = from_toml("[chanel]\nring-bytes = 1", Settings::default()).expect_err("a typo");
    assert!(
        error.to_string().contains("`channel.ring-bytes`"),
        "{error}"
    );
    set(&mut Settings::default(), "", "1").expect_err("no name at all");
}

#[test]
fn bytes_may_be_written_with_binary_units_on_the_command_line() {
    for text in ["1048576", "1024KiB", "1MiB", "1 MiB"] {
        let settings = parsed(&["--channel-ring-bytes", text]).expect("a size");
        assert_eq!(settings.channel.ring_bytes, 1 << 20);
    }
    for text in ["1MB", "MiB", "1.5MiB", "9223372036854775807GiB"] {
        let error = parsed(&["--channel-ring-bytes", text]).expect_err("not a size");
        assert!(error.contains(text), "{error}");
    }
    // Read as an option of its own, which there is not.
    assert!(parsed(&["--channel-ring-bytes", "-1MiB"]).is_err());
    assert!(parsed(&["--cpu-spin-us", "1KiB"]).is_err(), "not bytes");
}

#[test]
fn the_command_line_turns_what_it_names_and_leaves_the_rest() {
    let settings = parsed(&[
        "--cpu-vcpu-core",
        "-1",
        "--channel-transport=shm",
        "--channel-sqpoll",
        "true",
    ])
    .expect("a command line");
    let mut expected = Settings::default();
    expected.channel.transport = lockstep_vmm::settings::TransportKind::Shm;
    expected.channel.sqpoll = true;
    assert_eq!(settings, expected);
    let error = parsed(&["--channel-ack-entries", "0"]).expect_err("out of range");
    assert!(error.contains("1 to 65536"), "{error}");
}

#[test]
fn the_short_help_is_free_of_knobs_and_the_long_one_tells_all_of_each() {
    let short = command().render_help().to_string();
    let long = command().render_long_help().to_string();
    // Unwrapped, since a line may break anywhere.
    let long = long.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(long.contains(&format!("{HEADING}:")), "{long}");
    for knob in TABLE {
        assert!(!short.contains(knob.argument), "{short}");
        for part in [
            format!("--{} <VALUE>", knob.argument),
            knob.meaning.to_owned(),
            knob.allowed(),
            format!("[default: {}]", plain(&knob.default())),
        ] {
            assert!(long.contains(&part), "`{part}` is missing in\n{long}");
        }
    }
    command().debug_assert();
}

#[test]
fn a_refused_argument_is_a_usage_error() {
    let error = command()
        .try_get_matches_from(["lockstep", "--cpu-idle-wait", "sleep"])
        .expect_err("no such wait");
    assert_eq!(error.kind(), ErrorKind::ValueValidation);
    assert!(error.to_string().contains("spin-then-block"), "{error}");
}

#[test]
fn times_that_do_not_go_together_are_refused_whichever_way_they_come() {
    for (toml, line) in [
        (
            "[failure]\nheartbeat-interval-ms = 60",
            ["--failure-heartbeat-interval-ms", "60"],
        ),
        (
            "[channel]\nack-delay-us = 60000",
            ["--channel-ack-delay-us", "60000"],
        ),
    ] {
        for error in [
            from_toml(toml, Settings::default())
                .expect_err("too long")
                .to_string(),
            parsed(&line).expect_err("too long"),
        ] {
            assert!(error.contains("expected at least 120"), "{error}");
            assert!(error.contains("60"), "{error}");
        }
    }
}

#[test]
fn a_file_that_is_not_one_of_knobs_is_refused_and_says_where() {
    for (text, says) in [
        ("channel = 3", "`[channel]`"),
        ("channel.ring-bytes = 3", "a power of two from 262144"),
        ("channel.ring-bytes = '1MiB'", "1MiB"),
        ("channel.ring-bytes = 1.5", "1.5"),
        ("channel.ring-bytes = []", "[]"),
        ("channel.sqpoll = 'true'", "true, false"),
        ("not toml", "line 1"),
    ] {
        let error = from_toml(text, Settings::default())
            .expect_err(text)
            .to_string();
        assert!(error.contains(says), "{text}: {error}");
    }
}

#[test]
fn a_file_keeps_what_it_does_not_name() {
    let mut base = Settings::default();
    base.cpu.spin_us = 77;
    let settings = from_toml("[channel]\nsqpoll = true", base.clone()).expect("a file");
    base.channel.sqpoll = true;
    assert_eq!(settings, base);
}

#[test]
fn the_listing_has_a_row_for_every_knob_and_marks_what_was_turned() {
    let mut settings = Settings::default();
    set(&mut settings, "cpu.spin-us", "50").expect("in range");
    let rows = rows(&settings);
    assert_eq!(rows.len(), TABLE.len());
    let row = rows
        .iter()
        .find(|row| row.name == "cpu.spin-us")
        .expect("it");
    assert_eq!(
        (&row.value, &row.default),
        (&json!(50), &json!(Settings::default().cpu.spin_us))
    );
    assert_eq!(row.unit, "µs");
    let text = table(&settings);
    let marked: Vec<&str> = text.lines().filter(|line| line.starts_with('*')).collect();
    assert_eq!(marked.len(), 1, "{text}");
    assert!(marked[0].contains("cpu.spin-us"), "{text}");
    for knob in TABLE {
        assert!(text.contains(knob.meaning), "{text}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn settings_survive_being_written_as_toml(settings in any_settings()) {
        let text = to_toml(&settings);
        prop_assert_eq!(&from_toml(&text, Settings::default()).expect("what we wrote"), &settings);
        // And as the configuration file's own reader sees it.
        prop_assert_eq!(toml::from_str::<Settings>(&text).expect("what we wrote"), settings);
    }

    #[test]
    fn settings_survive_being_written_as_a_command_line(settings in any_settings()) {
        let line: Vec<String> = TABLE
            .iter()
            .map(|knob| format!("--{}={}", knob.argument, plain(&get(&settings, knob))))
            .collect();
        let line: Vec<&str> = line.iter().map(String::as_str).collect();
        prop_assert_eq!(parsed(&line).expect("what we wrote"), settings);
    }

    #[test]
    fn no_text_whatever_panics(name in ".{0,40}", text in ".{0,40}", knob in 0..TABLE.len()) {
        let before = Settings::default();
        let mut settings = before.clone();
        prop_assert!(set(&mut settings, &name, &text).is_err());
        if set(&mut settings, TABLE[knob].name, &text).is_err() {
            prop_assert_eq!(settings, before);
        }
        let _refused_or_not = from_toml(&text, Settings::default());
    }
}
