//! The text of STATS, by the building rules of spec/tap-ctl.md §5, with our own members at the end.
use std::fmt::{Display, Write};

/// A text under construction: `{ "key": value, … }` and `[ value, … ]`, each bracket with a blank
/// inside, no line feed.
#[derive(Debug, Default)]
pub struct Json {
    text: String,
    /// The next element needs a comma.
    comma: bool,
}

impl Json {
    /// The text.
    pub fn into_text(self) -> String {
        self.text
    }

    /// An object.
    pub fn object(&mut self, members: impl FnOnce(&mut Json)) {
        self.bracket("{ ", members, " }");
    }

    /// An array.
    pub fn array(&mut self, elements: impl FnOnce(&mut Json)) {
        self.bracket("[ ", elements, " ]");
    }

    /// The name of the member that follows.
    pub fn key(&mut self, key: &str) -> &mut Json {
        self.string(key);
        self.text.push_str(": ");
        self.comma = false;
        self
    }

    /// A number, `true`, `false` or `null`.
    pub fn plain(&mut self, value: impl Display) {
        self.separate();
        let _ = write!(self.text, "{value}");
    }

    /// A string, escaped as JSON demands (the original does not escape).
    pub fn string(&mut self, value: &str) {
        self.separate();
        self.text.push('"');
        for c in value.chars() {
            match c {
                '"' | '\\' => {
                    self.text.push('\\');
                    self.text.push(c);
                }
                c if c.is_control() => {
                    let _ = write!(self.text, "\\u{:04x}", u32::from(c));
                }
                c => self.text.push(c),
            }
        }
        self.text.push('"');
    }

    /// A member that is a number, `true`, `false` or `null`.
    pub fn member(&mut self, key: &str, value: impl Display) {
        self.key(key).plain(value);
    }

    /// A member that is an array of numbers.
    pub fn numbers(&mut self, key: &str, values: &[u64]) {
        self.key(key).array(|j| values.iter().for_each(|v| j.plain(v)));
    }

    fn bracket(&mut self, open: &str, inside: impl FnOnce(&mut Json), close: &str) {
        self.separate();
        self.text.push_str(open);
        self.comma = false;
        inside(self);
        self.text.push_str(close);
        self.comma = true;
    }

    fn separate(&mut self) {
        if std::mem::replace(&mut self.comma, true) {
            self.text.push_str(", ");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brackets_blanks_and_commas_are_the_original_s() {
        let mut j = Json::default();
        j.object(|j| {
            j.key("name").string("vhd:/a \"b\"\n\u{9b}");
            j.numbers("secs", &[8, 16]);
            j.key("images").array(|_| {});
            j.key("driver").object(|j| j.member("status", "null"));
        });
        assert_eq!(
            j.into_text(),
            r#"{ "name": "vhd:/a \"b\"\u000a\u009b", "secs": [ 8, 16 ], "images": [  ], "driver": { "status": null } }"#
        );
    }
}
