//! What is asked, and when: fixed before the first request leaves, whatever the server does.

use super::Mix;

/// How requests are spread over time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Arrivals {
    /// Equally spaced.
    Uniform,
    /// As from many independent users: exponentially distributed gaps, so that some come in bursts.
    Poisson,
}

/// When requests are sent.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pace {
    /// Each connection asks again as soon as it was answered: for requests a second.
    Closed,
    /// At times fixed in advance, whatever the server does: for latencies. What is due while a server
    /// stalls is sent all the same, behind what waits on the connection.
    Open {
        /// Requests a second; 0 < rate <= 1,000,000.
        rate: f64,
        /// Spread over time.
        arrivals: Arrivals,
    },
}

/// What kind of request is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Set,
    Get,
    Increment,
}

/// Times at which requests are due, in order.
#[derive(Debug)]
pub(crate) struct Timetable {
    arrivals: Arrivals,
    gap_ns: f64,
    length_ns: f64,
    /// Requests so far.
    number: u64,
    /// Nanoseconds after the start at which the next request is due.
    due_ns: f64,
    random: SplitMix,
}

impl Timetable {
    pub(crate) fn new(arrivals: Arrivals, rate: f64, length_ns: u64, seed: u64) -> Self {
        let mut timetable = Self {
            arrivals,
            gap_ns: 1e9 / rate,
            length_ns: length_ns as f64,
            number: 0,
            due_ns: 0.0,
            random: SplitMix(seed),
        };
        if arrivals == Arrivals::Poisson {
            timetable.advance();
        }
        timetable
    }

    fn advance(&mut self) {
        self.number += 1;
        self.due_ns = match self.arrivals {
            // From the start each time: small errors do not add up.
            Arrivals::Uniform => self.number as f64 * self.gap_ns,
            // 1 - x is never 0: its logarithm is finite.
            Arrivals::Poisson => self.due_ns - self.gap_ns * (1.0 - self.random.fraction()).ln(),
        };
    }
}

impl Iterator for Timetable {
    /// Nanoseconds after the start.
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        let due_ns = self.due_ns;
        // One that is due at the end itself, but for rounding, belongs to the next run.
        if due_ns + 0.5 >= self.length_ns {
            return None;
        }
        self.advance();
        Some(due_ns as u64)
    }
}

/// The requests of one run, in order.
pub(super) struct Schedule {
    times: Timetable,
    mix: Mix,
}

impl Schedule {
    pub(super) fn new(arrivals: Arrivals, rate: f64, length_ns: u64, mix: Mix, seed: u64) -> Self {
        Self {
            times: Timetable::new(arrivals, rate, length_ns, seed),
            mix,
        }
    }
}

impl Iterator for Schedule {
    /// Nanoseconds after the start, and what is due.
    type Item = (u64, Kind);

    fn next(&mut self) -> Option<Self::Item> {
        let due_ns = self.times.next()?;
        let Mix { set, get, incr } = self.mix;
        let weights = u64::from(set) + u64::from(get) + u64::from(incr);
        let pick = self.times.random.next() % weights.max(1);
        let kind = if pick < set.into() {
            Kind::Set
        } else if pick < u64::from(set) + u64::from(get) {
            Kind::Get
        } else {
            Kind::Increment
        };
        Some((due_ns, kind))
    }
}

/// Steele, Lea and Flood: *Fast splittable pseudorandom number generators*, OOPSLA 2014.
#[derive(Debug)]
pub(crate) struct SplitMix(pub(crate) u64);

impl SplitMix {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From 0 up to, not including, 1.
    fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const MIX: Mix = Mix {
        set: 3,
        get: 5,
        incr: 2,
    };

    #[test]
    fn a_uniform_schedule_keeps_its_rate_exactly() {
        let schedule = Schedule::new(Arrivals::Uniform, 30_000.0, 10 * SECOND, MIX, 1);
        let due: Vec<u64> = schedule.map(|(due, _)| due).collect();
        assert_eq!(due.len(), 300_000);
        for (n, due) in due.iter().enumerate() {
            let exact = n as f64 * 1e9 / 30_000.0;
            assert!(
                (*due as f64 - exact).abs() < 2.0,
                "request {n} at {due}, not {exact}"
            );
        }
    }

    #[test]
    fn a_poisson_schedule_keeps_its_rate_and_its_spread() {
        let schedule = Schedule::new(Arrivals::Poisson, 10_000.0, 20 * SECOND, MIX, 7);
        let due: Vec<f64> = schedule.map(|(due, _)| due as f64).collect();
        assert!(
            (due.len() as f64 / 200_000.0 - 1.0).abs() < 0.01,
            "{}",
            due.len()
        );
        let gaps: Vec<f64> = due
            .windows(2)
            .map(|pair| (pair[1] - pair[0]) / 1e5)
            .collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let square = gaps.iter().map(|gap| gap * gap).sum::<f64>() / gaps.len() as f64;
        // Of an exponential distribution the deviation equals the mean.
        assert!(((square - mean * mean).sqrt() - 1.0).abs() < 0.02);
    }

    #[test]
    fn the_same_seed_gives_the_same_requests() {
        let make = |seed| Schedule::new(Arrivals::Poisson, 1e4, SECOND / 10, MIX, seed);
        assert!(make(3).eq(make(3)));
        assert!(!make(3).eq(make(4)));
    }

    #[test]
    fn the_mix_is_kept() {
        let schedule = Schedule::new(Arrivals::Uniform, 100_000.0, SECOND, MIX, 5);
        let mut counts = [0_u32; 3];
        schedule.for_each(|(_, kind)| counts[kind as usize] += 1);
        for (count, weight) in counts.iter().zip([3, 5, 2]) {
            assert!(count.abs_diff(weight * 10_000) < 700, "{counts:?}");
        }
        let only_sets = Mix {
            set: 1,
            get: 0,
            incr: 0,
        };
        let mut schedule = Schedule::new(Arrivals::Uniform, 1e5, SECOND / 100, only_sets, 5);
        assert!(schedule.all(|(_, kind)| kind == Kind::Set));
    }
}
