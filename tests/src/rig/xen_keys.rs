//! xenstore for tests, one request at a time and blocking: the keys of a front end in dom0, and
//! waiting for those of its back end.
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use xenstore::wire::{Decoder, Kind, Packet};

/// How long a key may take to get its value on a busy host.
const PATIENCE: Duration = Duration::from_secs(60);
const SOCKET: &str = "/run/xenstored/socket";

/// A connection.
pub struct Keys {
    stream: UnixStream,
    decoder: Decoder,
}

impl Keys {
    /// To dom0's xenstored.
    ///
    /// # Errors
    /// A sentence: nobody listens.
    pub fn open() -> Result<Keys, String> {
        let stream = UnixStream::connect(SOCKET).map_err(|e| format!("{SOCKET}: {e}"))?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(|e| format!("{SOCKET}: {e}"))?;
        Ok(Keys { stream, decoder: Decoder::default() })
    }

    /// The value of a key; `None`: there is none.
    ///
    /// # Errors
    /// xenstored's, but for ENOENT.
    pub fn read(&mut self, path: &str) -> Result<Option<Vec<u8>>, String> {
        match self.ask(Kind::Read, &[path.as_bytes(), b"\0"]) {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.ends_with("ENOENT") => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes a key.
    ///
    /// # Errors
    /// xenstored's.
    pub fn write(&mut self, path: &str, value: impl AsRef<[u8]>) -> Result<(), String> {
        self.ask(Kind::Write, &[path.as_bytes(), b"\0", value.as_ref()]).map(drop)
    }

    /// Removes a key, if it is there.
    ///
    /// # Errors
    /// xenstored's, but for ENOENT.
    pub fn remove(&mut self, path: &str) -> Result<(), String> {
        match self.ask(Kind::Rm, &[path.as_bytes(), b"\0"]) {
            Err(error) if !error.ends_with("ENOENT") => Err(error),
            _ => Ok(()),
        }
    }

    /// Waits until a key has a value.
    ///
    /// # Errors
    /// A sentence with the value that it has instead.
    pub fn await_value(&mut self, path: &str, want: &str) -> Result<(), String> {
        let words = [path.as_bytes(), b"\0test\0"];
        self.ask(Kind::Watch, &words)?;
        let result = loop {
            match self.read(path) {
                Ok(Some(value)) if value == want.as_bytes() => break Ok(()),
                Ok(value) => {
                    if self.receive(Kind::WatchEvent).is_err() {
                        let value = value.map(|bytes| bytes.escape_ascii().to_string());
                        break Err(format!("{path} is {value:?}, and does not become {want}"));
                    }
                }
                Err(error) => break Err(error),
            }
        };
        self.ask(Kind::Unwatch, &words)?;
        result
    }

    fn ask(&mut self, kind: Kind, words: &[&[u8]]) -> Result<Vec<u8>, String> {
        let what = || format!("cannot {} {}", kind.verb(), words[0].escape_ascii());
        let packet = Packet { kind: kind as u32, id: 0, tx: 0, payload: words.concat() };
        self.stream.write_all(&packet.encode()).map_err(|e| format!("{}: {e}", what()))?;
        self.receive(kind).map_err(|e| format!("{}: {e}", what()))
    }

    /// The next packet of a kind. A watch that fires meanwhile is heard when it is waited for, as
    /// every wait reads the key first.
    fn receive(&mut self, kind: Kind) -> Result<Vec<u8>, String> {
        loop {
            let packet = self.packet().map_err(|e| e.to_string())?;
            match Kind::from_number(packet.kind) {
                Some(got) if got == kind => return Ok(packet.payload),
                Some(Kind::Error) => {
                    let name = String::from_utf8_lossy(&packet.payload);
                    return Err(name.trim_end_matches('\0').to_string());
                }
                _ => {}
            }
        }
    }

    fn packet(&mut self) -> io::Result<Packet> {
        loop {
            match self.decoder.next_packet() {
                Ok(Some(packet)) => return Ok(packet),
                Ok(None) => {}
                Err(error) => return Err(io::Error::other(format!("{error:?}"))),
            }
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => self.decoder.feed(&buffer[..count]),
            }
        }
    }
}
