//! Percentiles as a picture: latency over the number of nines, as HdrHistogram's plotter draws it.
//!
//! The x axis is log10(1/(1-percentile)): each step of one is another nine, so that the tail gets the
//! room that it deserves. A curve ends where its series runs out of values: a thousand values say
//! nothing about the 99.99th percentile. The y axis is logarithmic, in whole steps of 1, 2 and 5.

use std::io;
use std::ops::Range;

use lockstep_perf::histogram::LatencyHistogram;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::prelude::*;

/// Size of the picture, pixels.
const SIZE: (u32, u32) = (1120, 600);
/// Width of the legend, pixels: beside the curves, where it hides none.
const LEGEND: u32 = 200;
/// Steps in each half of the distance to 100 %, finer than in the text file.
const TICKS_PER_HALF_DISTANCE: u32 = 20;
/// Okabe and Ito's palette, told apart by the colour-blind, without its black and its yellow.
const PALETTE: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
];
const INK: RGBColor = RGBColor(40, 40, 40);
const GRID: RGBColor = RGBColor(210, 210, 210);
const FAINT_GRID: RGBColor = RGBColor(238, 238, 238);

/// Draws one curve for each of `series` (name, values), and returns the SVG.
pub(super) fn percentiles(
    title: &str,
    subtitle: &str,
    series: &[(&str, &LatencyHistogram)],
) -> Result<String, DrawingAreaErrorKind<io::Error>> {
    let curves: Vec<(&str, Vec<(f64, f64)>)> = series
        .iter()
        .map(|(name, values)| (*name, curve(values)))
        .collect();
    let points = || curves.iter().flat_map(|(_, points)| points);
    let nines = points().map(|point| point.0).fold(1.0, f64::max);
    let lowest = points().map(|point| point.1).fold(f64::INFINITY, f64::min);
    let highest = points()
        .map(|point| point.1)
        .fold(f64::NEG_INFINITY, f64::max);
    let (lowest, highest) = if lowest <= highest {
        (lowest, highest)
    } else {
        (0.0, 1.0)
    };

    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let (head, body) = root.split_vertically(56);
        head.draw(&Text::new(
            title,
            (20, 14),
            ("sans-serif", 20).into_font().color(&INK),
        ))?;
        head.draw(&Text::new(
            subtitle,
            (20, 38),
            ("sans-serif", 13).into_font().color(&INK.mix(0.7)),
        ))?;
        let (left, right) = body.split_horizontally(SIZE.0 - LEGEND);
        let mut chart = ChartBuilder::on(&left)
            .margin(12)
            .margin_right(28)
            .x_label_area_size(48)
            .y_label_area_size(84)
            .build_cartesian_2d(Nines(0.0..nines), Decades::around(lowest, highest))?;
        chart
            .configure_mesh()
            .x_desc("percentile")
            .y_desc("latency")
            .x_labels(16)
            .y_labels(32)
            .label_style(("sans-serif", 14).into_font().color(&INK))
            .axis_desc_style(("sans-serif", 15).into_font().color(&INK))
            .axis_style(INK)
            .bold_line_style(GRID)
            .light_line_style(FAINT_GRID)
            .draw()?;
        for (index, (name, points)) in curves.iter().enumerate() {
            let style = PALETTE[index % PALETTE.len()].stroke_width(2);
            chart.draw_series(LineSeries::new(points.iter().copied(), style))?;
            let y = 24 + 22 * index as i32;
            right.draw(&PathElement::new([(4, y), (26, y)], style.stroke_width(3)))?;
            let font = ("sans-serif", 14).into_font().color(&INK);
            right.draw(&Text::new(*name, (34, y - 6), font))?;
        }
        root.present()?;
    }
    Ok(svg)
}

/// Number of nines and log10 of microseconds at each tick.
fn curve(values: &LatencyHistogram) -> Vec<(f64, f64)> {
    let end = (values.count().max(1) as f64).log10();
    let mut points = Vec::new();
    for tick in values.hdr().iter_quantiles(TICKS_PER_HALF_DISTANCE) {
        // A value of 0 has no logarithm; the histogram's resolution is a nanosecond.
        let us = tick.value_iterated_to().max(1) as f64 / 1000.0;
        let nines = -(1.0 - tick.quantile_iterated_to()).log10();
        points.push((nines.min(end), us.log10()));
    }
    points
}

/// The x axis, 0 at the lowest value.
struct Nines(Range<f64>);

impl Ranged for Nines {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        onto(&self.0, *value, limit)
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() {
            return Vec::new();
        }
        let mut ticks = vec![0.0, -0.5_f64.log10()];
        ticks.extend((1..=self.0.end.floor() as u32).map(f64::from));
        ticks
    }

    fn range(&self) -> Range<f64> {
        self.0.clone()
    }
}

impl ValueFormatter<f64> for Nines {
    fn format(value: &f64) -> String {
        let percent = 100.0 * (1.0 - 10.0_f64.powf(-value));
        // As many decimals as there are nines behind the first two.
        let decimals = (value.round() as usize).saturating_sub(2);
        format!("{percent:.decimals$} %")
    }
}

/// The y axis: log10 of microseconds, from one step of 1, 2 or 5 to another.
struct Decades(Range<f64>);

impl Decades {
    fn around(lowest: f64, highest: f64) -> Self {
        let below = steps(lowest.floor()..lowest).last();
        let above = steps(highest..highest.floor() + 1.0).next();
        let mut range = below.unwrap_or(lowest.floor())..above.unwrap_or(highest.ceil());
        if range.end - range.start < 0.5 {
            range.end = range.start + 0.5;
        }
        Self(range)
    }
}

/// log10 of 1, 2 and 5 times the powers of ten, as far as they lie within `range`, ends included.
fn steps(range: Range<f64>) -> impl Iterator<Item = f64> {
    let first = range.start.floor() as i32;
    let last = range.end.floor() as i32;
    (first..=last)
        .flat_map(|decade| [1.0_f64, 2.0, 5.0].map(|step| f64::from(decade) + step.log10()))
        .filter(move |step| range.start - 1e-9 <= *step && *step <= range.end + 1e-9)
}

impl Ranged for Decades {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        onto(&self.0, *value, limit)
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        let all: Vec<f64> = steps(self.0.clone()).collect();
        // Over many decades a label at each power of ten is enough.
        let crowded = self.0.end - self.0.start > 4.0;
        let whole = |step: &f64| (step - step.round()).abs() < 1e-9;
        match (hint.weight().allow_light_points(), crowded) {
            (false, true) => all.into_iter().filter(whole).collect(),
            (true, true) => all,
            (false, false) => all,
            (true, false) => Vec::new(),
        }
    }

    fn range(&self) -> Range<f64> {
        self.0.clone()
    }
}

impl ValueFormatter<f64> for Decades {
    fn format(value: &f64) -> String {
        let us = 10.0_f64.powf(*value);
        let (number, unit) = match us {
            us if us < 0.9995 => (us * 1e3, "ns"),
            us if us < 999.5 => (us, "µs"),
            us if us < 999_500.0 => (us / 1e3, "ms"),
            us => (us / 1e6, "s"),
        };
        format!("{} {unit}", number.round())
    }
}

fn onto(range: &Range<f64>, value: f64, limit: (i32, i32)) -> i32 {
    let part = (value - range.start) / (range.end - range.start);
    limit.0 + (part * f64::from(limit.1 - limit.0)).round() as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_axes_name_percentiles_and_units() {
        let nines: Vec<_> = [0.0, 2.0_f64.log10(), 1.0, 2.0, 3.0, 5.0]
            .map(|n| Nines::format(&n))
            .into();
        assert_eq!(nines, ["0 %", "50 %", "90 %", "99 %", "99.9 %", "99.999 %"]);
        let values: Vec<_> = [
            -3.0,
            0.5_f64.log10(),
            0.0,
            500.0_f64.log10(),
            3.0,
            2e6_f64.log10(),
        ]
        .map(|n| Decades::format(&n))
        .into();
        assert_eq!(values, ["1 ns", "500 ns", "1 µs", "500 µs", "1 ms", "2 s"]);
    }

    #[test]
    fn the_value_axis_encloses_the_values_by_its_own_steps() {
        for (lowest, highest) in [(0.1, 0.2), (-1.0, 2.0), (1.7, 1.7), (2.31, 4.99)] {
            let Decades(range) = Decades::around(lowest, highest);
            assert!(range.start <= lowest && highest <= range.end, "{range:?}");
            assert!(lowest - range.start < 0.5, "{range:?} for {lowest}");
        }
    }

    #[test]
    fn a_curve_ends_where_its_values_run_out() {
        let mut values = LatencyHistogram::new();
        for n in 1..=1000 {
            values.record(n * 1000);
        }
        let points = curve(&values);
        let (nines, us) = points[points.len() - 1];
        assert!(
            (nines - 3.0).abs() < 1e-9 && (us - 3.0).abs() < 1e-3,
            "{nines} {us}"
        );
        assert!(points.is_sorted_by(|a, b| a.0 <= b.0 && a.1 <= b.1));
    }

    #[test]
    fn a_plot_without_values_is_drawn_empty() {
        let svg = percentiles("nothing", "nowhere", &[]).expect("drawn");
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    }
}
