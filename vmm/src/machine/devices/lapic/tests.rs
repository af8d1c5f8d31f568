use super::*;

const EOI: u64 = 0xb0;
const TPR: u64 = 0x80;
const ICR: u64 = 0x300;
const TIMER: u64 = 0x320;
const LINT0: u64 = 0x350;
const ERROR: u64 = 0x370;
const INITIAL: u64 = 0x380;
const CURRENT: u64 = 0x390;
const DIVIDE: u64 = 0x3e0;
/// Divide by one.
const BY_ONE: u32 = 0b1011;

fn timer(entry: u32) -> LocalApic {
    let mut apic = LocalApic::default();
    apic.write(DIVIDE, BY_ONE, 0);
    apic.write(TIMER, entry, 0);
    apic
}

/// Vectors taken by the times at which the timer is due, up to `until`, each served at once.
fn expiries(apic: &mut LocalApic, until: VirtualTime) -> Vec<VirtualTime> {
    let mut seen = Vec::new();
    while let Some(due) = apic.deadline().filter(|due| *due <= until) {
        apic.serve_timer(due);
        if apic.begin_service().is_some() {
            seen.push(due);
            apic.write(EOI, 0, due);
        }
    }
    seen
}

#[test]
fn it_starts_as_a_virtual_wire() {
    let apic = LocalApic::default();
    assert!(apic.passes_ext_int());
    assert_eq!(apic.read(0x30, 0), 0x0005_0014);
    assert_eq!(apic.pending(), None);
    assert!(apic.is_sound());
}

/// 10.8.3: the higher class first, the lower after its end.
#[test]
fn a_higher_class_interrupts_and_a_lower_waits_for_the_end_of_interrupt() {
    let mut apic = LocalApic::default();
    apic.accept(0x51, false);
    assert_eq!(apic.begin_service(), Some(0x51));
    apic.accept(0x52, false);
    assert_eq!(apic.pending(), None, "the same class waits");
    apic.accept(0x61, false);
    assert_eq!(apic.begin_service(), Some(0x61));
    apic.write(EOI, 0, 0);
    assert_eq!(apic.pending(), None, "0x51 is still in service");
    apic.write(EOI, 0, 0);
    assert_eq!(apic.begin_service(), Some(0x52));
}

/// 10.8.3.1: PPR is the greater of TPR and the class in service.
#[test]
fn the_task_priority_holds_back_its_class_and_below() {
    let mut apic = LocalApic::default();
    apic.write(TPR, 0x5f, 0);
    apic.accept(0x5f, false);
    assert_eq!(apic.pending(), None);
    assert_eq!(apic.read(0xa0, 0), 0x5f);
    apic.accept(0x60, false);
    assert_eq!(apic.begin_service(), Some(0x60));
    assert_eq!(apic.read(0xa0, 0), 0x60);
    apic.write(TPR, 0, 0);
    apic.write(EOI, 0, 0);
    assert_eq!(apic.begin_service(), Some(0x5f));
}

/// 10.8.4: TMR says whether EOI goes to the I/O APIC.
#[test]
fn only_the_end_of_a_level_interrupt_is_broadcast() {
    let mut apic = LocalApic::default();
    apic.accept(0x41, true);
    apic.begin_service();
    assert_eq!(apic.read(0x1a0, 0), 1 << 1, "TMR bit 0x41");
    assert_eq!(apic.write(EOI, 0, 0), Effect::EndOfInterrupt(0x41));
    apic.accept(0x41, false);
    apic.begin_service();
    assert_eq!(apic.write(EOI, 0, 0), Effect::None);
    assert_eq!(apic.write(EOI, 0, 0), Effect::None, "nothing in service");
}

/// 10.5.4: one count, once.
#[test]
fn one_shot_counts_down_once_and_shows_the_count() {
    let mut apic = timer(0xef);
    apic.write(INITIAL, 1000, 50);
    assert_eq!(apic.read(CURRENT, 350), 700);
    assert_eq!(expiries(&mut apic, u64::MAX), [1050]);
    assert_eq!(apic.read(CURRENT, 2000), 0);
    apic.write(INITIAL, 10, 3000);
    apic.write(INITIAL, 0, 3001);
    assert_eq!(apic.deadline(), None, "zero stops it");
}

#[test]
fn the_divider_stretches_counts_by_its_table() {
    for (register, by) in [
        (0b0000, 2),
        (0b0001, 4),
        (0b0010, 8),
        (0b0011, 16),
        (0b1000, 32),
        (0b1001, 64),
        (0b1010, 128),
        (0b1011, 1),
    ] {
        let mut apic = timer(0xef);
        apic.write(DIVIDE, register, 0);
        apic.write(INITIAL, 1000, 0);
        assert_eq!(apic.deadline(), Some(1000 * by), "{register:#06b}");
    }
}

#[test]
fn periodic_goes_on_and_missed_periods_are_one_interrupt() {
    let mut apic = timer(1 << 17 | 0xef);
    apic.write(INITIAL, 5000, 0);
    assert_eq!(expiries(&mut apic, 15_000), [5000, 10_000, 15_000]);
    apic.serve_timer(32_000);
    assert_eq!(apic.deadline(), Some(35_000));
    assert_eq!(apic.begin_service(), Some(0xef));
    assert_eq!(apic.pending(), None);
    apic.write(INITIAL, 1, 40_000);
    assert_eq!(
        apic.deadline(),
        Some(41_000),
        "no faster than a microsecond"
    );
}

/// 10.5.4.1.
#[test]
fn a_deadline_is_armed_by_its_register_and_reads_zero_once_it_is_over() {
    let mut apic = timer(2 << 17 | 0xef);
    apic.write(INITIAL, 1000, 0);
    assert_eq!(apic.deadline(), None, "the count register is ignored");
    apic.set_tsc_deadline(700);
    assert_eq!(apic.tsc_deadline(), 700);
    assert_eq!(expiries(&mut apic, u64::MAX), [700]);
    assert_eq!(apic.tsc_deadline(), 0);
    apic.set_tsc_deadline(900);
    apic.set_tsc_deadline(0);
    assert_eq!(apic.deadline(), None);
    apic.set_tsc_deadline(900);
    apic.write(TIMER, 0xef, 800);
    assert_eq!(apic.deadline(), None, "leaving the mode disarms");
    apic.set_tsc_deadline(900);
    assert_eq!(apic.tsc_deadline(), 0, "ignored in the other modes");
}

#[test]
fn a_masked_timer_runs_without_interrupting() {
    let mut apic = timer(MASKED | 0xef);
    apic.write(INITIAL, 1000, 0);
    assert_eq!(apic.next_interrupt(), None);
    apic.serve_timer(1000);
    assert_eq!(apic.pending(), None);
}

/// 10.4.7.2.
#[test]
fn switched_off_it_masks_its_entries_and_accepts_nothing() {
    let mut apic = timer(0xef);
    apic.accept(0x41, false);
    apic.write(0xf0, 0xff, 0);
    assert!(!apic.passes_ext_int());
    assert!(!apic.accept(0x42, false));
    assert_eq!(apic.pending(), None);
    apic.write(LINT0, EXT_INT, 0);
    assert!(
        !apic.passes_ext_int(),
        "entries stay masked while it is off"
    );
    apic.write(0xf0, 0x1ff, 0);
    assert_eq!(apic.pending(), Some(0x41), "what was requested is kept");
    apic.write(LINT0, EXT_INT, 0);
    assert!(apic.passes_ext_int());
}

/// 10.6.1.
#[test]
fn commands_to_oneself_interrupt_and_commands_to_others_do_not() {
    let mut apic = LocalApic::default();
    apic.write(ICR, 1 << 18 | 0xf6, 0);
    assert_eq!(apic.begin_service(), Some(0xf6), "shorthand: self");
    apic.write(EOI, 0, 0);
    apic.write(ICR, 3 << 18 | 0xf6, 0);
    assert_eq!(apic.pending(), None, "shorthand: all but self");
    apic.write(0x310, 5 << 24, 0);
    apic.write(ICR, 0xf6, 0);
    assert_eq!(apic.pending(), None, "CPU 5 does not exist");
    apic.write(0x310, 0, 0);
    apic.write(ICR, 0xf6, 0);
    assert_eq!(apic.begin_service(), Some(0xf6), "by number");
    assert_eq!(apic.read(ICR, 0) & 1 << 12, 0, "delivery status: idle");
}

/// 10.5.3.
#[test]
fn illegal_vectors_are_reported_and_shown_after_a_write_of_the_status() {
    let mut apic = LocalApic::default();
    apic.write(ERROR, 0xfe, 0);
    apic.write(ICR, 1 << 18 | 0x0f, 0);
    assert!(!apic.accept(0x0e, false));
    assert_eq!(apic.begin_service(), Some(0xfe));
    assert_eq!(apic.read(0x280, 0), 0);
    apic.write(0x280, 0, 0);
    assert_eq!(apic.read(0x280, 0), 0x60);
    apic.write(0x280, 0, 0);
    assert_eq!(apic.read(0x280, 0), 0);
}

#[test]
fn hostile_writes_everywhere_leave_a_sound_state() {
    let mut apic = LocalApic::default();
    for value in [u32::MAX, 0x5555_5555, 0, 0xaaaa_aaaa, u32::MAX] {
        for offset in (0..LAPIC_BYTES).step_by(16) {
            apic.write(offset, value, u64::MAX);
            apic.read(offset, u64::MAX);
            apic.serve_timer(u64::MAX);
        }
        assert!(apic.is_sound());
    }
}
