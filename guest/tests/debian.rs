//! Guests built from packages made for the purpose, out of an archive in a directory: the whole way
//! through apt-get and dpkg-deb, without a network.

mod archive;

use archive::{Archive, SourcePackage};
use lockstep_guest::debian::{Builder, Freshness, Guest, GuestBuildError, GuestSpec, Recipe, Step};
use lockstep_perf::not_run;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const RECIPE: &str = "summary = 'a test'\npackages = ['tenant']\nmemory-mib = 64\nwithout = ['/opt/big*']\n\
    [service]\nuser = 'me'\ncommand = 'tenant --serve'\nready = 'true'\n\
    [[users]]\nname = 'me'\nid = 7\nhome = '/var/lib/me'\n\
    [[directories]]\npath = '/var/lib/me'\nowner = 'me'\nmode = '0700'\n\
    [[files]]\npath = '/etc/tenant.conf'\ntext = 'from the recipe'\n";

/// A small world: a tenant with a library, a busybox, a kernel.
fn world() -> Vec<SourcePackage> {
    let modules = "kernel/virtio_mmio.ko\nkernel/virtio_net.ko\nkernel/virtio_rng.ko\nkernel/virtio_blk.ko\nkernel/ext4.ko\n";
    vec![
        SourcePackage::new("tenant", "1:2.0-1")
            .depends("libtenant (>= 1), adduser, libpam-runtime (>= 1.1)")
            .file("usr/bin/tenant", 0o4755, "#!/bin/sh\n")
            .file("etc/tenant.conf", 0o644, "from the package")
            .file("opt/big/table", 0o644, "left out")
            .file("usr/share/doc/tenant/copyright", 0o644, "left out"),
        SourcePackage::new("libtenant", "1.5").file("lib/libtenant.so", 0o644, "library"),
        SourcePackage::new("adduser", "3").file("usr/sbin/adduser", 0o755, "stood in for"),
        SourcePackage::new("libpam-runtime", "1.5").file("etc/pam.conf", 0o644, "stood in for"),
        SourcePackage::new("wants-exactly", "1")
            .depends("adduser (= 3)")
            .file("usr/bin/wants-exactly", 0o755, ""),
        SourcePackage::new("busybox-static", "1").file("bin/busybox", 0o755, "busybox"),
        SourcePackage::new("linux-image-test", "6.1").depends("linux-image-6.1-test, kmod"),
        SourcePackage::new("linux-image-6.1-test", "6.1")
            .file("boot/vmlinuz-6.1-test", 0o644, "the kernel")
            .file("boot/config-6.1-test", 0o644, "left out")
            .file("lib/modules/6.1-test/modules.builtin", 0o644, modules),
    ]
}

fn archive(test: &str) -> Option<Archive> {
    for (program, package) in [("apt-get", "apt"), ("dpkg-deb", "dpkg")] {
        let there = Command::new(program)
            .arg("--version")
            .stdout(Stdio::null())
            .status();
        if let Err(error) = there {
            not_run::report(
                test,
                &format!("{program} cannot be started ({error}): install {package}"),
            );
            return None;
        }
    }
    Some(Archive::new(&world()))
}

fn spec() -> GuestSpec {
    GuestSpec {
        kernel_package: "linux-image-test".to_owned(),
        ..GuestSpec::new(Some(Recipe::parse("test", RECIPE).expect("a recipe")))
    }
}

fn builder(archive: &Archive, cache: &Path) -> Builder {
    let mut builder = Builder::new(cache);
    builder.apt_configuration = Some(archive.configuration());
    builder
}

fn build(builder: &Builder, spec: &GuestSpec) -> Result<Guest, GuestBuildError> {
    builder.build(spec, &mut |_| {})
}

/// Names in the guest's initramfs with their mode and owner, and contents.
fn members(guest: &Guest) -> Vec<(String, u32, u32, Vec<u8>)> {
    let data = fs::read(guest.initramfs()).expect("an initramfs");
    let mut members = Vec::new();
    let mut at = 0;
    loop {
        let field = |n: usize| {
            let text = &data[at + 6 + 8 * n..at + 14 + 8 * n];
            usize::from_str_radix(std::str::from_utf8(text).expect("ASCII"), 16).expect("a number")
        };
        let name_at = at + 110;
        let name_end = name_at + field(11);
        let data_at = name_end.next_multiple_of(4);
        let name = String::from_utf8(data[name_at..name_end - 1].to_vec()).expect("UTF-8");
        if name == "TRAILER!!!" {
            return members;
        }
        let contents = data[data_at..data_at + field(6)].to_vec();
        members.push((name, field(1) as u32, field(2) as u32, contents));
        at = (data_at + field(6)).next_multiple_of(4);
    }
}

#[test]
fn a_guest_is_what_its_packages_and_its_recipe_say() {
    let Some(archive) = archive("a_guest_is_what_its_packages_and_its_recipe_say") else {
        return;
    };
    let cache = tempfile::tempdir().expect("a directory");
    let guest = build(&builder(&archive, cache.path()), &spec()).expect("a guest");
    guest.verify().expect("its digests");
    assert_eq!(fs::read(guest.kernel()).expect("a kernel"), b"the kernel");
    let manifest = &guest.manifest;
    let packages: Vec<&str> = manifest
        .packages
        .iter()
        .map(|package| package.name.as_str())
        .collect();
    assert_eq!(
        packages,
        [
            "busybox-static",
            "libtenant",
            "linux-image-6.1-test",
            "linux-image-test",
            "tenant"
        ]
    );
    assert_eq!(manifest.packages[4].version, "1:2.0-1");
    assert_eq!(manifest.kernel_release, "6.1-test");
    assert_eq!(manifest.memory_mib, 64);

    let members = members(&guest);
    let find = |path: &str| members.iter().find(|(name, ..)| name == path);
    let contents = |path: &str| find(path).map(|(_, _, _, contents)| contents.as_slice());
    let (_, mode, uid, _) = find("usr/bin/tenant").expect("the tenant");
    assert_eq!(
        (*mode, *uid),
        (0o104_755, 0),
        "setuid bit and owner, without root"
    );
    assert_eq!(contents("etc/tenant.conf"), Some(&b"from the recipe"[..]));
    assert_eq!(
        contents("usr/lib/libtenant.so"),
        Some(&b"library"[..]),
        "/usr is merged"
    );
    assert_eq!(contents("lib"), Some(&b"usr/lib"[..]));
    let (_, mode, uid, _) = find("var/lib/me").expect("the recipe's directory");
    assert_eq!((*mode, *uid), (0o040_700, 7));
    let passwd = String::from_utf8_lossy(contents("etc/passwd").expect("users"));
    assert!(passwd.contains("\nme:x:7:7::/var/lib/me:"), "{passwd}");
    for path in [
        "init",
        "usr/bin/busybox",
        "usr/bin/sh",
        "usr/lib/lockstep/service",
        "dev/console",
    ] {
        assert!(find(path).is_some(), "{path} is missing");
    }
    for path in [
        "opt/big",
        "usr/share/doc",
        "boot",
        "usr/sbin/adduser",
        "etc/pam.conf",
        "maintainer-script-ran",
    ] {
        assert!(find(path).is_none(), "{path} is in the guest");
    }
}

#[test]
fn the_same_packages_give_the_same_bytes_and_the_second_build_is_the_first() {
    let Some(archive) =
        archive("the_same_packages_give_the_same_bytes_and_the_second_build_is_the_first")
    else {
        return;
    };
    let caches = [(); 2].map(|()| tempfile::tempdir().expect("a directory"));
    let guests = caches
        .each_ref()
        .map(|cache| build(&builder(&archive, cache.path()), &spec()).expect("a guest"));
    assert!(!guests[0].cached && !guests[1].cached);
    assert_eq!(guests[0].manifest, guests[1].manifest);
    let manifests = guests
        .each_ref()
        .map(|guest| fs::read(guest.directory.join("manifest.json")).expect("a file"));
    assert_eq!(manifests[0], manifests[1]);

    // From the cache: no program is run, and nothing is asked.
    let mut steps = Vec::new();
    let mut offline = builder(&archive, caches[0].path());
    offline.freshness = Freshness::Offline;
    let again = offline
        .build(&spec(), &mut |step| steps.push(step))
        .expect("the same guest");
    assert!(again.cached);
    assert_eq!(
        (&again.directory, &again.manifest),
        (&guests[0].directory, &guests[0].manifest)
    );
    assert_eq!(steps, []);

    let mut other = spec();
    if let Some(recipe) = &mut other.recipe {
        recipe.service.command.push_str(" --more");
    }
    let other = offline.build(&other, &mut |_| {}).expect("another guest");
    assert_ne!(other.manifest.guest, again.manifest.guest);
    assert_ne!(
        other.manifest.initramfs.sha256,
        again.manifest.initramfs.sha256
    );
    assert_eq!(other.manifest.kernel, again.manifest.kernel);
}

#[test]
fn what_an_interrupted_build_left_is_neither_used_nor_in_the_way() {
    let Some(archive) = archive("what_an_interrupted_build_left_is_neither_used_nor_in_the_way")
    else {
        return;
    };
    let directory = tempfile::tempdir().expect("a directory");
    let builder = builder(&archive, directory.path());
    let first = build(&builder, &spec()).expect("a guest");
    let guests = first.directory.parent().expect("the cache");
    let cache = guests.parent().expect("the cache");
    // Half a guest, half a package, half an answer of the package client's, a build cut off.
    fs::write(first.initramfs(), "half").expect("write");
    fs::create_dir(guests.join(".new-cut-off")).expect("a directory");
    for entry in fs::read_dir(cache.join("pool")).expect("the pool") {
        let path = entry.expect("an entry").path();
        let whole = fs::read(&path).expect("a package");
        fs::write(path, &whole[..whole.len() / 2]).expect("write");
    }
    for entry in fs::read_dir(cache.join("resolved")).expect("answers") {
        fs::write(entry.expect("an entry").path(), "{\"packages\":[").expect("write");
    }
    Guest::open(&first.directory).expect_err("it is not whole");
    let second = build(&builder, &spec()).expect("a guest");
    assert!(!second.cached);
    assert_eq!(second.manifest, first.manifest);
    second.verify().expect("its digests");
}

#[test]
fn a_newer_package_is_found_once_the_answer_at_hand_is_too_old() {
    let Some(archive) = archive("a_newer_package_is_found_once_the_answer_at_hand_is_too_old")
    else {
        return;
    };
    let cache = tempfile::tempdir().expect("a directory");
    let mut builder = builder(&archive, cache.path());
    let old = build(&builder, &spec()).expect("a guest");
    archive.publish(&[SourcePackage::new("libtenant", "1.6").file(
        "lib/libtenant.so",
        0o644,
        "newer",
    )]);
    assert!(
        build(&builder, &spec()).expect("a guest").cached,
        "within a day"
    );
    builder.freshness = Freshness::Within(Duration::ZERO);
    let new = build(&builder, &spec()).expect("a guest");
    assert_eq!(new.manifest.packages[1].version, "1.6");
    assert_ne!(new.manifest.guest, old.manifest.guest);
}

#[test]
fn what_stands_in_gives_way_to_who_needs_the_real_one() {
    let Some(archive) = archive("what_stands_in_gives_way_to_who_needs_the_real_one") else {
        return;
    };
    let cache = tempfile::tempdir().expect("a directory");
    let builder = builder(&archive, cache.path());
    let with = |package: &str| GuestSpec {
        packages: vec![package.to_owned()],
        ..spec()
    };
    let has = |guest: &Guest, name: &str| {
        guest
            .manifest
            .packages
            .iter()
            .any(|package| package.name == name)
    };
    let named = build(&builder, &with("adduser")).expect("a guest");
    assert!(has(&named, "adduser") && !has(&named, "libpam-runtime"));
    // The whole closure is not to be had here: it would need a kmod, which nobody published.
    let error = build(&builder, &with("wants-exactly")).expect_err("no kmod");
    assert!(error.to_string().contains("wants-exactly"), "{error}");
    archive.publish(&[SourcePackage::new("kmod", "30").file("bin/kmod", 0o755, "")]);
    let mut fresh = builder.clone();
    fresh.freshness = Freshness::Within(Duration::ZERO);
    let mut warned = false;
    let exactly = fresh
        .build(&with("wants-exactly"), &mut |step| {
            warned |= matches!(step, Step::Warning(_))
        })
        .expect("a guest");
    assert!(warned && has(&exactly, "adduser") && has(&exactly, "kmod"));
    assert!(exactly.manifest.stand_ins.is_empty());
}

#[test]
fn what_cannot_be_built_is_named_with_what_to_do() {
    let Some(archive) = archive("what_cannot_be_built_is_named_with_what_to_do") else {
        return;
    };
    let cache = tempfile::tempdir().expect("a directory");
    let builder = builder(&archive, cache.path());
    let says = |change: fn(&mut GuestSpec)| {
        let mut spec = spec();
        change(&mut spec);
        build(&builder, &spec).expect_err("no guest").to_string()
    };
    let text = says(|spec| spec.packages.push("no-such-package".to_owned()));
    assert!(
        text.contains("no-such-package") && text.contains("apt sources"),
        "{text}"
    );
    let text = says(|spec| spec.packages.push("--allow-unauthenticated".to_owned()));
    assert!(text.contains("is no package name"), "{text}");
    let text = says(|spec| spec.kernel_package = "libtenant".to_owned());
    assert!(
        text.contains("0 kernels") && text.contains("--kernel"),
        "{text}"
    );
    let text = says(|spec| spec.modules.push("virtio_pci".to_owned()));
    assert!(text.contains("6.1-test has no module virtio_pci"), "{text}");
    let mut offline = builder.clone();
    offline.freshness = Freshness::Offline;
    let text = build(
        &offline,
        &GuestSpec {
            packages: vec!["adduser".to_owned()],
            ..spec()
        },
    )
    .expect_err("never asked")
    .to_string();
    assert!(text.contains("--offline"), "{text}");
}

#[test]
fn a_copy_appears_whole_and_replaces_only_a_guest() {
    let Some(archive) = archive("a_copy_appears_whole_and_replaces_only_a_guest") else {
        return;
    };
    let cache = tempfile::tempdir().expect("a directory");
    let guest = build(&builder(&archive, cache.path()), &spec()).expect("a guest");
    let out = cache.path().join("a/b/out");
    for _ in 0..2 {
        let copy = guest.copy_to(&out).expect("a copy");
        copy.verify().expect("its digests");
        assert_eq!(Guest::open(&out).expect("a guest").manifest, guest.manifest);
    }
    let text = guest
        .copy_to(cache.path())
        .expect_err("something else is there")
        .to_string();
    assert!(text.contains("is no guest"), "{text}");
    fs::write(out.join("kernel"), "THE kernel").expect("write");
    let text = Guest::open(&out)
        .expect("as long as before")
        .verify()
        .expect_err("another")
        .to_string();
    assert!(text.contains("SHA-256 of kernel"), "{text}");
}
