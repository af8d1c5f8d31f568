//! Whether the network card interrupts the cores that are kept for vCPUs.

use super::source::{Source, Text};
use super::{Check, Finding, parse};
use std::collections::BTreeSet;

const AFFINITY: Check = Check {
    name: "irq-affinity",
    wanted: "no interrupt of a network card on the cores of vCPU and channel",
    costs: "each interrupt stops the guest for some microseconds, and its softirq for longer",
    remedy: "stop irqbalance or give it IRQBALANCE_BANNED_CPULIST, then for each of them: \
             echo OTHER-CORES > /proc/irq/N/smp_affinity_list",
};

/// An interrupt, and the cores that it may come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Routed {
    pub irq: u32,
    pub action: String,
    pub cores: BTreeSet<usize>,
}

/// Reads what [`judge`] judges. `kept`: the cores of vCPU and channel.
pub(super) fn affinity(source: &Source, kept: &BTreeSet<usize>) -> Finding {
    let routed = cards(source).and_then(|labels| {
        let table = source.text("/proc/interrupts");
        routes(&table, &labels, |irq| {
            // What the controller made of it; older kernels tell only what was asked for.
            source
                .text(&format!("/proc/irq/{irq}/effective_affinity_list"))
                .ok()
                .filter(|list| !list.is_empty())
                .map_or_else(
                    || source.text(&format!("/proc/irq/{irq}/smp_affinity_list")),
                    Ok,
                )
        })
    });
    judge(&routed, kept)
}

/// What interrupts of network cards are called: after the interface, or after its device.
fn cards(source: &Source) -> Result<Vec<String>, String> {
    let directory = "/sys/class/net";
    let mut labels = Vec::new();
    for interface in source.names(directory)? {
        // Only hardware has a device; lo, bridges and taps do not.
        if let Some(device) = source.link_name(&format!("{directory}/{interface}/device")) {
            labels.extend([interface, device]);
        }
    }
    Ok(labels)
}

/// The interrupts of `/proc/interrupts` whose action names one of `labels`.
fn routes(
    table: &Text,
    labels: &[String],
    cores_of: impl Fn(u32) -> Text,
) -> Result<Vec<Routed>, String> {
    let table = table.as_ref().map_err(Clone::clone)?;
    table
        .lines()
        .filter_map(|line| {
            let (irq, rest) = line.split_once(':')?;
            let irq = irq.trim().parse().ok()?;
            let action = rest.split_whitespace().last()?;
            let named = labels.iter().any(|label| names(action, label));
            named.then(|| (irq, action.to_owned()))
        })
        .map(|(irq, action)| {
            let cores = cores_of(irq).and_then(|list| parse::core_list(&list))?;
            Ok(Routed { irq, action, cores })
        })
        .collect()
}

/// Whether `label` stands in `action` as a word: `eth1` is not in `eth10-rx`.
fn names(action: &str, label: &str) -> bool {
    let is_part = |letter: char| letter.is_ascii_alphanumeric();
    action.match_indices(label).any(|(at, _)| {
        let before = action[..at].chars().next_back();
        let after = action[at + label.len()..].chars().next();
        !before.is_some_and(is_part) && !after.is_some_and(is_part)
    })
}

pub(super) fn judge(routed: &Result<Vec<Routed>, String>, kept: &BTreeSet<usize>) -> Finding {
    /// Most that are named; a card may have hundreds.
    const NAMED: usize = 8;
    let routed = match routed {
        Err(why) => return AFFINITY.unknown(why),
        Ok(none) if none.is_empty() => {
            return AFFINITY.unknown("no interrupt in /proc/interrupts belongs to a network card");
        }
        Ok(some) => some,
    };
    if kept.is_empty() {
        return AFFINITY.unknown(
            "no core is kept for vCPU or channel: cpu.vcpu-core and cpu.channel-core are -1, and \
             none is isolated",
        );
    }
    let there: Vec<&Routed> = routed
        .iter()
        .filter(|route| !route.cores.is_disjoint(kept))
        .collect();
    if there.is_empty() {
        let found = format!(
            "none of the cards' {} interrupts comes to {}",
            routed.len(),
            parse::show(kept)
        );
        return AFFINITY.good(found);
    }
    let named: Vec<String> = there
        .iter()
        .take(NAMED)
        .map(|route| {
            let cores = parse::show(&route.cores);
            format!("{} ({}) on {cores}", route.irq, route.action)
        })
        .collect();
    let more = there.len() - named.len();
    let more = if more > 0 {
        format!(" and {more} more")
    } else {
        String::new()
    };
    AFFINITY.costs(format!("{}{more}", named.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::Verdict;

    /// Two hosts' lines: a bare one with two cards, and a VM with virtio.
    const TABLE: &str = "\
            CPU0       CPU1
   0:         43          0   IO-APIC    2-edge      timer
  30:          0       1247 IR-PCI-MSIX-0000:00:01.0   3-edge      virtio0-stats
  38:          0       9701 PCI-MSIX-0000:00:03.0   1-edge      virtio2-input.0
 125:         12         99   PCI-MSI 524289-edge      eth1-TxRx-0
 126:         12         99   PCI-MSI 524290-edge      eth10-TxRx-0
 127:         12         99   PCI-MSI 524291-edge      mlx5_comp0@pci:0000:3b:00.0
 NMI:          0          0   Non-maskable interrupts
 ERR:          0
";

    fn found(labels: &[&str]) -> Vec<u32> {
        let labels: Vec<String> = labels.iter().map(|&label| label.to_owned()).collect();
        let routed = routes(&Ok(TABLE.to_owned()), &labels, |irq| {
            Ok((irq % 2).to_string())
        });
        routed
            .expect("well-formed")
            .iter()
            .map(|route| route.irq)
            .collect()
    }

    #[test]
    fn interrupts_are_found_by_interface_and_by_device() {
        assert_eq!(found(&["virtio2"]), [38]);
        assert_eq!(found(&["eth1"]), [125]);
        assert_eq!(found(&["ens1", "0000:3b:00.0"]), [127]);
        assert!(found(&["virtio"]).is_empty());
        assert!(found(&[]).is_empty());
    }

    #[test]
    fn an_interrupt_costs_if_it_may_come_to_a_core_that_is_kept() {
        let routed = Ok(vec![
            Routed {
                irq: 38,
                action: "virtio2-input.0".into(),
                cores: [0, 1].into(),
            },
            Routed {
                irq: 39,
                action: "virtio2-output.0".into(),
                cores: [0].into(),
            },
        ]);
        assert_eq!(judge(&routed, &[2, 3].into()).verdict, Verdict::Good);
        let finding = judge(&routed, &[1].into());
        assert_eq!(finding.verdict, Verdict::Costs);
        assert_eq!(finding.found, "38 (virtio2-input.0) on 0,1");
        for (routed, kept) in [
            (&routed, BTreeSet::new()),
            (&Ok(Vec::new()), [1].into()),
            (&Err("no /proc".to_owned()), [1].into()),
        ] {
            let verdict = judge(routed, &kept).verdict;
            assert!(matches!(verdict, Verdict::Unknown { .. }), "{verdict:?}");
        }
    }

    #[test]
    fn hundreds_of_interrupts_are_counted_and_not_listed() {
        let route = |irq| Routed {
            irq,
            action: "eth0-rx".into(),
            cores: [1].into(),
        };
        let finding = judge(&Ok((0..100).map(route).collect()), &[1].into());
        assert!(finding.found.ends_with("and 92 more"), "{}", finding.found);
    }
}
