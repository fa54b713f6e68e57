//! Permissions of a node: its owner's entry first, then those of other domains.

use std::fmt;

/// What a domain may do. In the first entry: what everybody may do who is not listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nothing.
    None,
    /// Read.
    Read,
    /// Write.
    Write,
    /// Both.
    Both,
}

/// One entry, such as `r5`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permission {
    /// What is allowed.
    pub access: Access,
    /// To whom.
    pub domid: u32,
}

const LETTERS: [(Access, u8); 4] =
    [(Access::None, b'n'), (Access::Read, b'r'), (Access::Write, b'w'), (Access::Both, b'b')];

impl Permission {
    /// An entry.
    pub fn new(access: Access, domid: u32) -> Permission {
        Permission { access, domid }
    }

    /// Owned by `owner`, readable by `reader`, hidden from all others.
    pub fn readable_by(owner: u32, reader: u32) -> [Permission; 2] {
        [Permission::new(Access::None, owner), Permission::new(Access::Read, reader)]
    }

    /// From its text.
    pub fn parse(text: &[u8]) -> Option<Permission> {
        let (letter, digits) = text.split_first()?;
        let (access, _) = LETTERS.into_iter().find(|(_, known)| known == letter)?;
        if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let domid = std::str::from_utf8(digits).ok()?.parse().ok()?;
        Some(Permission { access, domid })
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = match self.access {
            Access::None => 'n',
            Access::Read => 'r',
            Access::Write => 'w',
            Access::Both => 'b',
        };
        write!(f, "{letter}{}", self.domid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        for text in ["n0", "r5", "w12", "b32752"] {
            let permission = Permission::parse(text.as_bytes()).expect(text);
            assert_eq!(permission.to_string(), text);
        }
    }

    #[test]
    fn nonsense_is_none() {
        for text in ["", "r", "x5", "r-1", "r+1", "r5 ", "5", "r99999999999"] {
            assert_eq!(Permission::parse(text.as_bytes()), None, "{text}");
        }
    }
}
