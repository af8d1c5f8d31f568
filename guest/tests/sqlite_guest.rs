//! Debian's own SQLite, its data on a disk.

mod qemu;

use qemu::Machine;
use std::fs::File;
use std::io::{Read, Write};

/// What SQLite's shell answers to one line of SQL, up to our mark or its end.
fn ask(machine: &Machine, sql: &str) -> String {
    let mut shell = machine.connect();
    write!(shell, "{sql}\n.print end\n").expect("it takes SQL");
    let mut answer = Vec::new();
    while !answer.ends_with(b"end\n") {
        let mut byte = [0];
        if shell.read(&mut byte).expect("it answers") == 0 {
            break;
        }
        answer.push(byte[0]);
    }
    String::from_utf8(answer).expect("text")
}

#[test]
fn what_sqlite_committed_is_on_the_disk_when_the_machine_starts_again() {
    const TEST: &str = "what_sqlite_committed_is_on_the_disk_when_the_machine_starts_again";
    let Some(guest) = qemu::guest("sqlite", TEST) else {
        return;
    };
    let directory = tempfile::tempdir().expect("a directory");
    let disk = directory.path().join("disk");
    let mib = guest.manifest.disk_mib.expect("its data need a disk");
    File::create(&disk)
        .and_then(|file| file.set_len(u64::from(mib) << 20))
        .expect("a blank disk");
    // Without a word of farewell: what was answered is on the disk.
    let Some(machine) = Machine::boot(TEST, &guest, 5433, Some(&disk)) else {
        return;
    };
    assert_eq!(
        ask(&machine, "CREATE TABLE t (n); INSERT INTO t VALUES (42);"),
        "end\n"
    );
    let refused = ask(&machine, ".shell id");
    assert!(refused.contains("safe mode"), "{refused}");
    drop(machine);
    let Some(machine) = Machine::boot(TEST, &guest, 5433, Some(&disk)) else {
        return;
    };
    assert_eq!(ask(&machine, "SELECT n FROM t;"), "42\nend\n");
    let said = machine.control("check");
    assert_eq!(said.last().map(String::as_str), Some("ok"), "{said:?}");
    assert!(
        said.iter().any(|line| line.starts_with("Pass 5")),
        "the file system was checked: {said:?}"
    );
    assert_eq!(machine.control("poweroff"), ["ok"]);
    machine.wait();
}

#[test]
fn a_disk_that_is_somebody_elses_is_left_alone() {
    const TEST: &str = "a_disk_that_is_somebody_elses_is_left_alone";
    let Some(guest) = qemu::guest("sqlite", TEST) else {
        return;
    };
    let directory = tempfile::tempdir().expect("a directory");
    let disk = directory.path().join("disk");
    let theirs = vec![0xa5; 16 << 20];
    std::fs::write(&disk, &theirs).expect("a disk");
    let Some(said) = Machine::boot_until(
        TEST,
        &guest,
        5433,
        Some(&disk),
        "lockstep: /dev/vda can hold no data of sqlite",
    ) else {
        return;
    };
    drop(said);
    assert!(std::fs::read(&disk).expect("the disk") == theirs);
}
