//! Percentile files, `.hgrm`: the text that HdrHistogram's own tools print and its plotters read.
//!
//! One line a percentile: value in microseconds, the percentile as a part of one, how many values lie
//! at or below, and 1/(1-percentile), the x axis of the plots. Each half of the distance to 100 % is
//! cut into [`TICKS_PER_HALF_DISTANCE`] steps. Comment lines start with `#`.

use std::io::{self, Write};

use crate::histogram::{DIGITS, LatencyHistogram};

/// Steps in each half of the distance to 100 %, as HdrHistogram's tools have it.
pub const TICKS_PER_HALF_DISTANCE: u32 = 5;

/// Nanoseconds recorded, microseconds written.
const UNIT: f64 = 1000.0;

/// Writes `histogram` as a percentile file.
///
/// # Errors
/// `to` could not be written.
pub fn write(histogram: &LatencyHistogram, to: &mut impl Write) -> io::Result<()> {
    let hdr = histogram.hdr();
    let digits = usize::from(DIGITS);
    writeln!(
        to,
        "{:>12} {:>14} {:>10} {:>14}\n",
        "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
    )?;
    let mut reached = 0;
    for tick in hdr.iter_quantiles(TICKS_PER_HALF_DISTANCE) {
        reached += tick.count_since_last_iteration();
        let value = tick.value_iterated_to() as f64 / UNIT;
        let part = tick.quantile_iterated_to();
        write!(to, "{value:12.digits$} {part:2.12} {reached:10}")?;
        if part < 1.0 {
            write!(to, " {:14.2}", 1.0 / (1.0 - part))?;
        }
        writeln!(to)?;
    }
    writeln!(
        to,
        "#[Mean    = {:12.digits$}, StdDeviation   = {:12.digits$}]",
        hdr.mean() / UNIT,
        hdr.stdev() / UNIT
    )?;
    writeln!(
        to,
        "#[Max     = {:12.digits$}, Total count    = {:12}]",
        hdr.max() as f64 / UNIT,
        hdr.len()
    )?;
    // Bucket 0 holds all sub-buckets, every further one the upper half.
    let buckets = usize::from(hdr.buckets());
    writeln!(
        to,
        "#[Buckets = {buckets:12}, SubBuckets     = {:12}]",
        2 * hdr.distinct_values() / (buckets + 1)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(histogram: &LatencyHistogram) -> String {
        let mut bytes = Vec::new();
        write(histogram, &mut bytes).expect("memory takes everything");
        String::from_utf8(bytes).expect("ASCII")
    }

    /// Columns and footer as `org.HdrHistogram.Histogram.outputPercentileDistribution` prints them
    /// (release 2.1.11, `(stream, 5, 1000.0)`, range 1 ns to 60 s, 3 digits) for 1, 2, ... 7 µs.
    #[test]
    fn the_file_is_the_one_that_the_reference_implementation_prints() {
        let mut histogram = LatencyHistogram::new();
        for us in 1..=7 {
            histogram.record(us * 1000);
        }
        let expected = include_str!("../tests/seven-values.hgrm");
        assert_eq!(text(&histogram), expected);
    }

    #[test]
    fn every_line_holds_the_percentile_that_the_histogram_gives() {
        let mut histogram = LatencyHistogram::new();
        for n in 1..=20_000_u64 {
            histogram.record(n * n);
        }
        let text = text(&histogram);
        let mut last = (0.0, 0.0, 0);
        let mut lines = 0;
        for line in text
            .lines()
            .skip(2)
            .take_while(|line| !line.starts_with('#'))
        {
            let columns: Vec<f64> = line
                .split_whitespace()
                .map(|column| column.parse().expect("a number"))
                .collect();
            let (value, part, count) = (columns[0], columns[1], columns[2] as u64);
            assert!(
                value >= last.0 && part >= last.1 && count >= last.2,
                "{line}"
            );
            let expected = histogram.value_at(part) as f64 / 1000.0;
            assert!(
                (value - expected).abs() <= expected / 500.0 + 0.001,
                "{line}: {expected}"
            );
            last = (value, part, count);
            lines += 1;
        }
        assert!(lines > 40, "{lines} lines");
        assert_eq!((last.1, last.2), (1.0, 20_000));
    }
}
