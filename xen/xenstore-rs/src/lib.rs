//! A client for xenstore, over xenstored's socket or the device /dev/xen/xenbus. It never blocks.
//!
//! ```text
//!   Store, Transaction      one future a request; watches by number
//!        │
//!   Client                  one request at a time on its way, replies matched to it
//!        │ wire: packets of at most 4 KiB, checked both ways
//!   Link                    /run/xenstored/socket · /dev/xen/xenbus
//! ```
//!
//! Whoever owns the event loop registers the [`Store`] with mio, calls [`Store::turn`] when it is
//! ready, and polls the futures that were woken. The crate needs no runtime and starts no thread.
//!
//! What xenstored or a guest sent is data of a stranger: lengths are checked before they are used,
//! and a packet that makes no sense ends the connection with an error and nothing else.
//!
//! Source of the protocol's numbers: `docs/misc/xenstore.txt` and `xen/include/public/io/xs_wire.h`
//! of Xen.
#![forbid(unsafe_code)]

mod client;
mod error;
mod link;
mod perms;
mod reply;
mod request;
mod shared;
mod store;
mod transaction;
pub mod wire;

pub use client::{Client, Event, Tag};
pub use error::{Errno, Error};
pub use link::{Endpoint, Link};
pub use perms::{Access, Permission};
pub use reply::Children;
pub use request::Request;
pub use store::{Fired, Store, Watch};
pub use transaction::Transaction;
