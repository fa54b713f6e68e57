//! What replies say, checked.

use crate::error::Error;
use crate::perms::Permission;
use crate::wire::Kind;

/// Most names of children that are taken from one directory.
const CHILDREN_MAX: usize = 1 << 16;

/// A reply to a request of this kind about this path, not yet understood.
#[derive(Debug)]
pub(crate) struct Reply {
    pub kind: Kind,
    pub about: String,
    pub payload: Vec<u8>,
}

impl Reply {
    fn bad(&self, reason: impl Into<String>) -> Error {
        Error::BadReply { kind: self.kind, path: self.about.clone(), reason: reason.into() }
    }

    pub fn names(&self) -> Result<Vec<String>, Error> {
        names(&self.payload).ok_or_else(|| self.bad("names that are no text"))
    }

    pub fn permissions(&self) -> Result<Vec<Permission>, Error> {
        let entries: Option<Vec<_>> = fields(&self.payload).map(Permission::parse).collect();
        let entries = entries.filter(|entries| !entries.is_empty());
        entries.ok_or_else(|| self.bad("permissions that are none"))
    }

    /// A number with its NUL: the id of a new transaction.
    pub fn number(&self) -> Result<u32, Error> {
        let text = self.payload.strip_suffix(b"\0").unwrap_or(&self.payload);
        let number = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
        number.filter(|n| *n != 0).ok_or_else(|| self.bad("no transaction number"))
    }

    pub fn text(&self) -> Result<String, Error> {
        let text = self.payload.strip_suffix(b"\0").unwrap_or(&self.payload);
        let text = std::str::from_utf8(text).ok().filter(|text| !text.contains('\0'));
        text.map(str::to_owned).ok_or_else(|| self.bad("no text"))
    }

    pub fn truth(&self) -> Result<bool, Error> {
        match self.payload.as_slice() {
            b"T\0" | b"T" => Ok(true),
            b"F\0" | b"F" => Ok(false),
            _ => Err(self.bad("neither T nor F")),
        }
    }
}

/// A directory that is too long for one packet, put together from parts.
#[derive(Debug, Default)]
pub struct Children {
    generation: Option<Vec<u8>>,
    bytes: Vec<u8>,
}

/// What to do after a part.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Ask for the part that begins here.
    From(usize),
    /// That was all.
    Done(Vec<String>),
}

impl Children {
    /// Take a part: `generation NUL name NUL name NUL …`, with an empty name at the very end.
    pub(crate) fn take(&mut self, reply: &Reply) -> Result<Next, Error> {
        let end = reply.payload.iter().position(|byte| *byte == 0);
        let (generation, rest) = match end {
            Some(end) => (&reply.payload[..end], &reply.payload[end + 1..]),
            None => return Err(reply.bad("a part of a directory without its generation")),
        };
        if self.generation.as_deref().is_some_and(|known| known != generation) {
            // The directory has changed: what was taken so far does not fit to this part.
            *self = Children::default();
            return Ok(Next::From(0));
        }
        self.generation = Some(generation.to_vec());
        let (part, last) = match rest {
            [] | [0] => (&rest[..0], true),
            rest if rest.ends_with(b"\0\0") => (&rest[..rest.len() - 1], true),
            rest => (rest, false),
        };
        self.bytes.extend_from_slice(part);
        if self.bytes.len() > CHILDREN_MAX * 16 {
            return Err(reply.bad("a directory without end"));
        }
        match last {
            false => Ok(Next::From(self.bytes.len())),
            true => names(&self.bytes)
                .map(Next::Done)
                .ok_or_else(|| reply.bad("names that are no text")),
        }
    }
}

fn fields(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let bytes = bytes.strip_suffix(b"\0").unwrap_or(bytes);
    bytes.split(|byte| *byte == 0).filter(|field| !field.is_empty())
}

fn names(bytes: &[u8]) -> Option<Vec<String>> {
    fields(bytes).map(|name| std::str::from_utf8(name).ok().map(str::to_owned)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(payload: &[u8]) -> Reply {
        Reply { kind: Kind::Directory, about: "a".into(), payload: payload.to_vec() }
    }

    #[test]
    fn names_are_separated_by_nul() {
        assert_eq!(reply(b"a\0bc\0").names(), Ok(vec!["a".into(), "bc".into()]));
        assert_eq!(reply(b"").names(), Ok(vec![]));
        assert!(reply(b"\xff\0").names().is_err());
    }

    #[test]
    fn a_directory_in_parts() {
        let mut children = Children::default();
        assert_eq!(children.take(&reply(b"7\0a\0b\0")), Ok(Next::From(4)));
        let all = ["a", "b", "c"].map(str::to_owned).to_vec();
        assert_eq!(children.take(&reply(b"7\0c\0\0")), Ok(Next::Done(all)));
        assert_eq!(Children::default().take(&reply(b"7\0\0")), Ok(Next::Done(vec![])));
    }

    #[test]
    fn a_directory_that_changes_is_read_again_from_its_start() {
        let mut children = Children::default();
        assert_eq!(children.take(&reply(b"7\0a\0")), Ok(Next::From(2)));
        assert_eq!(children.take(&reply(b"8\0b\0\0")), Ok(Next::From(0)));
        assert_eq!(children.take(&reply(b"8\0b\0\0")), Ok(Next::Done(vec!["b".into()])));
        assert!(Children::default().take(&reply(b"7")).is_err());
    }

    #[test]
    fn numbers_and_truths() {
        assert_eq!(reply(b"17\0").number(), Ok(17));
        for bad in [&b""[..], b"0\0", b"x\0", b"-1\0", b"99999999999\0"] {
            assert!(reply(bad).number().is_err());
        }
        assert_eq!((reply(b"T\0").truth(), reply(b"F\0").truth()), (Ok(true), Ok(false)));
        assert!(reply(b"\0").truth().is_err());
    }

    #[test]
    fn permissions_that_are_none_are_refused() {
        assert_eq!(reply(b"n0\0r5\0").permissions(), Ok(Permission::readable_by(0, 5).to_vec()));
        assert!(reply(b"").permissions().is_err() && reply(b"n0\0q\0").permissions().is_err());
    }
}
