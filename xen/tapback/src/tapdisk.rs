//! One question to a tapdisk, without blocking: connect, 544 bytes out, 544 bytes in, hang up.
//!
//! A connection that is given up half-way undoes nothing at the other end (`control-socket.md` §2):
//! the tapdisk does what it was asked when its turn comes. As it does one after the other, a later
//! question finds the earlier one done.

use crate::reactor::{Either, Reactor, Registered, either};
use mio::net::UnixStream;
use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;
use std::pin::pin;
use std::time::{Duration, Instant};
use tap_ctl::error::{Error, io_errno};
use tap_ctl::messages::{ImageInfo, MESSAGE_BYTES, Message, Request, Response, kind};
use tap_ctl::paths::RunDir;

/// How long to wait before knocking again at a socket with a full backlog.
const BACKLOG_PAUSE: Duration = Duration::from_millis(50);

/// Size and sector size of a disk.
pub(crate) async fn disk_info(
    reactor: &Reactor,
    run: &RunDir,
    pid: i32,
    minor: u16,
    limit: Duration,
) -> Result<ImageInfo, Error> {
    let request = Request::DiskInfo { minor };
    let reply = ask(reactor, run, pid, &request, limit).await?;
    reply.body().map_err(|_| Error::BadReply { pid, reason: "disk info without sense".into() })
}

/// A question whose answer is yes or an errno.
pub(crate) async fn order(
    reactor: &Reactor,
    run: &RunDir,
    pid: i32,
    request: &Request,
    limit: Duration,
) -> Result<(), Error> {
    let reply = ask(reactor, run, pid, request, limit).await?;
    match reply.body::<Response>() {
        Ok(Response { error: 0 }) => Ok(()),
        Ok(Response { error }) => Err(refused(pid, request, error, None)),
        Err(_) => Err(Error::BadReply { pid, reason: "no errno in it".into() }),
    }
}

async fn ask(
    reactor: &Reactor,
    run: &RunDir,
    pid: i32,
    request: &Request,
    limit: Duration,
) -> Result<Message, Error> {
    let mut exchange = pin!(exchange(reactor, run, pid, request));
    let mut late = pin!(reactor.until(Instant::now() + limit));
    let message = match either(&mut exchange, &mut late).await {
        Either::First(result) => result?,
        Either::Second(()) => return Err(Error::TimedOut { kind: request.kind(), pid }),
    };
    match message.kind() {
        kind if kind == request.reply_kind() => Ok(message),
        kind::ERROR => {
            let error = message.body::<Response>().map_or(0, |response| response.error);
            Err(refused(pid, request, error, message.reason()))
        }
        reply => Err(Error::Unexpected { kind: request.kind(), pid, reply }),
    }
}

/// An errno of 0 in an error message is none; taken as EINVAL it stays a failure.
fn refused(pid: i32, request: &Request, errno: i32, reason: Option<String>) -> Error {
    let errno = if errno == 0 { libc::EINVAL } else { errno.saturating_abs() };
    Error::Refused { kind: request.kind(), pid, minor: request.cookie(), errno, reason }
}

async fn exchange(
    reactor: &Reactor,
    run: &RunDir,
    pid: i32,
    request: &Request,
) -> Result<Message, Error> {
    let path = run.ctl(pid);
    let failed = |error: &io::Error| Error::Connect { path: path.clone(), errno: io_errno(error) };
    let stream = connect(reactor, &path).await.map_err(|error| failed(&error))?;
    let mut socket = reactor.register(stream).map_err(|error| failed(&error))?;
    let sent = send(&mut socket, request.to_message().as_bytes()).await;
    sent.map_err(|_| Error::Send { kind: request.kind(), pid })?;
    let mut frame = [0; MESSAGE_BYTES];
    let got = receive(&mut socket, &mut frame).await;
    got.map_err(|_| Error::NoReply { kind: request.kind(), pid })?;
    Ok(Message::decode(&frame))
}

async fn connect(reactor: &Reactor, path: &Path) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(path) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                reactor.until(Instant::now() + BACKLOG_PAUSE).await;
            }
            result => return result,
        }
    }
}

/// A fresh socket takes the message in one write, which the original's tapdisk depends on.
async fn send(socket: &mut Registered<UnixStream>, bytes: &[u8]) -> io::Result<()> {
    let mut sent = 0;
    while let Some(rest) = bytes.get(sent..).filter(|rest| !rest.is_empty()) {
        match socket.source.write(rest) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => sent += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => socket.changed().await,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn receive(socket: &mut Registered<UnixStream>, buffer: &mut [u8]) -> io::Result<()> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match socket.source.read(rest) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(count) => filled += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => socket.changed().await,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
