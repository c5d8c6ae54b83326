//! Gradient cosines by layer and class.

use crate::report::metrics::Record;
use serde::{Deserialize, Serialize};

/// Rows of mean cosines of pp, nn and pn; absent where there is no pair.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Heat {
    /// What was measured, e.g. the iteration.
    pub when: String,
    /// (name, cosines of pp, nn and pn).
    pub rows: Vec<(String, [Option<f64>; 3])>,
}

/// As a measurement is kept.
#[derive(Deserialize)]
struct Measured {
    layers: Vec<ParameterGroup>,
    kinds: Vec<ParameterGroup>,
}

#[derive(Deserialize)]
struct ParameterGroup {
    name: String,
    cosine: Means,
}

#[derive(Deserialize)]
struct Means {
    pp: Spread,
    nn: Spread,
    pn: Spread,
}

#[derive(Deserialize)]
struct Spread {
    mean: Option<f64>,
}

impl Heat {
    /// Of the measurement at the end; `None` where it cannot be read as one.
    pub fn of_json(json: &[u8]) -> Option<Heat> {
        let measured: Measured = serde_json::from_slice(json).ok()?;
        let row = |g: ParameterGroup| (g.name, [g.cosine.pp.mean, g.cosine.nn.mean, g.cosine.pn.mean]);
        let all = measured
            .layers
            .into_iter()
            .chain(measured.kinds.into_iter().filter(|kind| kind.name != "embedding" && kind.name != "head"));
        Some(Heat { when: "at the end".into(), rows: all.map(row).collect() })
    }

    /// Of the layers and the kinds of weights, from the last record that has them.
    pub fn of_records(records: &[Record]) -> Option<Heat> {
        let row = |record: &Record, key: &str, name: String| {
            let value = |class: &str| record.values.get(&format!("coupling/{key}/{class}")).copied();
            let values = ["pp", "nn", "pn"].map(value);
            values.iter().any(Option::is_some).then_some((name, values))
        };
        let kind = |record: &Record, kind: &str| row(record, kind, kind.into());
        let layer = |record: &Record, n: usize| row(record, &format!("layer_{n}"), format!("layer {n}"));
        records.iter().rev().find_map(|record| {
            let mut rows: Vec<_> = kind(record, "embedding").into_iter().collect();
            rows.extend((0..).map_while(|n| layer(record, n)));
            rows.extend(["head", "attention", "mlp", "norm", "bias"].iter().filter_map(|name| kind(record, name)));
            (!rows.is_empty()).then(|| Heat { when: format!("after iteration {}", record.step), rows })
        })
    }
}
