use super::*;
use proptest::prelude::*;

const RAM_BYTES: u64 = 4 << 20;

fn ram() -> GuestRam {
    GuestRam::new(RAM_BYTES).unwrap()
}

fn word(ram: &GuestRam, address: u64) -> u64 {
    let mut bytes = [0; 8];
    ram.read(address, &mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}

/// An ELF image of one segment.
fn elf_image(entry: u64, address: u64, memory_bytes: u64, contents: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 120];
    image[..6].copy_from_slice(b"\x7fELF\x02\x01");
    let mut put =
        |offset: usize, bytes: &[u8]| image[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(18, &62u16.to_le_bytes());
    put(24, &entry.to_le_bytes());
    put(32, &64u64.to_le_bytes());
    put(54, &56u16.to_le_bytes());
    put(56, &1u16.to_le_bytes());
    put(64, &1u32.to_le_bytes());
    for (offset, value) in [
        (72, 120),
        (80, address),
        (88, address),
        (96, contents.len() as u64),
        (104, memory_bytes),
    ] {
        put(offset, &value.to_le_bytes());
    }
    image.extend_from_slice(contents);
    image
}

/// A bzImage of one sector of set-up code and `contents`.
fn bzimage(contents: &[u8], change: impl FnOnce(&mut [u8])) -> Vec<u8> {
    let mut image = vec![0; 1024];
    let mut put =
        |offset: usize, bytes: &[u8]| image[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]);
    put(0x1fe, &0xaa55u16.to_le_bytes());
    put(0x202, b"HdrS");
    put(0x206, &0x020fu16.to_le_bytes());
    put(0x211, &[1]);
    put(0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(0x236, &1u16.to_le_bytes());
    put(0x238, &64u32.to_le_bytes());
    put(0x258, &0x20_0000u64.to_le_bytes());
    put(0x260, &0x10_0000u32.to_le_bytes());
    change(&mut image);
    image.extend_from_slice(contents);
    image
}

#[test]
fn an_elf_image_starts_in_long_mode_with_four_gib_mapped_one_to_one() {
    let ram = ram();
    let image = elf_image(0x10_0002, 0x10_0000, 0x2000, &[0x90, 0x90, 0xf4]);
    let state = load(&ram, &image, None, "hello").unwrap();
    assert_eq!(
        (state.rip, state.rflags & crate::machine::RFLAGS_IF),
        (0x10_0002, 0)
    );
    assert_eq!(
        (state.segments[1].selector, state.segments[3].selector),
        (0x10, 0x18)
    );
    let mut code = [0; 3];
    ram.read(0x10_0000, &mut code).unwrap();
    assert_eq!(code, [0x90, 0x90, 0xf4]);
    for gigabyte in 0..4u64 {
        for page in [0, 511] {
            let directory = word(&ram, (word(&ram, state.cr3) & !0xfff) + gigabyte * 8) & !0xfff;
            let entry = word(&ram, directory + page * 8);
            assert_eq!(entry, ((gigabyte << 30) + (page << 21)) | 0x83);
        }
    }
    let zero_page = state.gpr[long_mode::RSI];
    assert_eq!(zero_page, 0x7000);
    let command_line = word(&ram, zero_page + 0x228) as u32;
    let mut text = [0; 6];
    ram.read(u64::from(command_line), &mut text).unwrap();
    assert_eq!(&text, b"hello\0");
    assert_eq!(word(&ram, zero_page + 0x1e8) as u8, 3, "e820 entries");
    assert_eq!(word(&ram, zero_page + 0x2d0 + 2 * 20), KERNEL_START);
    assert_eq!(
        word(&ram, zero_page + 0x2d0 + 2 * 20 + 8),
        RAM_BYTES - KERNEL_START
    );
}

#[test]
fn a_bzimage_starts_at_its_64_bit_entry_with_its_header_and_initrd() {
    let ram = ram();
    let state = load(
        &ram,
        &bzimage(&[0xf4; 0x400], |_| {}),
        Some(b"disk"),
        "root=x",
    )
    .unwrap();
    assert_eq!(state.rip, KERNEL_START + 0x200);
    let zero_page = state.gpr[long_mode::RSI];
    assert_eq!(
        word(&ram, zero_page + 0x202) as u32,
        u32::from_le_bytes(*b"HdrS")
    );
    assert_eq!(word(&ram, zero_page + 0x210) as u8, 0xff);
    let (start, bytes) = (
        word(&ram, zero_page + 0x218) as u32,
        word(&ram, zero_page + 0x21c) as u32,
    );
    assert_eq!((u64::from(start), bytes), (RAM_BYTES - 4096, 4));
    let mut disk = [0; 4];
    ram.read(u64::from(start), &mut disk).unwrap();
    assert_eq!(&disk, b"disk");
}

#[test]
fn images_that_do_not_fit_are_refused_with_the_addresses() {
    let large = RAM_BYTES - KERNEL_START + 1;
    for (address, bytes) in [
        (0x1000, 16),
        (0x10_0000, large),
        (u64::MAX - 4, 16),
        (0xd000_0000, 16),
    ] {
        let image = elf_image(address, address, bytes, &[0xf4]);
        let error = load(&ram(), &image, None, "").unwrap_err();
        assert!(matches!(error, BootError::Placement { .. }), "{error}");
    }
    let image = elf_image(0x20_0000, 0x10_0000, 16, &[0xf4]);
    assert!(matches!(
        load(&ram(), &image, None, ""),
        Err(BootError::Entry { .. })
    ));
    let image = bzimage(&[0; 16], |header| {
        header[0x260..0x264].copy_from_slice(&[0xff; 4])
    });
    assert!(matches!(
        load(&ram(), &image, None, ""),
        Err(BootError::Placement { .. })
    ));
    let image = bzimage(&vec![0; RAM_BYTES as usize], |_| {});
    assert!(matches!(
        load(&ram(), &image, None, ""),
        Err(BootError::Placement { .. })
    ));
    let disk = vec![0; RAM_BYTES as usize];
    let error = load(&ram(), &bzimage(&[0; 16], |_| {}), Some(&disk), "").unwrap_err();
    assert!(matches!(error, BootError::Initrd { .. }), "{error}");
}

#[test]
fn images_of_other_kinds_are_refused_by_name() {
    assert!(matches!(
        load(&ram(), b"", None, ""),
        Err(BootError::UnknownFormat(0))
    ));
    let mut other = elf_image(0x10_0000, 0x10_0000, 16, &[0xf4]);
    other[18] = 40;
    assert!(matches!(
        load(&ram(), &other, None, ""),
        Err(BootError::UnknownFormat(_))
    ));
    let old = bzimage(&[0; 16], |header| header[0x236] = 0);
    assert!(matches!(
        load(&ram(), &old, None, ""),
        Err(BootError::No64BitEntry { .. })
    ));
    let line = "x".repeat(65);
    let error = load(&ram(), &bzimage(&[0; 16], |_| {}), None, &line).unwrap_err();
    assert!(
        matches!(
            error,
            BootError::CommandLine {
                found: 65,
                limit: 64
            }
        ),
        "{error}"
    );
    let image = elf_image(0x10_0000, 0x10_0000, 16, &[0xf4]);
    assert!(matches!(
        load(&ram(), &image, Some(b""), ""),
        Err(BootError::InitrdWithoutLinux)
    ));
}

#[test]
fn the_bare_tenant_is_no_operating_system_and_a_bzimage_is_one() {
    assert_eq!(
        image_kind(lockstep_guest::bare_tenant()),
        Some(ImageKind::Bare)
    );
    assert_eq!(
        image_kind(&bzimage(&[], |_| {})),
        Some(ImageKind::OperatingSystem)
    );
    assert_eq!(image_kind(b"#!/bin/sh"), None);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn damaged_images_are_refused_or_loaded_and_never_panic(
        kind in 0u8..3,
        cut in any::<prop::sample::Index>(),
        changes in prop::collection::vec((0usize..0x280, any::<u8>()), 0..8),
    ) {
        let mut image = match kind {
            0 => lockstep_guest::bare_tenant().to_vec(),
            1 => elf_image(0x10_0000, 0x10_0000, 0x1000, &[0xf4; 64]),
            _ => bzimage(&[0xf4; 0x400], |_| {}),
        };
        for (offset, value) in changes {
            if let Some(byte) = image.get_mut(offset) {
                *byte = value;
            }
        }
        if cut.index(2) == 0 {
            image.truncate(cut.index(image.len()));
        }
        let _ = image_kind(&image);
        let _ = load(&ram(), &image, None, "quiet");
    }
}
