//! The text format of Prometheus (version 0.0.4), as the crate's own encoder writes it.
//!
//! Written here because a scrape of a thousand services is a hundred thousand lines: the labels of a metric are put into words
//! once, not for each of its buckets, and whole numbers, which nearly all are, do not go through the formatting of fractions.

use super::{HistogramSnapshot, histogram::BUCKETS, lines::Lines, names::Family};
use prometheus::proto::{MetricFamily, MetricType};
use std::fmt::Write;

/// A text that grows by families.
#[derive(Default)]
pub(super) struct Text {
    out: String,
    /// Of the metric that is being written, without braces.
    labels: String,
    /// Bounds of buckets with what is written for them: the next histogram has the same ones.
    bounds: Vec<(f64, String)>,
}

impl Text {
    /// Growing step by step would copy megabytes several times over.
    pub(super) fn of_about(bytes: usize) -> Text {
        Text {
            out: String::with_capacity(bytes),
            ..Text::default()
        }
    }

    pub(super) fn finish(self) -> String {
        self.out
    }

    /// A family as the library has it.
    pub(super) fn family(&mut self, family: &MetricFamily) {
        let name = family.name();
        self.head(name, family.help(), family.get_field_type());
        for metric in family.get_metric() {
            self.labels.clear();
            for pair in metric.get_label() {
                self.label(pair.name(), pair.value());
            }
            match family.get_field_type() {
                MetricType::COUNTER => self.sample(name, "", None, metric.get_counter().get_value()),
                MetricType::GAUGE => self.sample(name, "", None, metric.get_gauge().get_value()),
                MetricType::HISTOGRAM => {
                    let histogram = metric.get_histogram();
                    let buckets = histogram.get_bucket().iter();
                    let buckets = buckets.map(|bucket| (bucket.upper_bound(), bucket.cumulative_count()));
                    self.histogram(
                        name,
                        buckets,
                        histogram.get_sample_count(),
                        histogram.get_sample_sum(),
                    );
                }
                // Nobody here makes them.
                MetricType::SUMMARY | MetricType::UNTYPED => {}
            }
        }
    }

    /// A family of the table, of which `write` writes a metric's lines, for each of `of` with its labels; nothing, when there
    /// are none.
    pub(super) fn table<T>(&mut self, family: &Family, of: &[(String, T)], write: fn(&mut Rows<'_>, &T)) {
        let before = self.out.len();
        self.head(family.name, family.help, family.kind);
        let without_rows = self.out.len();
        for (labels, one) in of {
            let mut rows = self.rows(family);
            rows.text.labels.push_str(labels);
            write(&mut rows, one);
        }
        if self.out.len() == without_rows {
            self.out.truncate(before);
        }
    }

    /// A family whose lines are written already; nothing, when there are none.
    pub(super) fn lines(&mut self, lines: &Lines) {
        if !lines.text.out.is_empty() {
            let family = lines.family;
            self.head(family.name, family.help, family.kind);
            self.out.push_str(&lines.text.out);
        }
    }

    /// Lines of a family that have no labels in common.
    pub(super) fn rows<'a>(&'a mut self, family: &'a Family) -> Rows<'a> {
        self.labels.clear();
        Rows { text: self, family }
    }

    fn head(&mut self, name: &str, help: &str, kind: MetricType) {
        if !help.is_empty() {
            self.words(&["# HELP ", name, " "]);
            escape(help, false, &mut self.out);
            self.out.push('\n');
        }
        let kind = match kind {
            MetricType::COUNTER => "counter",
            MetricType::GAUGE => "gauge",
            MetricType::HISTOGRAM => "histogram",
            MetricType::SUMMARY => "summary",
            MetricType::UNTYPED => "untyped",
        };
        self.words(&["# TYPE ", name, " ", kind, "\n"]);
    }

    fn label(&mut self, name: &str, value: &str) {
        add_label(&mut self.labels, name, value);
    }

    fn words(&mut self, words: &[&str]) {
        for word in words {
            self.out.push_str(word);
        }
    }

    /// Buckets are upper bounds and how many are not above each.
    #[allow(clippy::cast_precision_loss, reason = "the exposition format has floats only")]
    fn histogram(&mut self, name: &str, buckets: impl Iterator<Item = (f64, u64)>, all: u64, sum: f64) {
        let (mut count, mut has_last) = (0, false);
        for (bound, below) in buckets {
            has_last |= bound == f64::INFINITY;
            self.sample(name, "_bucket", Some((count, bound)), below as f64);
            count += 1;
        }
        if !has_last {
            self.sample(name, "_bucket", Some((count, f64::INFINITY)), all as f64);
        }
        self.sample(name, "_sum", None, sum);
        self.sample(name, "_count", None, all as f64);
    }

    /// One line; of a bucket with its place in the histogram and its upper bound.
    fn sample(&mut self, name: &str, part: &str, bucket: Option<(usize, f64)>, value: f64) {
        self.words(&[name, part]);
        if !self.labels.is_empty() || bucket.is_some() {
            self.out.push('{');
            self.out.push_str(&self.labels);
            if let Some((index, bound)) = bucket {
                let separator = if self.labels.is_empty() { "" } else { "," };
                self.know(index, bound);
                self.out.push_str(separator);
                self.out.push_str("le=\"");
                self.out.push_str(&self.bounds[index].1);
                self.out.push('"');
            }
            self.out.push('}');
        }
        self.out.push(' ');
        number(value, &mut self.out);
        self.out.push('\n');
    }

    /// Puts the bound of a bucket into words, unless the last histogram had the same one there.
    fn know(&mut self, index: usize, bound: f64) {
        let written = || {
            if bound == f64::INFINITY {
                "+Inf".to_owned()
            } else {
                bound.to_string()
            }
        };
        match self.bounds.get_mut(index) {
            Some((known, _)) if known.total_cmp(&bound).is_eq() => {}
            Some(place) => *place = (bound, written()),
            // Buckets come in order.
            None => self.bounds.push((bound, written())),
        }
    }
}

/// Lines of one metric of a family of the table.
pub(super) struct Rows<'a> {
    text: &'a mut Text,
    family: &'a Family,
}

impl Rows<'_> {
    /// One line; `more` are the values of the family's last labels.
    pub(super) fn row(&mut self, more: &[&str], value: f64) {
        let common = self.text.labels.len();
        let names = &self.family.labels[self.family.labels.len() - more.len()..];
        for (name, value) in names.iter().zip(more) {
            self.text.label(name, value);
        }
        self.text.sample(self.family.name, "", None, value);
        self.text.labels.truncate(common);
    }

    /// One line of a counter.
    #[allow(clippy::cast_precision_loss, reason = "the exposition format has floats only")]
    pub(super) fn count(&mut self, more: &[&str], count: u64) {
        self.row(more, count as f64);
    }

    pub(super) fn histogram(&mut self, snapshot: &HistogramSnapshot) {
        let mut below = 0;
        let buckets = BUCKETS.iter().zip(&snapshot.counts).map(|(bound, count)| {
            below += count;
            (*bound, below)
        });
        self.text
            .histogram(self.family.name, buckets, snapshot.count(), snapshot.sum);
    }
}

/// Adds a label to those of a metric.
pub(super) fn add_label(labels: &mut String, name: &str, value: &str) {
    if !labels.is_empty() {
        labels.push(',');
    }
    labels.push_str(name);
    labels.push_str("=\"");
    escape(value, true, labels);
    labels.push('"');
}

/// As `f64::to_string` writes it.
fn number(value: f64, out: &mut String) {
    // Whole numbers below this are themselves in both types.
    const WHOLE: f64 = 9_007_199_254_740_992.0;
    // Writing into a string cannot fail.
    let _ = if value.fract() == 0.0 && value.is_sign_positive() && value < WHOLE {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "checked just before"
        )]
        let whole = value as u64;
        write!(out, "{whole}")
    } else {
        write!(out, "{value}")
    };
}

fn escape(text: &str, quotes: bool, out: &mut String) {
    let mut rest = text;
    let special = |byte: u8| byte == b'\\' || byte == b'\n' || quotes && byte == b'"';
    while let Some(at) = rest.bytes().position(special) {
        out.push_str(&rest[..at]);
        out.push_str(match rest.as_bytes()[at] {
            b'\n' => "\\n",
            b'"' => "\\\"",
            _ => "\\\\",
        });
        rest = &rest[at + 1..];
    }
    out.push_str(rest);
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus::{
        Gauge, HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry, TextEncoder, core::Collector,
    };

    #[test]
    fn every_line_is_what_the_library_writes() {
        let registry = Registry::new();
        let odd = [
            "",
            "plain",
            "a \"quoted\" name",
            "back\\slash",
            "two\nlines",
            "ä, {=}",
        ];
        let counters = IntCounterVec::new(
            Opts::new("c_total", "Counts \\ \"things\"\nand others."),
            &["b", "a"],
        );
        let counters = counters.unwrap();
        for (at, value) in odd.iter().enumerate() {
            counters
                .with_label_values(&[value, "x"])
                .inc_by(1_000_003 * at as u64);
        }
        counters.with_label_values(&["most", "x"]).inc_by(u64::MAX);
        let numbers = [
            0.0,
            -0.0,
            1.5,
            -3.0,
            1e-9,
            1e15,
            1e16,
            1e300,
            f64::NAN,
            f64::INFINITY,
            f64::NEG_INFINITY,
        ];
        for (at, value) in numbers.iter().enumerate() {
            let gauge = Gauge::new(format!("g{at}"), "A gauge.").unwrap();
            gauge.set(*value);
            registry.register(Box::new(gauge)).unwrap();
        }
        let histogram = |name: &str, labels: &[&str], buckets: &[f64]| {
            let options = HistogramOpts::new(name, "Takes its time.").buckets(buckets.to_vec());
            HistogramVec::new(options, labels).unwrap()
        };
        let bare = histogram("h0", &[], &[1.0]);
        bare.with_label_values::<&str>(&[]).observe(0.5);
        let many = histogram("h1", &["l"], &[0.001, 0.0025, 1.0, 60.0]);
        let other = histogram("h2", &["l"], &[0.001, 0.5, f64::INFINITY]);
        for of in [&many, &other] {
            for value in odd {
                of.with_label_values(&[value]).observe(0.002);
            }
        }
        let all: [Box<dyn Collector>; 4] = [
            Box::new(counters),
            Box::new(bare),
            Box::new(many),
            Box::new(other),
        ];
        for collector in all {
            registry.register(collector).unwrap();
        }
        let families = registry.gather();
        let theirs = TextEncoder::new().encode_to_string(&families).unwrap();
        assert!(theirs.lines().count() > 60, "{theirs}");
        let mut ours = Text::default();
        for family in &families {
            ours.family(family);
        }
        let ours = ours.finish();
        for (ours, theirs) in ours.lines().zip(theirs.lines()) {
            assert_eq!(ours, theirs);
        }
        assert_eq!(ours, theirs);
    }
}
