//! Operations on NBD servers, byte by byte: the server's end of the connection is the test's. Each
//! test runs on both disk engines.
mod hostile;
mod ops;
mod random;
mod sealed;
mod support;
mod wake;
