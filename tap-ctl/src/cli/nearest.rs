//! What somebody may have meant. Said on a terminal only: scripts see what the original prints.
use std::ffi::OsString;
use std::io::IsTerminal;

use super::Opt;

/// Whether a person sees what is said.
pub fn is_watched() -> bool {
    std::io::stdout().is_terminal() || std::io::stderr().is_terminal()
}

/// Slips of the finger that are forgiven.
const SLIPS: usize = 2;

/// The name that is nearest to a word, unless all are far off.
pub fn nearest<'a>(word: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let slips = |name: &'a str| (strsim::osa_distance(word, name), name);
    let near = names.map(slips).filter(|(slips, name)| *slips <= SLIPS && *slips < name.len() / 2);
    near.min().map(|(_, name)| name)
}

/// The long option that is nearest to the first word that looks like one and is none.
pub fn option(options: &[Opt], words: &[OsString]) -> Option<&'static str> {
    let names = || options.iter().filter_map(|option| option.long);
    let words = words.iter().filter_map(|word| word.to_str()?.strip_prefix("--"));
    let mut words = words.map(|word| word.split('=').next().unwrap_or(word));
    let wrong = words.find(|word| !word.is_empty() && !names().any(|name| name == *word))?;
    nearest(wrong, names())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_forgiven_and_other_words_are_not() {
        let names = ["create", "close", "list", "stats", "spawn"];
        let meant = |word: &str| nearest(word, names.into_iter());
        assert_eq!(meant("creat"), Some("create"));
        assert_eq!(meant("craete"), Some("create"));
        assert_eq!(meant("lsit"), Some("list"));
        assert_eq!(meant("stat"), Some("stats"));
        for word in ["", "x", "ls", "destroy", "createcreate"] {
            assert_eq!(meant(word), None, "{word}");
        }
    }
}
