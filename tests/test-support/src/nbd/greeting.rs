//! The negotiation: structured replies, `base:allocation`, GO with block sizes; or the name alone.
use std::io::Write;

use super::Client;

const GREETING: [u8; 16] = *b"NBDMAGICIHAVEOPT";
const OPTION_MAGIC: [u8; 8] = *b"IHAVEOPT";
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

const OPT_EXPORT_NAME: u32 = 1;
const OPT_GO: u32 = 7;
const OPT_STRUCTURED: u32 = 8;
const OPT_SET_META_CONTEXT: u32 = 10;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_META_CONTEXT: u32 = 4;
const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;
const CONTEXT: &[u8] = b"base:allocation";

impl Client {
    /// From the connection to the transmission phase.
    pub(super) fn greet(&mut self) {
        self.begin();
        let none = self.option(OPT_STRUCTURED, &[]);
        assert!(none.is_empty(), "no more than an ACK");
        self.structured = true;
        let mut query = vec![0; 4];
        query.extend(1u32.to_be_bytes());
        query.extend((CONTEXT.len() as u32).to_be_bytes());
        query.extend(CONTEXT);
        let contexts = self.option(OPT_SET_META_CONTEXT, &query);
        assert!(matches!(&contexts[..], [(REP_META_CONTEXT, name)] if &name[4..] == CONTEXT));
        // No name; one information: block sizes.
        for (kind, info) in self.option(OPT_GO, &[0, 0, 0, 0, 0, 1, 0, 3]) {
            assert_eq!(kind, REP_INFO);
            self.learn(u16::from_be_bytes([info[0], info[1]]), &info[2..]);
        }
        assert!(self.size > 0, "the size was told");
    }

    /// The first half of a negotiation: greeting and flags.
    ///
    /// # Panics
    /// If the server does not take that.
    #[track_caller]
    pub fn begin(&mut self) {
        assert_eq!(self.take(16), GREETING);
        let flags = self.u16().expect("handshake flags");
        assert_eq!(flags & 3, 3, "fixed newstyle without zeros is offered");
        self.put(&3u32.to_be_bytes());
    }

    /// The second half of the oldest clients: EXPORT_NAME, and any name at all.
    ///
    /// # Panics
    /// If the server does not take that.
    #[track_caller]
    pub fn name_export(&mut self) {
        let mut message = OPTION_MAGIC.to_vec();
        message.extend(OPT_EXPORT_NAME.to_be_bytes());
        message.extend(1u32.to_be_bytes());
        message.push(b'x');
        self.put(&message);
        self.size = self.u64().expect("the size");
        self.flags = self.u16().expect("transmission flags");
    }

    fn learn(&mut self, what: u16, info: &[u8]) {
        let word = |at: usize| u32::from_be_bytes(info[at..at + 4].try_into().expect("4 bytes"));
        match what {
            INFO_EXPORT => {
                self.size = u64::from_be_bytes(info[..8].try_into().expect("8 bytes"));
                self.flags = u16::from_be_bytes([info[8], info[9]]);
            }
            INFO_BLOCK_SIZE => self.block = [word(0), word(4), word(8)],
            _ => {}
        }
    }

    /// Sends an option; gives the replies before the ACK.
    fn option(&mut self, option: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let mut message = OPTION_MAGIC.to_vec();
        message.extend(option.to_be_bytes());
        message.extend((data.len() as u32).to_be_bytes());
        message.extend(data);
        self.put(&message);
        let mut replies = Vec::new();
        loop {
            assert_eq!(self.u64().expect("an option reply"), REPLY_MAGIC);
            assert_eq!(self.u32().expect("an option"), option);
            let kind = self.u32().expect("a reply type");
            let bytes = self.u32().expect("a length") as usize;
            let data = self.take(bytes);
            match kind {
                REP_ACK => return replies,
                _ if kind >> 31 != 0 => panic!("option {option} is refused: {kind:#x}"),
                _ => replies.push((kind, data)),
            }
        }
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        self.bytes(count).expect("the server goes on")
    }

    fn put(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the server listens");
    }
}
