//! A watch over runs that do not end.
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Longest run: far beyond any that ends, also on a busy machine.
const RUN_MAX: Duration = Duration::from_secs(60);

/// What is being run.
#[derive(Default)]
struct Run {
    number: AtomicU64,
    input: Mutex<Vec<u8>>,
}

/// Ends the process, with the input on standard error, when a run takes a minute.
pub(super) struct Watch {
    run: Arc<Run>,
    /// Gone, it ends the watching thread. (Nothing is sent: that thread must not work during a
    /// run, or its branches would be counted with those of the run.)
    _over: Sender<()>,
}

impl Watch {
    /// Begins to watch a target.
    pub(super) fn new(name: &'static str, seed: u64) -> Watch {
        let (over, is_over) = channel();
        let run = Arc::new(Run::default());
        let seen = Arc::clone(&run);
        std::thread::spawn(move || watch(name, seed, &is_over, &seen));
        Watch { run, _over: over }
    }

    /// A run with this input begins.
    pub(super) fn begin(&self, bytes: &[u8]) {
        let mut input = self.run.input.lock().unwrap_or_else(PoisonError::into_inner);
        input.clear();
        input.extend_from_slice(bytes);
        self.run.number.fetch_add(1, Relaxed);
    }
}

fn watch(name: &str, seed: u64, is_over: &Receiver<()>, run: &Run) {
    let mut last = 0;
    while is_over.recv_timeout(RUN_MAX) == Err(RecvTimeoutError::Timeout) {
        let now = run.number.load(Relaxed);
        if now == last {
            let input = run.input.lock().unwrap_or_else(PoisonError::into_inner);
            let input = hex(&input);
            eprintln!("fuzz {name}: no end after {RUN_MAX:?}, seed {seed}, input {input}");
            std::process::abort();
        }
        last = now;
    }
}

/// Bytes as hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, b| {
        let _ = write!(text, "{b:02x}");
        text
    })
}
