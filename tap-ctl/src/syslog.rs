//! One line to the system's log, if there is one. Never fails and never waits.

use std::os::unix::net::UnixDatagram;

/// Facility USER (1), severity error (3): 1 × 8 + 3 (RFC 3164 §4.1.1).
const USER_ERROR: u8 = 11;

/// Log an error with the ident of the program and its pid.
pub fn error(text: &str) {
    let Ok(socket) = UnixDatagram::unbound() else { return };
    let _ = socket.set_nonblocking(true);
    let line = format!("<{USER_ERROR}>{}[{}]: {text}", ident(), std::process::id());
    let _ = socket.connect("/dev/log").and_then(|()| socket.send(line.as_bytes()));
}

/// Base name of argv[0].
fn ident() -> String {
    let name = std::env::args_os().next().unwrap_or_default();
    let base =
        std::path::Path::new(&name).file_name().map(|base| base.to_string_lossy().into_owned());
    base.unwrap_or_else(|| "tap-ctl".to_owned())
}
