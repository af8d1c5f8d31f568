//! Taking turns.

/// Calls `measure` for each of `arms` in each of `rounds`, beginning each round one arm later than
/// the one before, so that no arm always runs first, or always behind the same other.
///
/// # Errors
/// The first that `measure` returns; nothing is measured after it.
pub fn alternate<A, E>(
    rounds: usize,
    arms: &mut [A],
    mut measure: impl FnMut(usize, &mut A) -> Result<(), E>,
) -> Result<(), E> {
    let count = arms.len();
    for round in 0..rounds {
        for turn in 0..count {
            measure(round, &mut arms[(round + turn) % count])?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_arm_runs_once_a_round_and_each_runs_first_in_turn() {
        let mut seen = Vec::new();
        alternate::<_, ()>(3, &mut ["a", "b", "c"], |round, arm| {
            seen.push((round, *arm));
            Ok(())
        })
        .expect("nothing fails");
        let order: String = seen.iter().map(|(_, arm)| *arm).collect();
        assert_eq!(order, "abcbcacab");
    }

    #[test]
    fn nothing_is_measured_after_an_error() {
        let mut calls = 0;
        let result = alternate(9, &mut [1, 2], |round, arm| {
            calls += 1;
            if round == 1 { Err(*arm) } else { Ok(()) }
        });
        assert_eq!((result, calls), (Err(2), 3));
    }
}
