//! JSON as QEMU's tool lays it out: members in an order of their own, four blanks a level.

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Json {
    Text(String),
    Number(u64),
    Bool(bool),
    List(Vec<Json>),
    Object(Vec<(&'static str, Json)>),
}

impl From<&str> for Json {
    fn from(text: &str) -> Json {
        Json::Text(text.into())
    }
}

impl From<String> for Json {
    fn from(text: String) -> Json {
        Json::Text(text)
    }
}

impl From<u64> for Json {
    fn from(number: u64) -> Json {
        Json::Number(number)
    }
}

impl From<bool> for Json {
    fn from(bit: bool) -> Json {
        Json::Bool(bit)
    }
}

impl Json {
    /// The text, a line at its end.
    pub(crate) fn pretty(&self) -> String {
        let mut out = String::new();
        self.lay(&mut out, 0);
        out.push('\n');
        out
    }

    fn lay(&self, out: &mut String, level: usize) {
        match self {
            Json::Text(text) => out.push_str(&quoted(text)),
            Json::Number(number) => out.push_str(&number.to_string()),
            Json::Bool(bit) => out.push_str(if *bit { "true" } else { "false" }),
            Json::List(all) => {
                let all: Vec<(String, &Json)> = all.iter().map(|v| (String::new(), v)).collect();
                members(out, level, ('[', ']'), &all);
            }
            Json::Object(all) => {
                let all: Vec<(String, &Json)> =
                    all.iter().map(|(name, v)| (format!("\"{name}\": "), v)).collect();
                members(out, level, ('{', '}'), &all);
            }
        }
    }
}

fn members(out: &mut String, level: usize, ends: (char, char), all: &[(String, &Json)]) {
    out.push(ends.0);
    for (number, (name, value)) in all.iter().enumerate() {
        out.push_str(if number == 0 { "\n" } else { ",\n" });
        out.push_str(&"    ".repeat(level + 1));
        out.push_str(name);
        value.lay(out, level + 1);
    }
    out.push('\n');
    out.push_str(&"    ".repeat(level));
    out.push(ends.1);
}

/// A string; what is no ASCII is written out, as QEMU does.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for unit in text.encode_utf16() {
        match char::from_u32(unit.into()) {
            Some('"') => out.push_str("\\\""),
            Some('\\') => out.push_str("\\\\"),
            Some('\u{8}') => out.push_str("\\b"),
            Some('\u{c}') => out.push_str("\\f"),
            Some('\n') => out.push_str("\\n"),
            Some('\r') => out.push_str("\\r"),
            Some('\t') => out.push_str("\\t"),
            Some(c) if (' '..='~').contains(&c) => out.push(c),
            _ => out.push_str(&format!("\\u{unit:04X}")),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_laid_out_as_qemu_does() {
        let value = Json::Object(vec![
            ("a", Json::List(vec![1.into(), true.into()])),
            ("none", Json::List(Vec::new())),
            ("text", "a\"\\\n\u{e9}\u{1f600}".into()),
        ]);
        let text = "{\n    \"a\": [\n        1,\n        true\n    ],\n    \"none\": [\n    ],\n\
                    \x20   \"text\": \"a\\\"\\\\\\n\\u00E9\\uD83D\\uDE00\"\n}\n";
        assert_eq!(value.pretty(), text);
    }
}
