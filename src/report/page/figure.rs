//! Curves as data: what a figure shows, its axes and units. The page's script draws them.

use crate::report::metrics::Record;
use serde::Serialize;

/// z of a two-sided 95 % interval.
const Z: f64 = 1.96;

/// Lines over a common x axis.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Figure {
    pub title: String,
    /// What is to be known to read it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub note: String,
    /// Names of the axes, with their units.
    pub x: String,
    pub y: String,
    /// Ends of the y axis, where they do not follow the data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range: Option<[f64; 2]>,
    pub at: Vec<f64>,
    pub lines: Vec<FigureLine>,
    /// Dates on the x axis.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub marks: Vec<Mark>,
    /// Points are measured one by one: they are drawn, and nothing is smoothed.
    pub points: bool,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct FigureLine {
    pub name: String,
    pub values: Vec<Option<f64>>,
    /// The 95 % interval of each value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval: Option<Vec<Option<[f64; 2]>>>,
    /// Shown only when its name in the legend is clicked.
    pub hidden: bool,
    /// A detail of another line.
    pub thin: bool,
    /// Points without a line.
    pub dots: bool,
    /// What stands above its points.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<Vec<Option<String>>>,
    /// Which colour, dash and mark it has, where that is not its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub style: Option<usize>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Mark {
    pub x: f64,
    pub text: String,
}

/// The records of one phase, by step.
pub struct Phase<'a> {
    records: Vec<&'a Record>,
    pub name: &'a str,
}

impl<'a> Phase<'a> {
    pub fn of(records: &'a [Record], name: &'a str) -> Phase<'a> {
        Phase { records: records.iter().filter(|record| record.phase == name).collect(), name }
    }

    /// What its steps are.
    pub fn step(&self) -> &'static str {
        match self.name {
            "sft" => "optimizer step",
            "grpo" => "iteration",
            _ => "iterations done",
        }
    }

    /// All names of values, sorted.
    pub fn names(&self) -> Vec<&'a str> {
        let all: std::collections::BTreeSet<&str> =
            self.records.iter().flat_map(|record| record.values.keys()).map(String::as_str).collect();
        all.into_iter().collect()
    }

    /// The one value that a name always has.
    pub fn constant(&self, name: &str) -> Option<f64> {
        let mut values = self.records.iter().filter_map(|record| record.values.get(name));
        let first = values.next()?;
        values.all(|value| value == first).then_some(*first)
    }

    /// A figure of the steps that have any of the lines, each with the name of its values; `None` without a value.
    pub fn figure(&self, title: &str, y: &str, lines: &[(&str, &str)]) -> Option<Figure> {
        let (_, names): (Vec<_>, Vec<&str>) = lines.iter().copied().unzip();
        let lines: Vec<FigureLine> =
            lines.iter().map(|(name, value)| self.line(name, value, &names)).filter(FigureLine::is_filled).collect();
        let at = self.steps(&names).into_iter().map(|record| record.step as f64).collect();
        (!lines.is_empty()).then(|| Figure {
            title: title.into(),
            x: self.step().into(),
            y: y.into(),
            at,
            lines,
            ..Figure::default()
        })
    }

    fn steps(&self, names: &[&str]) -> Vec<&'a Record> {
        let any = |record: &&&Record| names.iter().any(|name| record.values.contains_key(*name));
        self.records.iter().filter(any).copied().collect()
    }

    /// The values of `value` at the steps that have any of `names`.
    fn line(&self, name: &str, value: &str, names: &[&str]) -> FigureLine {
        let finite = |record: &Record| record.values.get(value).copied().filter(|value| value.is_finite());
        let values = self.steps(names).into_iter().map(finite).collect();
        FigureLine { name: name.into(), values, ..FigureLine::default() }
    }

    /// The same with the interval that a standard error `error` gives.
    pub fn line_with_error(&self, name: &str, value: &str, error: &str, names: &[&str]) -> FigureLine {
        let interval = |record: &Record| {
            let (mean, half) = (record.values.get(value)?, Z * record.values.get(error)?);
            Some([mean - half, mean + half])
        };
        let intervals: Vec<_> = self.steps(names).into_iter().map(interval).collect();
        let known = intervals.iter().any(Option::is_some);
        FigureLine { interval: known.then_some(intervals), ..self.line(name, value, names) }
    }

    /// The steps of the figures whose lines have these names.
    pub fn at(&self, names: &[&str]) -> Vec<f64> {
        self.steps(names).into_iter().map(|record| record.step as f64).collect()
    }
}

impl FigureLine {
    pub fn is_filled(&self) -> bool {
        self.values.iter().any(Option::is_some)
    }

    pub fn hidden(self, hidden: bool) -> FigureLine {
        FigureLine { hidden, ..self }
    }

    pub fn thin(self) -> FigureLine {
        FigureLine { thin: true, ..self }
    }
}
