//! Configuration files, right and wrong.

use super::{ConfigError, MacAddress, VmFile};
use lockstep_vmm::machine::engine::EngineChoice;
use lockstep_vmm::settings::Settings;
use std::path::Path;

/// The example of the module's page, which is the first thing people copy.
fn documented() -> String {
    include_str!("mod.rs")
        .lines()
        .skip_while(|line| *line != "//! ```toml")
        .skip(1)
        .take_while(|line| *line != "//! ```")
        .map(|line| line.trim_start_matches("//!").trim_start().to_owned() + "\n")
        .collect()
}

fn error_of(text: &str) -> String {
    VmFile::parse(text).expect_err("must be refused")
}

#[test]
fn the_documented_example_is_valid_and_survives_being_written() {
    let file = VmFile::parse(&documented()).expect("the documented example");
    assert_eq!(file.vm.name, "web");
    assert_eq!(file.vm.mac, MacAddress([2, 0x4c, 0x53, 0, 0, 2]));
    assert_eq!(file.vm.engine, EngineChoice::Auto);
    assert_eq!(file.settings.failure.heartbeat_timeout_ms, 100);
    let written = toml::to_string(&file).expect("a file");
    assert_eq!(VmFile::parse(&written).expect("what we wrote"), file);
}

#[test]
fn a_name_is_all_that_a_file_must_hold() {
    let file = VmFile::parse("[vm]\nname = 'x'").expect("a minimal file");
    assert_eq!(file.settings, Settings::default());
    assert_eq!(file.vm.kernel, "bare-tenant");
    assert!(error_of("[vm]").contains("name"));
}

#[test]
fn an_unknown_key_is_an_error_that_names_the_nearest_valid_one() {
    for (text, nearest) in [
        ("[vm]\nname = 'x'\nmemory = 1", "memory-mib"),
        ("[vm]\nname = 'x'\nmemory_mib = 1", "memory-mib"),
        ("[vm]\nname = 'x'\nkernal = 'a'", "kernel"),
        ("[vm]\nname = 'x'\n[netwrok]\ntap = 'a'", "network"),
        (
            "[vm]\nname = 'x'\n[settings.failure]\nheartbeat_timeout = 1",
            "heartbeat-timeout-ms",
        ),
        ("[vm]\nname = 'x'\nengine = 'KVM'", "kvm"),
        (
            "[vm]\nname = 'x'\n[settings.channel]\ntransport = 'tpc'",
            "tcp",
        ),
    ] {
        let error = error_of(text);
        assert!(
            error.contains(&format!("the nearest valid name is `{nearest}`")),
            "{text}\n{error}"
        );
        assert!(error.contains("line "), "{error}");
    }
}

#[test]
fn values_that_a_key_cannot_have_are_refused_with_their_place() {
    for (text, says) in [
        ("[vm]\nname = 'x'\nmac = '02:4c:53:00:00'", "six octets"),
        ("[vm]\nname = 'x'\nmac = '02:4c:53:00:00:+2'", "six octets"),
        (
            "[vm]\nname = 'x'\nmac = '02:4c:53:00:00:02:03'",
            "six octets",
        ),
        ("[vm]\nname = 'x'\nmemory-mib = -1", "-1"),
        ("[vm]\nname = 'x'\nip = '10.0.0'", "10.0.0"),
        (
            "[vm]\nname = 'x'\n[channel]\nheartbeat-peer = 'host'",
            "socket address",
        ),
        ("not toml", "expected"),
    ] {
        let error = error_of(text);
        assert!(error.contains(says), "{text}\n{error}");
        assert!(!error.contains("help:"), "{error}");
    }
}

#[test]
fn paths_are_relative_to_the_file_that_names_them() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("vm.toml");
    let text = "[vm]\nname = 'x'\nkernel = 'vmlinux'\ninitrd = 'disk'\n[network]\nswitch = 'sw'\n\
                [arbiter]\ndirectory = '/shared'";
    std::fs::write(&path, text).expect("write");
    let file = VmFile::read(&path).expect("valid");
    assert_eq!(Path::new(&file.vm.kernel), directory.path().join("vmlinux"));
    assert_eq!(file.vm.initrd, Some(directory.path().join("disk")));
    let network = file.network.expect("given");
    assert_eq!(network.switch, Some(directory.path().join("sw")));
    let arbiter = file.arbiter.expect("given");
    assert_eq!(arbiter.directory, Path::new("/shared"));
}

#[test]
fn a_machine_has_one_interface() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("vm.toml");
    let read = |network: &str| {
        std::fs::write(&path, format!("[vm]\nname = 'x'\n[network]\n{network}")).expect("write");
        VmFile::read(&path)
    };
    assert!(matches!(
        read("tap = 'a'\nswitch = 'b'"),
        Err(ConfigError::TwoNetworks)
    ));
    assert!(matches!(read(""), Err(ConfigError::Missing { .. })));
    assert!(read("tap = 'a'").is_ok());
    let missing = VmFile::read(&directory.path().join("nobody.toml")).expect_err("not there");
    assert!(missing.to_string().contains("nobody.toml"), "{missing}");
}
