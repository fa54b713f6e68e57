//! Requests, checked before they are sent: what xenstored would answer with nonsense, or what would
//! be two fields instead of one, never leaves.

use crate::error::Error;
use crate::perms::Permission;
use crate::wire::{ABS_PATH_MAX, Kind, PAYLOAD_MAX, Packet, REL_PATH_MAX};

/// Most permissions of a node that are sent.
const PERMISSIONS_MAX: usize = 64;

/// A request that fits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    kind: Kind,
    tx: u32,
    about: String,
    payload: Vec<u8>,
}

impl Request {
    /// The names of the children.
    ///
    /// # Errors
    /// As all of these: a path that is empty, too long, or has a NUL in it.
    pub fn directory(path: &str) -> Result<Request, Error> {
        Request::about(Kind::Directory, path, &[])
    }

    /// A part of the names of the children, from this byte of them on.
    ///
    /// # Errors
    /// See [`Request::directory`].
    pub fn directory_part(path: &str, offset: usize) -> Result<Request, Error> {
        Request::about(Kind::DirectoryPart, path, &[&with_nul(&offset.to_string())])
    }

    /// The value.
    ///
    /// # Errors
    /// See [`Request::directory`].
    pub fn read(path: &str) -> Result<Request, Error> {
        Request::about(Kind::Read, path, &[])
    }

    /// Set the value, and make the node and those above it where they are missing.
    ///
    /// # Errors
    /// See [`Request::directory`]; also a value that does not fit into a packet.
    pub fn write(path: &str, value: &[u8]) -> Result<Request, Error> {
        Request::about(Kind::Write, path, &[value])
    }

    /// Make an empty node where there is none.
    ///
    /// # Errors
    /// See [`Request::directory`].
    pub fn mkdir(path: &str) -> Result<Request, Error> {
        Request::about(Kind::Mkdir, path, &[])
    }

    /// Remove a node and what is below it.
    ///
    /// # Errors
    /// See [`Request::directory`].
    pub fn rm(path: &str) -> Result<Request, Error> {
        Request::about(Kind::Rm, path, &[])
    }

    /// The permissions.
    ///
    /// # Errors
    /// See [`Request::directory`].
    pub fn get_perms(path: &str) -> Result<Request, Error> {
        Request::about(Kind::GetPerms, path, &[])
    }

    /// Set the permissions; the first entry names the owner.
    ///
    /// # Errors
    /// See [`Request::directory`]; also no entry, or more than 64.
    pub fn set_perms(path: &str, permissions: &[Permission]) -> Result<Request, Error> {
        if permissions.is_empty() || permissions.len() > PERMISSIONS_MAX {
            let reason = format!("{} permissions for {path}, not 1 to 64", permissions.len());
            return Err(Error::Unfit { reason });
        }
        let text: Vec<u8> = permissions.iter().flat_map(|p| with_nul(&p.to_string())).collect();
        Request::about(Kind::SetPerms, path, &[&text])
    }

    /// Report every change of this node and of those below it, with this token.
    ///
    /// # Errors
    /// See [`Request::directory`].
    pub fn watch(path: &str, token: &str) -> Result<Request, Error> {
        Request::about(Kind::Watch, path, &[&with_nul(token)])
    }

    /// Stop that.
    ///
    /// # Errors
    /// See [`Request::directory`].
    pub fn unwatch(path: &str, token: &str) -> Result<Request, Error> {
        Request::about(Kind::Unwatch, path, &[&with_nul(token)])
    }

    /// Start a transaction.
    pub fn start() -> Request {
        Request::plain(Kind::TransactionStart, "", vec![0])
    }

    /// End a transaction: with its changes, or without.
    pub fn end(tx: u32, commit: bool) -> Request {
        let payload = if commit { b"T\0" } else { b"F\0" };
        Request::plain(Kind::TransactionEnd, "", payload.to_vec()).within(tx)
    }

    /// The path of a domain's folder.
    pub fn domain_path(domid: u32) -> Request {
        let text = domid.to_string();
        Request::plain(Kind::GetDomainPath, &text, with_nul(&text))
    }

    /// Does xenstored know this domain?
    pub fn is_domain_introduced(domid: u32) -> Request {
        let text = domid.to_string();
        Request::plain(Kind::IsDomainIntroduced, &text, with_nul(&text))
    }

    /// The same, in a transaction.
    #[must_use]
    pub fn within(self, tx: u32) -> Request {
        Request { tx, ..self }
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The path or domain it is about.
    pub fn subject(&self) -> &str {
        &self.about
    }

    /// The packet to send.
    pub fn packet(&self, id: u32) -> Packet {
        Packet { kind: self.kind as u32, id, tx: self.tx, payload: self.payload.clone() }
    }

    fn plain(kind: Kind, about: &str, payload: Vec<u8>) -> Request {
        Request { kind, tx: 0, about: about.to_owned(), payload }
    }

    fn about(kind: Kind, path: &str, more: &[&[u8]]) -> Result<Request, Error> {
        check_path(path)?;
        let mut payload = with_nul(path);
        more.iter().for_each(|part| payload.extend_from_slice(part));
        if payload.len() > PAYLOAD_MAX {
            let length = payload.len();
            let reason = format!(
                "{length} bytes for {path} do not fit into xenstore's packets of {PAYLOAD_MAX}"
            );
            return Err(Error::Unfit { reason });
        }
        Ok(Request::plain(kind, path, payload))
    }
}

fn with_nul(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

/// The names of nodes are xenstored's to judge; here it is only made sure that the path is one
/// field.
fn check_path(path: &str) -> Result<(), Error> {
    let max = if path.starts_with('/') { ABS_PATH_MAX } else { REL_PATH_MAX };
    let wrong = match path {
        "" => "is empty",
        path if path.len() > max => "is too long",
        path if path.contains('\0') => "has a NUL in it",
        _ => return Ok(()),
    };
    let shown: String = path.chars().take(80).collect();
    Err(Error::Unfit { reason: format!("the xenstore path \"{}\" {wrong}", shown.escape_debug()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(request: Result<Request, Error>) -> Vec<u8> {
        request.expect("fits").packet(1).payload
    }

    #[test]
    fn fields_end_with_nul_and_values_do_not() {
        assert_eq!(payload(Request::read("a")), b"a\0");
        assert_eq!(payload(Request::write("a", b"v")), b"a\0v");
        assert_eq!(payload(Request::watch("a", "t")), b"a\0t\0");
        assert_eq!(payload(Request::directory_part("a", 12)), b"a\x0012\0");
        let perms = Permission::readable_by(0, 7);
        assert_eq!(payload(Request::set_perms("a", &perms)), b"a\0n0\0r7\0");
        assert_eq!(payload(Ok(Request::start())), b"\0");
        assert_eq!(payload(Ok(Request::end(3, true))), b"T\0");
        assert_eq!(payload(Ok(Request::end(3, false))), b"F\0");
    }

    #[test]
    fn the_transaction_is_in_the_header() {
        let request = Request::read("a").expect("fits").within(5);
        assert_eq!((request.packet(9).tx, request.packet(9).id), (5, 9));
        assert_eq!(Request::end(6, true).packet(0).tx, 6);
    }

    #[test]
    fn paths_are_one_field_of_limited_length() {
        let absolute = |len: usize| format!("/{}", "a".repeat(len - 1));
        assert!(Request::read(&absolute(3072)).is_ok());
        assert!(Request::read(&"a".repeat(2048)).is_ok());
        for bad in ["", "a\0b", &absolute(3073), &"a".repeat(2049)] {
            assert!(matches!(Request::read(bad), Err(Error::Unfit { .. })));
        }
    }

    #[test]
    fn a_value_has_what_the_path_leaves_of_a_packet() {
        assert!(Request::write("a", &[b'x'; 4094]).is_ok());
        let error = Request::write("a", &[b'x'; 4095]).expect_err("one too many");
        assert_eq!(
            error.to_string(),
            "4097 bytes for a do not fit into xenstore's packets of 4096"
        );
    }

    #[test]
    fn permissions_need_an_owner() {
        assert!(Request::set_perms("a", &[]).is_err());
        assert!(Request::set_perms("a", &[Permission::new(crate::Access::None, 0); 65]).is_err());
    }
}
