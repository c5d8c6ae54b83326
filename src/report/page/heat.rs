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

    /// Of the kinds of weights, from the last record that has them.
    pub fn of_records(records: &[Record]) -> Option<Heat> {
        let kinds = ["embedding", "attention", "mlp", "norm", "bias", "head"];
        let row = |record: &Record, kind: &str| {
            let value = |class: &str| record.values.get(&format!("coupling/{kind}/{class}")).copied();
            let values = ["pp", "nn", "pn"].map(value);
            values.iter().any(Option::is_some).then(|| (kind.to_string(), values))
        };
        records.iter().rev().find_map(|record| {
            let rows: Vec<_> = kinds.iter().filter_map(|kind| row(record, kind)).collect();
            (!rows.is_empty()).then(|| Heat { when: format!("after iteration {}", record.step), rows })
        })
    }
}
