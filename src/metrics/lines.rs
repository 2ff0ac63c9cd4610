//! Lines of a scrape that other floors write: each source says its families, in the order in which it goes through its things.

use super::{names::Family, text::Text};

/// What has something to say in every scrape, in families that nobody else has.
pub trait Source: Send {
    /// Its lines of now, a family each. One without lines is not shown.
    fn read(&self) -> Vec<Lines>;
}

/// The lines of one family.
pub struct Lines {
    pub(super) family: &'static Family,
    pub(super) text: Text,
}

impl Lines {
    /// None yet. `family` is one of [`super::names`].
    pub fn of(family: &'static Family) -> Lines {
        Lines {
            family,
            text: Text::default(),
        }
    }

    /// One line: the values of all the family's labels, in its order, and what is measured.
    pub fn row(&mut self, values: &[&str], value: f64) {
        debug_assert_eq!(values.len(), self.family.labels.len(), "{}", self.family.name);
        self.text.rows(self.family).row(values, value);
    }

    /// One line of a counter.
    pub fn count(&mut self, values: &[&str], count: u64) {
        debug_assert_eq!(values.len(), self.family.labels.len(), "{}", self.family.name);
        self.text.rows(self.family).count(values, count);
    }
}
