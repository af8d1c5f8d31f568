//! The notations of the kernel's files.

use std::collections::BTreeSet;

/// No host has a core of that number or above; a list that names one is not believed.
const CORES_MAX: usize = 1 << 16;

/// A list of cores: `0-3,8`. The empty text is the empty list.
pub(super) fn core_list(text: &str) -> Result<BTreeSet<usize>, String> {
    let wrong = || format!("`{text}` is not a list of cores such as `0-3,8`");
    let mut cores = BTreeSet::new();
    for part in text
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
    {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first: usize = first.parse().map_err(|_| wrong())?;
        let last: usize = last.parse().map_err(|_| wrong())?;
        if first > last || last >= CORES_MAX {
            return Err(wrong());
        }
        cores.extend(first..=last);
    }
    Ok(cores)
}

/// Cores for people.
pub(super) fn show(cores: &BTreeSet<usize>) -> String {
    let cores: Vec<String> = cores.iter().map(usize::to_string).collect();
    cores.join(",")
}

/// The word in brackets: `always [madvise] never`.
pub(super) fn chosen(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once('[')?;
    Some(rest.split_once(']')?.0)
}

/// The number behind `key:`, as in `/proc/meminfo`.
pub(super) fn number_of(text: &str, key: &str) -> Option<u64> {
    value_of(text, key)?.split_whitespace().next()?.parse().ok()
}

/// The rest of the first line that starts with `key`, blanks, and a colon.
pub(super) fn value_of<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then_some(value.trim())
    })
}
