//! The least NBD client: EXPORT_NAME, simple replies, one request at a time or as many as one
//! likes.
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::PATIENCE;

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const DISC: u16 = 2;
pub const FLUSH: u16 = 3;

pub struct Nbd {
    pub stream: UnixStream,
    pub bytes: u64,
    pub flags: u16,
}

impl Nbd {
    pub fn connect(path: &Path) -> Nbd {
        let stream =
            UnixStream::connect(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Nbd::negotiate(stream)
    }

    pub fn negotiate(stream: UnixStream) -> Nbd {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut nbd = Nbd { stream, bytes: 0, flags: 0 };
        nbd.begin();
        nbd.finish();
        nbd
    }

    /// The first half of the negotiation.
    pub fn begin(&mut self) {
        let hello: [u8; 18] = self.take();
        assert_eq!(&hello[..16], b"NBDMAGICIHAVEOPT");
        self.stream.write_all(&3u32.to_be_bytes()).unwrap();
    }

    /// The second half.
    pub fn finish(&mut self) {
        self.stream.write_all(b"IHAVEOPT").unwrap();
        self.stream.write_all(&[0, 0, 0, 1, 0, 0, 0, 1, b'x']).unwrap();
        let answer: [u8; 10] = self.take();
        self.bytes = u64::from_be_bytes(answer[..8].try_into().unwrap());
        self.flags = u16::from_be_bytes(answer[8..].try_into().unwrap());
    }

    /// Sends a request and does not wait.
    pub fn ask(&mut self, command: u16, handle: u64, at: u64, bytes: u32, data: &[u8]) {
        let mut request = 0x2560_9513u32.to_be_bytes().to_vec();
        request.extend([0, 0]);
        request.extend(command.to_be_bytes());
        request.extend(handle.to_be_bytes());
        request.extend(at.to_be_bytes());
        request.extend(bytes.to_be_bytes());
        request.extend(data);
        self.stream.write_all(&request).unwrap();
    }

    /// The next reply: handle and error.
    pub fn reply(&mut self) -> (u64, u32) {
        let reply: [u8; 16] = self.take();
        assert_eq!(reply[..4], 0x6744_6698u32.to_be_bytes());
        let error = u32::from_be_bytes(reply[4..8].try_into().unwrap());
        (u64::from_be_bytes(reply[8..].try_into().unwrap()), error)
    }

    /// Data, or an NBD error number.
    pub fn read(&mut self, at: u64, bytes: u32) -> Result<Vec<u8>, u32> {
        self.ask(READ, 7, at, bytes, &[]);
        let (_, error) = self.reply();
        if error != 0 {
            return Err(error);
        }
        let mut data = vec![0; bytes as usize];
        self.stream.read_exact(&mut data).unwrap();
        Ok(data)
    }

    pub fn write(&mut self, at: u64, data: &[u8]) -> Result<(), u32> {
        self.ask(WRITE, 8, at, data.len() as u32, data);
        match self.reply() {
            (8, 0) => Ok(()),
            (8, error) => Err(error),
            (handle, _) => panic!("reply to {handle}"),
        }
    }

    pub fn flush(&mut self) -> Result<(), u32> {
        self.ask(FLUSH, 9, 0, 0, &[]);
        match self.reply().1 {
            0 => Ok(()),
            error => Err(error),
        }
    }

    pub fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }
}
