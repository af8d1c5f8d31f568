//! Debian's own Redis: built from this host's archive, and started.

#[allow(dead_code, reason = "Redis has no disk to be checked")]
mod qemu;

use qemu::Machine;
use std::io::{Read, Write};
use std::time::Duration;

#[test]
fn the_redis_guest_is_small_and_holds_what_it_needs() {
    let Some(guest) = qemu::guest("redis", "the_redis_guest_is_small_and_holds_what_it_needs")
    else {
        return;
    };
    guest.verify().expect("its digests");
    let manifest = &guest.manifest;
    assert!(
        manifest.initramfs.bytes < 60 << 20,
        "{} bytes",
        manifest.initramfs.bytes
    );
    for package in ["redis-server", "libc6", "busybox-static"] {
        assert!(
            manifest.packages.iter().any(|found| found.name == package),
            "{package}"
        );
    }
    for module in ["virtio_mmio", "virtio_net", "virtio-rng"] {
        let file = format!("/{module}.ko");
        assert!(
            manifest.modules.iter().any(|path| path.ends_with(&file)),
            "{module}"
        );
    }
    let position = |name: &str| {
        manifest
            .modules
            .iter()
            .position(|path| path.ends_with(name))
    };
    assert!(position("/failover.ko") < position("/virtio_net.ko"));
    let kernel = std::fs::read(guest.kernel()).expect("a kernel");
    // Documentation/x86/boot.rst: the header's magic at 0x202.
    assert_eq!(&kernel[0x202..0x206], b"HdrS");
}

#[test]
fn the_redis_guest_starts_and_answers() {
    const TEST: &str = "the_redis_guest_starts_and_answers";
    let Some(guest) = qemu::guest("redis", TEST) else {
        return;
    };
    let Some(machine) = Machine::boot(TEST, &guest, 6379, None) else {
        return;
    };
    assert!(machine.ready.contains(" redis "));
    let mut redis = machine.connect();
    redis
        .set_read_timeout(Some(Duration::from_secs(30)))
        .expect("a timeout");
    redis
        .write_all(b"SET k v\r\nINCR n\r\nGET k\r\n")
        .expect("it takes commands");
    let expected = b"+OK\r\n:1\r\n$1\r\nv\r\n";
    let mut answer = vec![0; expected.len()];
    redis.read_exact(&mut answer).expect("it answers");
    assert_eq!(answer, expected);
}
