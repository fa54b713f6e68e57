//! The name of an `nbd:` image (spec/drivers.md §6.10): where the server is, and which export.
use std::ffi::OsStr;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Before the name of an export, in qemu's spelling.
const EXPORT: &[u8] = b":exportname=";
/// Before a path, in qemu's spelling; it may be left out.
const UNIX: &[u8] = b"unix:";

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    /// At a socket with an absolute path.
    Unix(PathBuf),
    /// At an address of IPv4, or of IPv6 in brackets, and a port.
    Tcp(SocketAddr),
    /// At the other end of a descriptor that was passed under this name.
    Passed(Vec<u8>),
}

/// A parsed name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub endpoint: Endpoint,
    /// Empty: the server's default.
    pub export: Vec<u8>,
}

impl Address {
    /// Anything is something: what is neither path nor address is a name.
    pub(super) fn parse(text: &[u8]) -> Address {
        let at = text.windows(EXPORT.len()).position(|part| part == EXPORT);
        let (endpoint, export) = match at {
            Some(at) => (&text[..at], &text[at + EXPORT.len()..]),
            None => (text, &[][..]),
        };
        let path =
            endpoint.strip_prefix(UNIX).filter(|rest| rest.starts_with(b"/")).unwrap_or(endpoint);
        let address = std::str::from_utf8(endpoint).ok().and_then(|text| text.parse().ok());
        let endpoint = match address {
            _ if path.starts_with(b"/") => {
                Endpoint::Unix(Path::new(OsStr::from_bytes(path)).into())
            }
            Some(address) => Endpoint::Tcp(address),
            None => Endpoint::Passed(endpoint.to_vec()),
        };
        Address { endpoint, export: export.to_vec() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_path_an_address_or_a_name() {
        for (text, endpoint, export) in [
            ("/run/x:y", Endpoint::Unix("/run/x:y".into()), ""),
            ("/run/s:exportname=a:b", Endpoint::Unix("/run/s".into()), "a:b"),
            ("unix:/run/s:exportname=", Endpoint::Unix("/run/s".into()), ""),
            ("10.0.0.1:10809", Endpoint::Tcp("10.0.0.1:10809".parse().unwrap()), ""),
            ("[::1]:1:exportname=d", Endpoint::Tcp("[::1]:1".parse().unwrap()), "d"),
            ("mirror", Endpoint::Passed(b"mirror".to_vec()), ""),
            ("unix:mirror", Endpoint::Passed(b"unix:mirror".to_vec()), ""),
            ("10.0.0.1", Endpoint::Passed(b"10.0.0.1".to_vec()), ""),
            ("", Endpoint::Passed(Vec::new()), ""),
        ] {
            let want = Address { endpoint, export: export.as_bytes().to_vec() };
            assert_eq!(Address::parse(text.as_bytes()), want, "{text}");
        }
    }
}
