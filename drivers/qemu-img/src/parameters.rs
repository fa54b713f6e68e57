//! Options of a format: `-o cluster_size=64k,extended_l2=on`, commas doubled where they are meant.
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use qcow2::create::{Options, Preallocation};
use qcow2::header::Backing;
use qcow2::layout::{bits_of, order_of};

use crate::size;
use crate::tool::Outcome;

/// What can be said of a new qcow2 image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Parameters {
    pub(crate) cluster_size: Option<u64>,
    pub(crate) extended: bool,
    pub(crate) preallocation: Option<String>,
    pub(crate) size: Option<u64>,
    pub(crate) compat: Option<String>,
    pub(crate) backing_file: Option<Vec<u8>>,
    pub(crate) backing_fmt: Option<Vec<u8>>,
    pub(crate) lazy: bool,
    pub(crate) refcount_bits: Option<u64>,
}

/// The pairs of an option.
fn pairs(text: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut words = vec![Vec::new()];
    let mut bytes = text.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b',' if bytes.next_if_eq(&b',').is_none() => words.push(Vec::new()),
            byte => words.last_mut().expect("there is one from the start").push(byte),
        }
    }
    let pair = |word: Vec<u8>| match word.iter().position(|byte| *byte == b'=') {
        Some(at) => (String::from_utf8_lossy(&word[..at]).into_owned(), word[at + 1..].to_vec()),
        None => (String::from_utf8_lossy(&word).into_owned(), b"on".to_vec()),
    };
    words.into_iter().filter(|word| !word.is_empty()).map(pair).collect()
}

fn on_or_off(name: &str, value: &[u8]) -> Outcome<bool> {
    match value {
        b"on" | b"yes" | b"true" | b"y" => Ok(true),
        b"off" | b"no" | b"false" | b"n" => Ok(false),
        _ => Err(format!("Parameter '{name}' expects 'on' or 'off'").into()),
    }
}

fn number(name: &str, value: &[u8]) -> Outcome<u64> {
    let bytes = std::str::from_utf8(value).ok().and_then(size::parse);
    let text = format!(
        "Parameter '{name}' expects a non-negative number below 2^64\nOptional suffix k, M, G, T, \
         P or E means kilo-, mega-, giga-, tera-, peta-\nand exabytes, respectively."
    );
    bytes.ok_or_else(|| text.into())
}

impl Parameters {
    /// Takes those of one `-o`.
    pub(crate) fn take(&mut self, text: &OsStr) -> Outcome<()> {
        for (name, value) in pairs(text.as_bytes()) {
            let words = || show::line(&value).into_owned();
            match name.as_str() {
                "cluster_size" => self.cluster_size = Some(number(&name, &value)?),
                "extended_l2" => self.extended = on_or_off(&name, &value)?,
                "preallocation" => self.preallocation = Some(words()),
                "size" => self.size = Some(number(&name, &value)?),
                "compat" | "version" => self.compat = Some(words()),
                "backing_file" => self.backing_file = Some(value.clone()),
                "backing_fmt" => self.backing_fmt = Some(value.clone()),
                "lazy_refcounts" => self.lazy = on_or_off(&name, &value)?,
                // What is no number is no width either.
                "refcount_bits" => self.refcount_bits = Some(number(&name, &value).unwrap_or(0)),
                "compression_type" if value == b"zlib" => {}
                "compression_type" | "data_file" | "data_file_raw" | "encryption" => {
                    let why = "is not supported here; use QEMU's qemu-img";
                    return Err(format!("Parameter '{name}={}' {why}", words()).into());
                }
                _ => {
                    let name = show::line(name.as_bytes());
                    return Err(format!("Invalid parameter '{name}'").into());
                }
            }
        }
        Ok(())
    }

    fn version(&self) -> Outcome<u32> {
        match self.compat.as_deref() {
            None | Some("1.1" | "v3") => Ok(3),
            Some("0.10" | "v2") => Ok(2),
            Some(other) => {
                Err(format!("Parameter 'version' does not accept value '{other}'").into())
            }
        }
    }

    fn preallocated(&self) -> Outcome<Preallocation> {
        Ok(match self.preallocation.as_deref() {
            None | Some("off") => Preallocation::Off,
            Some("metadata") => Preallocation::Metadata,
            Some("falloc") => Preallocation::Falloc,
            Some("full") => Preallocation::Full,
            Some(other) => {
                let text = format!("Parameter 'preallocation' does not accept value '{other}'");
                return Err(text.into());
            }
        })
    }

    /// What is to be made, for a disk of so many bytes.
    pub(crate) fn options(&self, bytes: u64) -> Outcome<Options> {
        let mut options = Options::new(bytes.checked_next_multiple_of(512).unwrap_or(u64::MAX));
        // What is no power of two is refused with the rest.
        options.shape.cluster_bits = self.cluster_size.map_or(Some(16), bits_of).unwrap_or(0);
        options.shape.refcount_order = self.refcount_bits.map_or(Some(4), order_of).unwrap_or(7);
        options.shape.extended = self.extended;
        options.version = self.version()?;
        options.lazy = self.lazy;
        options.preallocation = self.preallocated()?;
        options.backing = self
            .backing_file
            .clone()
            .map(|name| Backing { name, format: self.backing_fmt.clone() });
        Ok(options)
    }

    /// What QEMU says it makes.
    pub(crate) fn told(&self, path: &OsStr, bytes: u64) -> Vec<u8> {
        let on = |bit: bool| if bit { "on" } else { "off" };
        let mut out = b"Formatting '".to_vec();
        out.extend(show::name(path).iter());
        let cluster = self.cluster_size.unwrap_or(65_536);
        let extended = on(self.extended);
        out.extend(format!("', fmt=qcow2 cluster_size={cluster} extended_l2={extended}").bytes());
        if let Some(preallocation) = &self.preallocation {
            out.extend(format!(" preallocation={preallocation}").bytes());
        }
        out.extend(format!(" compression_type=zlib size={bytes}").bytes());
        if let Some(compat) = &self.compat {
            out.extend(format!(" compat={compat}").bytes());
        }
        for (name, value) in [("file", &self.backing_file), ("fmt", &self.backing_fmt)] {
            if let Some(value) = value {
                out.extend(format!(" backing_{name}=").bytes());
                out.extend(show::name(OsStr::from_bytes(value)).iter());
            }
        }
        let bits = self.refcount_bits.unwrap_or(16);
        let lazy = on(self.lazy);
        out.extend(format!(" lazy_refcounts={lazy} refcount_bits={bits}\n").bytes());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_told_apart() {
        let read = |text: &str| pairs(text.as_bytes());
        let pair = |name: &str, value: &str| (name.to_owned(), value.as_bytes().to_vec());
        assert_eq!(read("a=1,b=x,,y,c"), [pair("a", "1"), pair("b", "x,y"), pair("c", "on")]);
        assert_eq!(read(",,"), [pair(",", "on")]);
        assert!(read("").is_empty());
    }
}
