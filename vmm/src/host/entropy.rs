//! Random bytes for guests: the host kernel's generator.

use rustix::rand::{GetRandomFlags, getrandom};

/// Fills `bytes` from the beginning and returns what was filled; nothing before the host's generator
/// is seeded, early at its boot. Never waits.
pub fn fill(bytes: &mut [u8]) -> Option<&[u8]> {
    let length = getrandom(&mut *bytes, GetRandomFlags::NONBLOCK).ok()?;
    (length > 0).then_some(&bytes[..length])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_draws_differ() {
        let (mut one, mut other) = ([0; 32], [0; 32]);
        assert_ne!(fill(&mut one), fill(&mut other));
    }
}
