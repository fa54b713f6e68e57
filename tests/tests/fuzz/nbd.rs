//! The NBD server: a client that sends anything, in pieces of any size, and then goes away.
use crate::nbd_support::{Bench, export};
use frontend::nbd::{Export, Notice};
use std::cell::RefCell;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use tests::fuzz::{Target, as_it_is, outcome};

/// Bytes that say how the client is, before what it sends.
const ORDER: usize = 2;
const OPTION: &[u8] = b"IHAVEOPT";
/// A disk of 1 MiB.
const SECTORS: u64 = 2048;
const REQUEST: &[u8] = &[0x25, 0x60, 0x95, 0x13];

const NBD: Target = Target {
    name: "nbd-server",
    bytes_max: 4 << 10,
    memory_max: 8 << 20,
    seeds,
    words: &[OPTION, REQUEST, b"base:allocation", &[0, 0, 0, 7], &[0, 0, 0, 10]],
    seal: as_it_is,
    run,
};

#[test]
fn nbd_server() {
    NBD.check(15_000);
}

fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u32).to_be_bytes();
    [OPTION, &number.to_be_bytes(), &length, data].concat()
}

fn request(flags: u16, command: u16, offset: u64, bytes: u32) -> Vec<u8> {
    let (flags, command) = (flags.to_be_bytes(), command.to_be_bytes());
    [REQUEST, &flags, &command, &[9; 8], &offset.to_be_bytes(), &bytes.to_be_bytes()].concat()
}

/// Sessions that use everything: options, contexts, each command, oldstyle.
fn seeds() -> Vec<Vec<u8>> {
    let go = [&[0, 0, 0, 1, b'x', 0, 1][..], &[0, 3]].concat();
    let context = [&[0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 15][..], b"base:allocation"].concat();
    let commands = || {
        let mut all = request(1, 1, 4096, 512);
        all.extend([7; 512]);
        for (command, bytes) in [(0, 8192), (3, 0), (4, 4096), (5, 512), (6, 65536), (7, 1 << 20)] {
            all.extend(request(0, command, 4096, bytes));
        }
        all.extend(request(0, 2, 0, 0));
        all
    };
    let flags = [0, 0, 0, 3];
    let full = [
        &[0, 0][..],
        &flags,
        &option(8, &[]),
        &option(3, &[]),
        &option(9, &context),
        &option(10, &context),
        &option(6, &go),
        &option(7, &go),
        &commands(),
    ];
    let name = [&[0, 3][..], &flags, &option(1, b"x"), &commands()];
    let old = [&[1, 0][..], &commands()];
    let abort = [&[0, 1][..], &flags, &option(77, b"?"), &option(2, &[])];
    // What it takes once is not an input's doing.
    BENCH.set(Some(bench()));
    vec![full.concat(), name.concat(), old.concat(), abort.concat()]
}

thread_local! {
    /// One server for all inputs; each client must leave it as it was. After a finding, a new one.
    static BENCH: RefCell<Option<Bench>> = const { RefCell::new(None) };
}

fn bench() -> Bench {
    BENCH.take().unwrap_or_else(|| Bench::with(Export { sectors: SECTORS, ..export() }))
}

fn run(input: &[u8]) -> u64 {
    let Some((&[how, pieces], bytes)) = input.split_first_chunk::<ORDER>() else { return 0 };
    let mut bench = bench();
    let (mut ours, theirs) = UnixStream::pair().expect("a socketpair");
    ours.set_nonblocking(true).expect("a socket");
    bench.server.serve(OwnedFd::from(theirs), how & 1 == 1).expect("served");
    let mut answers = Answers::default();
    let size = if pieces == 0 { bytes.len().max(1) } else { usize::from(pieces) };
    for piece in bytes.chunks(size) {
        if ours.write_all(piece).is_err() {
            break;
        }
        bench.turn();
        if how & 2 == 0 {
            answers.take(&mut ours);
        }
    }
    bench.turn();
    answers.take(&mut ours);
    drop(ours);
    bench.assert_clean();
    bench.memory.seen = Vec::new();
    assert_eq!(bench.server.clients(), 0, "a client that is gone stays");
    let notices: Vec<String> = bench.notices().iter().map(why).collect();
    BENCH.set(Some(bench));
    outcome(&format!("{:?}{notices:?}", answers.kinds()))
}

/// A notice without the number of the connection.
fn why(notice: &Notice) -> String {
    match notice {
        Notice::Ended { why, .. } => format!("{why:?}"),
        _ => String::new(),
    }
}

/// What the server said.
#[derive(Default)]
struct Answers {
    bytes: Vec<u8>,
}

impl Answers {
    /// Reads what there is, as long as it is not too much to keep.
    fn take(&mut self, from: &mut UnixStream) {
        let mut piece = [0; 4096];
        loop {
            match from.read(&mut piece) {
                Ok(0) => return,
                Ok(n) if self.bytes.len() < 64 << 10 => self.bytes.extend_from_slice(&piece[..n]),
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    }

    /// The words of replies to options that occur, each once: what was understood.
    fn kinds(&self) -> Vec<&[u8]> {
        const REPLY: [u8; 8] = [0x00, 0x03, 0xe8, 0x89, 0x04, 0x55, 0x65, 0xa9];
        let at = self.bytes.windows(8).enumerate().filter(|(_, w)| *w == REPLY).map(|(at, _)| at);
        let mut kinds: Vec<&[u8]> = at.filter_map(|at| self.bytes.get(at + 8..at + 16)).collect();
        kinds.sort_unstable();
        kinds.dedup();
        kinds
    }
}
