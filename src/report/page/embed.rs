//! Data and code inside the page: compressed data that the browser unpacks on demand, scripts and styles named by their hashes.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::io::Write;

const STYLES: [&str; 2] = [include_str!("../assets/uPlot.min.css"), include_str!("../assets/report.css")];
const SCRIPTS: [&str; 4] = [
    include_str!("../assets/uPlot.iife.min.js"),
    include_str!("../assets/page.js"),
    include_str!("../assets/figures.js"),
    include_str!("../assets/browser.js"),
];

/// A value as JSON, compressed, as text.
pub fn packed(value: &impl Serialize) -> serde_json::Result<String> {
    let json = serde_json::to_vec(value)?;
    let mut gzip = GzEncoder::new(Vec::new(), Compression::best());
    // Writing into a vector cannot fail.
    let bytes = gzip.write_all(&json).and_then(|()| gzip.finish()).unwrap_or_default();
    Ok(STANDARD.encode(bytes))
}

/// The styles and scripts of the page, and the policy that allows these and nothing else.
pub struct Assets {
    pub policy: String,
    pub styles: String,
    pub scripts: String,
}

impl Assets {
    pub fn of_the_page() -> Assets {
        let hashes = |texts: &[&str]| texts.iter().map(|text| format!(" 'sha256-{}'", hash(text))).collect::<String>();
        let policy = format!(
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; script-src{}; style-src{}; \
             base-uri 'none'; form-action 'none'\">",
            hashes(&SCRIPTS),
            hashes(&STYLES)
        );
        let all = |tag: &str, texts: &[&str]| texts.iter().map(|text| format!("<{tag}>{text}</{tag}>\n")).collect();
        Assets { policy, styles: all("style", &STYLES), scripts: all("script", &SCRIPTS) }
    }
}

fn hash(text: &str) -> String {
    STANDARD.encode(Sha256::digest(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_asset_ends_its_element() {
        for text in STYLES.iter().chain(&SCRIPTS) {
            let lower = text.to_lowercase();
            assert!(!lower.contains("</script") && !lower.contains("</style") && !lower.contains("<!--"));
        }
    }
}
