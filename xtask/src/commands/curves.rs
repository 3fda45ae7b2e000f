//! `cargo xtask curves FILE`: draws what `cargo xtask bench --scale --json FILE` measured, as
//! pictures that docs/performance.md shows.
//!
//! Apart from the bench, so that a picture can be drawn anew without a measurement.

use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;
use plotters::style::RGBColor;

use super::bench::scale::{Curve, Results};
use crate::workspace;

/// Arguments of the command.
#[derive(clap::Args)]
pub struct Arguments {
    /// The JSON of a scale run
    file: PathBuf,
    /// Where the pictures go [default: docs/performance]
    #[arg(long)]
    into: Option<PathBuf>,
}

/// Points under a name. `x` is a size, 0 too.
struct Line {
    name: String,
    points: Vec<(f64, f64)>,
}

struct Picture {
    file: &'static str,
    title: &'static str,
    x: &'static str,
    y: &'static str,
    /// The horizontal axis steps by factors of ten.
    logarithmic: bool,
    lines: Vec<Line>,
}

/// Told apart by people who see colours otherwise, too (Okabe and Ito).
const COLOURS: [RGBColor; 4] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
];
const GREY: RGBColor = RGBColor(110, 110, 110);

/// Draws, and names each file.
pub fn run(arguments: &Arguments) -> Result<()> {
    let text = std::fs::read_to_string(&arguments.file)
        .with_context(|| format!("reading {}", arguments.file.display()))?;
    let results: Results = serde_json::from_str(&text)
        .with_context(|| format!("{} is no scale run", arguments.file.display()))?;
    let usual = workspace::root().join("docs/performance");
    let folder = arguments.into.as_ref().unwrap_or(&usual);
    std::fs::create_dir_all(folder)?;
    for picture in pictures(&results) {
        let path = folder.join(picture.file);
        picture.draw(&path)?;
        println!("{}", workspace::display(&path));
    }
    Ok(())
}

/// All that the results have points for.
fn pictures(results: &Results) -> Vec<Picture> {
    let mut pictures = Vec::new();
    for (of, file, title, x, logarithmic) in [
        (
            "applications",
            "applications.svg",
            "Known applications, in Envoy",
            "applications",
            true,
        ),
        (
            "rules",
            "rules.svg",
            "Mapping rules, in Envoy",
            "rules",
            true,
        ),
        (
            "services",
            "services.svg",
            "Services with a host each, in Envoy",
            "services",
            true,
        ),
        (
            "limits",
            "limits.svg",
            "Limits of the application, in Envoy",
            "limits",
            false,
        ),
    ] {
        let curves: Vec<&Curve> = results.curves.iter().filter(|it| it.of == of).collect();
        let several = curves.len() > 1;
        let lines = curves.iter().flat_map(|curve| {
            let room = if several {
                format!(" (capacity {})", thousands(curve.capacity.into()))
            } else {
                String::new()
            };
            let added = curve.points.iter().map(|it| (it.size, it.added_cpu_us));
            let base = curve.points.iter().map(|it| (it.size, curve.base_cpu_us));
            let line = |name: &str, points: Vec<(u64, f64)>| Line {
                name: format!("{name}{room}"),
                points: points.iter().map(|(x, y)| (*x as f64, *y)).collect(),
            };
            [
                line("added by Tollgate", added.collect()),
                line("Envoy without a filter", base.collect()),
            ]
        });
        pictures.push(Picture {
            file,
            title,
            x,
            y: "µs of CPU per request",
            logarithmic,
            lines: lines.collect(),
        });
    }
    let mut capacities: Vec<u32> = results.known.iter().map(|it| it.capacity).collect();
    capacities.dedup();
    pictures.push(Picture {
        file: "decision.svg",
        title: "A decision, natively, by the number of applications",
        x: "applications",
        y: "ns per decision",
        logarithmic: true,
        lines: capacities
            .iter()
            .map(|capacity| Line {
                name: format!("capacity {}", thousands(f64::from(*capacity))),
                points: results
                    .known
                    .iter()
                    .filter(|it| it.capacity == *capacity)
                    .map(|it| (it.applications as f64, it.ns))
                    .collect(),
            })
            .collect(),
    });
    pictures.push(Picture {
        file: "contention.svg",
        title: "Workers on one record, on the fake host",
        x: "workers",
        y: "compare-and-sets per admitted request",
        logarithmic: false,
        lines: [(false, "as it comes"), (true, "made to collide")]
            .into_iter()
            .map(|(forced, name)| Line {
                name: name.to_owned(),
                points: results
                    .contention
                    .iter()
                    .filter(|it| it.forced == forced)
                    .map(|it| (it.workers.into(), it.attempts_per_admitted))
                    .collect(),
            })
            .collect(),
    });
    pictures.retain(|it| it.lines.iter().any(|line| !line.points.is_empty()));
    pictures
}

impl Picture {
    fn draw(&self, path: &Path) -> Result<()> {
        let all = || self.lines.iter().flat_map(|line| &line.points);
        ensure!(all().count() > 0, "{} has no points", self.title);
        let most = |which: fn(&(f64, f64)) -> f64| all().map(which).fold(0.0, f64::max);
        let (right, top) = (most(|it| it.0), most(|it| it.1));
        let least = all().map(|it| it.1).fold(0.0, f64::min);
        // From 0, so that what looks flat is flat.
        let height = least * 1.15..top * 1.6;
        let drawn = if self.logarithmic {
            let left = all().map(|it| it.0).fold(f64::INFINITY, f64::min);
            self.draw_on(path, (left.max(1.0)..right * 1.2).log_scale(), height)
        } else {
            self.draw_on(path, 0.0..right * 1.05, height)
        };
        drawn.map_err(|error| anyhow!("drawing {}: {error}", path.display()))
    }

    fn draw_on<X>(
        &self,
        path: &Path,
        width: X,
        height: Range<f64>,
    ) -> Result<(), Box<dyn std::error::Error>>
    where
        X: AsRangedCoord<Value = f64>,
        X::CoordDescType: ValueFormatter<f64>,
    {
        let picture = SVGBackend::new(path, (720, 400)).into_drawing_area();
        picture.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&picture)
            .caption(self.title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(56)
            .build_cartesian_2d(width, height)?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .x_desc(self.x)
            .y_desc(self.y)
            .x_label_formatter(&|x| thousands(*x))
            .y_label_formatter(&|y| thousands(*y))
            .draw()?;
        let mut colours = COLOURS.iter().cycle();
        for line in &self.lines {
            let without = line.name.contains("without");
            let colour = if without {
                &GREY
            } else {
                colours.next().unwrap_or(&GREY)
            };
            chart
                .draw_series(
                    LineSeries::new(line.points.clone(), colour.stroke_width(2)).point_size(3),
                )?
                .label(&line.name)
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2))
                });
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .border_style(BLACK.mix(0.3))
            .background_style(WHITE.mix(0.8))
            .draw()?;
        picture.present()?;
        Ok(())
    }
}

/// A whole number with commas, or one with as many decimals as it needs.
fn thousands(number: f64) -> String {
    if number.fract().abs() > 1e-9 {
        return format!("{}", (number * 100.0).round() / 100.0);
    }
    let digits = format!("{:.0}", number.abs());
    let mut text = String::from(if number < 0.0 { "-" } else { "" });
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::bench::scale::Point;

    #[test]
    fn numbers_read_as_people_write_them() {
        for (number, text) in [
            (0.0, "0"),
            (10.0, "10"),
            (1_000.0, "1,000"),
            (1_000_000.0, "1,000,000"),
            (2.5, "2.5"),
            (-1_000.0, "-1,000"),
        ] {
            assert_eq!(thousands(number), text);
        }
    }

    #[test]
    fn a_curve_becomes_a_picture_with_its_title_and_a_line_for_each_kind() {
        let point = |size, added| Point {
            size,
            cpu_us_per_request: 40.0 + added,
            added_cpu_us: added,
            requests_per_second: 10_000.0,
            calls_per_request: 0.0,
        };
        let results = Results {
            quick: false,
            cores: 2,
            curves: vec![Curve {
                of: "rules".to_owned(),
                capacity: 16_384,
                base_cpu_us: 40.0,
                points: vec![point(1, 7.0), point(10_000, -0.5)],
            }],
            beyond: Vec::new(),
            known: Vec::new(),
            contention: Vec::new(),
        };
        let folder = tempfile::tempdir().unwrap();
        let pictures = pictures(&results);
        assert_eq!(
            pictures.len(),
            1,
            "nothing is drawn of what was not measured"
        );
        let path = folder.path().join(pictures[0].file);
        pictures[0].draw(&path).unwrap();
        let svg = std::fs::read_to_string(path).unwrap();
        for text in [
            "Mapping rules",
            "added by Tollgate",
            "without a filter",
            "10,000",
        ] {
            assert!(svg.contains(text), "{text}");
        }
        for colour in ["#0072B2", "#6E6E6E"] {
            let lines = svg
                .lines()
                .filter(|it| it.starts_with("<polyline") && it.contains(colour));
            assert_eq!(lines.count(), 2, "a line and its legend");
        }
    }
}
