//! Drawing in SVG: shapes, texts, and colours for light and dark pages.

use std::fmt::Write;

/// The width of all pictures, in pixels at their natural size.
pub const WIDTH: f64 = 860.0;

/// How wide a character is, about, in the widest of the fonts: nothing here can measure them.
pub const CHARACTER: f64 = 6.7;

/// The same of bold texts.
pub const BOLD_CHARACTER: f64 = 7.7;

/// The colours, by class. Blue, orange, green, and purple of Okabe and Ito, which people of all
/// kinds of colour vision can tell apart; in the dark, lighter ones of the same hues.
const STYLE: &str = "
text { font: 12px system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, 'DejaVu Sans', sans-serif }
.title { font-size: 17px; font-weight: 600 }
.strong { font-weight: 700 }
.small { font-size: 10.5px }
.end { text-anchor: end }
.middle { text-anchor: middle }
.page { fill: #ffffff; stroke: #d1d9e0 }
.ink { fill: #1f2328 }
.dim { fill: #59636e }
.grid { stroke: #e3e8ee; fill: none }
.lead { stroke: #9aa4af; fill: none; stroke-width: 0.7 }
.band { fill: #f3f6f9 }
.line { fill: none; stroke-width: 1.6; stroke-linejoin: round }
.bold { stroke-width: 3.2 }
.ours { stroke: #0060a8; fill: #0060a8 } .ours-text { fill: #0060a8 }
.rust { stroke: #b45f93; fill: #b45f93 }
.python { stroke: #cf8600; fill: #cf8600 }
.node { stroke: #008f68; fill: #008f68 }
.nobody { stroke: #7d8590; fill: #7d8590 }
.open { fill: none }
@media (prefers-color-scheme: dark) {
.page { fill: #0d1117; stroke: #3d444d }
.ink { fill: #f0f6fc }
.dim { fill: #9198a1 }
.grid { stroke: #262c34 }
.lead { stroke: #6e7681 }
.band { fill: #151b23 }
.ours { stroke: #58b6ff; fill: #58b6ff } .ours-text { fill: #58b6ff }
.rust { stroke: #d68fb9; fill: #d68fb9 }
.python { stroke: #f0b13c; fill: #f0b13c }
.node { stroke: #2fc597; fill: #2fc597 }
.nobody { stroke: #9198a1; fill: #9198a1 }
.open { fill: none }
}
";

/// What is drawn at a point, so that colour is not all that tells lines apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Marker {
    Circle,
    Square,
    Triangle,
    Diamond,
    Cross,
}

/// A picture, being drawn from the top to the bottom.
#[derive(Debug, Default)]
pub struct Picture {
    body: String,
}

impl Picture {
    /// Returns an empty picture.
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes `text` with its left end, its middle, or its right end at a point, as `class` says.
    pub fn text(&mut self, x: f64, y: f64, class: &str, text: &str) {
        let text = escape(text);
        self.element(format_args!(
            r#"<text x="{x:.1}" y="{y:.1}" class="{class}">{text}</text>"#
        ));
    }

    /// Draws a straight line.
    pub fn line(&mut self, (x1, y1): (f64, f64), (x2, y2): (f64, f64), class: &str) {
        self.element(format_args!(
            r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" class="{class}"/>"#
        ));
    }

    /// Draws a line of a tool through some points.
    pub fn path(&mut self, points: &[(f64, f64)], class: &str) {
        let points = coordinates(points);
        self.element(format_args!(
            r#"<polyline points="{points}" class="line open {class}"/>"#
        ));
    }

    /// Draws a thin line from what is shown to what it is called.
    pub fn lead(&mut self, points: &[(f64, f64)]) {
        let points = coordinates(points);
        self.element(format_args!(
            r#"<polyline points="{points}" class="lead"/>"#
        ));
    }

    /// Fills a rectangle.
    pub fn rectangle(&mut self, x: f64, y: f64, width: f64, height: f64, class: &str) {
        self.element(format_args!(
            r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" class="{class}"/>"#
        ));
    }

    /// Draws a marker.
    pub fn marker(&mut self, marker: Marker, (x, y): (f64, f64), size: f64, class: &str) {
        let r = size;
        let shape = match marker {
            Marker::Circle => {
                return self.element(format_args!(
                    r#"<circle cx="{x:.1}" cy="{y:.1}" r="{r:.1}" class="{class}"/>"#
                ));
            }
            Marker::Square => {
                let r = r * 0.9;
                format!(
                    "M{:.1},{:.1}h{w:.1}v{w:.1}h-{w:.1}z",
                    x - r,
                    y - r,
                    w = 2.0 * r
                )
            }
            Marker::Triangle => format!(
                "M{x:.1},{:.1}L{:.1},{:.1}H{:.1}z",
                y - 1.15 * r,
                x + 1.1 * r,
                y + 0.85 * r,
                x - 1.1 * r
            ),
            Marker::Diamond => {
                let r = r * 1.25;
                format!(
                    "M{x:.1},{:.1}L{:.1},{y:.1}L{x:.1},{:.1}L{:.1},{y:.1}z",
                    y - r,
                    x + r,
                    y + r,
                    x - r
                )
            }
            Marker::Cross => {
                format!(
                    "M{:.1},{:.1}l{w:.1},{w:.1}m0,-{w:.1}l-{w:.1},{w:.1}",
                    x - r,
                    y - r,
                    w = 2.0 * r
                )
            }
        };
        let line = if marker == Marker::Cross { "line " } else { "" };
        self.element(format_args!(r#"<path d="{shape}" class="{line}{class}"/>"#));
    }

    /// Returns the whole picture, on a page of this height, with a text for those who do not see it.
    pub fn finish(self, height: f64, title: &str) -> String {
        let title = escape(title);
        let (width, height) = (WIDTH, height.round());
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{title}\">\n\
             <title>{title}</title>\n<style>{STYLE}</style>\n\
             <rect x=\"0.5\" y=\"0.5\" width=\"{}\" height=\"{}\" rx=\"6\" class=\"page\"/>\n\
             {}</svg>\n",
            width - 1.0,
            height - 1.0,
            self.body
        )
    }

    fn element(&mut self, element: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        _ = writeln!(self.body, "{element}");
    }
}

fn coordinates(points: &[(f64, f64)]) -> String {
    let points: Vec<String> = points
        .iter()
        .map(|(x, y)| format!("{x:.1},{y:.1}"))
        .collect();
    points.join(" ")
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// Moves points of a line apart, none past another, until all are `gap` apart or more, within `low`
/// and `high`. Returns where they are then, in the order in which they were.
///
/// If there is no room for all, they go below `low`.
pub fn spread(points: &[f64], gap: f64, low: f64, high: f64) -> Vec<f64> {
    let mut order: Vec<usize> = (0..points.len()).collect();
    order.sort_by(|&a, &b| points[a].total_cmp(&points[b]));
    // Neighbours that would overlap are one block, centred on where its members want to be.
    struct Block {
        center: f64,
        count: usize,
    }
    let half = |block: &Block| gap * (block.count as f64 - 1.0) / 2.0;
    let mut blocks: Vec<Block> = Vec::new();
    for &at in &order {
        let mut block = Block {
            center: points[at],
            count: 1,
        };
        loop {
            let reach = half(&block);
            block.center = block.center.max(low + reach).min(high - reach);
            match blocks.pop() {
                Some(before) if before.center + half(&before) + gap > block.center - reach => {
                    let count = before.count + block.count;
                    let sum =
                        before.center * before.count as f64 + block.center * block.count as f64;
                    block = Block {
                        center: sum / count as f64,
                        count,
                    };
                }
                Some(before) => {
                    blocks.push(before);
                    break;
                }
                None => break,
            }
        }
        blocks.push(block);
    }
    let places = blocks.iter().flat_map(|block| {
        let first = block.center - half(block);
        (0..block.count).map(move |step| first + gap * step as f64)
    });
    let mut spread = vec![0.0; points.len()];
    for (at, place) in order.into_iter().zip(places) {
        spread[at] = place;
    }
    spread
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_that_are_apart_stay_where_they_are() {
        assert_eq!(
            spread(&[50.0, 10.0, 30.0], 10.0, 0.0, 100.0),
            [50.0, 10.0, 30.0]
        );
    }

    #[test]
    fn points_in_one_place_are_spread_around_it_and_within_the_limits() {
        assert_eq!(spread(&[50.0; 3], 10.0, 0.0, 100.0), [40.0, 50.0, 60.0]);
        assert_eq!(spread(&[100.0; 3], 10.0, 0.0, 100.0), [80.0, 90.0, 100.0]);
        let crowd = spread(&[99.0, 0.0, 98.0, 1.0, 97.0, 50.0], 12.0, 0.0, 100.0);
        let mut sorted = crowd.clone();
        sorted.sort_by(f64::total_cmp);
        for pair in sorted.windows(2) {
            assert!(pair[1] - pair[0] > 11.99, "{sorted:?}");
        }
        assert!(sorted[0] >= 0.0 && sorted[5] <= 100.0, "{sorted:?}");
        assert!(
            crowd[1] < crowd[3] && crowd[2] < crowd[0],
            "in their order: {crowd:?}"
        );
    }

    #[test]
    fn texts_are_escaped() {
        let mut picture = Picture::new();
        picture.text(0.0, 0.0, "ink", "a < b & c");
        let svg = picture.finish(10.0, "<&>");
        assert!(svg.contains(">a &lt; b &amp; c</text>"));
        assert!(svg.contains("<title>&lt;&amp;&gt;</title>"));
    }
}
