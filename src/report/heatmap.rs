//! Heat maps on a self-contained page: blue for −1, white for 0, red for +1.

use super::escape;

/// A matrix with names for its rows and columns.
pub struct Map {
    pub title: String,
    pub rows: Vec<String>,
    pub columns: Vec<String>,
    /// `[rows, columns]`
    pub values: Vec<f64>,
}

/// Nothing but the page's own styles is loaded or run.
const POLICY: &str = "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; \
     base-uri 'none'; form-action 'none'\">";

/// The page. Every text in it is escaped.
pub fn page(title: &str, maps: &[Map]) -> String {
    let title = escape::html(title);
    let mut html = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\">{POLICY}<title>{title}</title><style>body{{font:15px sans-serif;margin:2em}}\
         table{{border-collapse:collapse;margin-bottom:2em}}td,th{{padding:.2em .5em;font-size:12px}}td{{text-align:right;color:#111}}</style>\
         <h1>{title}</h1>"
    );
    for map in maps {
        html += &format!("<h2>{}</h2><table><tr><th></th>", escape::html(&map.title));
        map.columns.iter().for_each(|c| html += &format!("<th>{}</th>", escape::html(c)));
        for (name, values) in map.rows.iter().zip(map.values.chunks(map.columns.len().max(1))) {
            html += &format!("</tr><tr><th>{}</th>", escape::html(name));
            values.iter().for_each(|v| html += &format!("<td style=\"background:{}\">{v:.2}</td>", colour(*v)));
        }
        html += "</tr></table>";
    }
    html + "</html>\n"
}

fn colour(value: f64) -> String {
    let fade = |strength: f64| (255.0 * (1.0 - 0.75 * strength)) as u8;
    let other = fade(value.abs().min(1.0));
    if value >= 0.0 { format!("rgb(255,{other},{other})") } else { format!("rgb({other},{other},255)") }
}
