//! VHD images as XenServer reads and writes them: the bytes, opening, closing, making, checking,
//! changing.
//!
//! Section signs (§) refer to docs/spec/vhd.md. Nothing here panics on the
//! bytes of an image, and nothing allocates more than the image has bytes.
//!
//! ```text
//!   locate (footer, header) ─► open (bat, batmap, parent) ─► Opened ─► driver::Vhd ─► closing
//!   files: create, snapshot          chain: an image with its parents, read as one disk
//!   check ─► the strict list         scan ─► a few facts, fast
//!   edit, modify, fill, resize ─► revert (journal), coalesce, copy, convert, compact, key
//! ```
//! | what for | where |
//! |---|---|
//! | make, snapshot | [`files::create`], [`files::snapshot`] |
//! | open, query | [`open()`](open()), [`Opened`], [`locate::headers`], [`chain::depth`] |
//! | check, repair | [`check()`](check()), [`edit::repair`] |
//! | set | [`edit::set_hidden`], [`edit::set_marker`] |
//! | modify | [`modify::set_parent`], [`modify::set_physical_size`], [`modify::zero_data`] |
//! | resize, revert | [`resize::fast`], [`resize::Growth`], [`journal`], [`revert::revert`] |
//! | coalesce, convert, compact, map | [`coalesce::coalesce`], [`coalesce::convert`], [`coalesce::compact`], [`coalesce::map`] |
//! | read, write | [`chain::Chain`], [`driver::Vhd`] with [`image::blocking`] |
//! | parents | [`parents::find`], [`descent::Descent`], [`chain::walk`] |
//! | fill, copy | [`fill::fill`], [`fill::mark`], [`copy::copy`] |
//! | scan | [`scan::facts`] |
//! | parts of the format | [`footer`], [`header`], [`bat`], [`batmap`], [`locator`], [`geometry`] |
//! | encrypted images | [`key`], [`crypt`], [`chain::Chain::unlock`] |
//! | two writers | [`lock`] |
//!
//! Errors are [`VhdError`]: a sentence with file, field and remedy, and an errno.
//! `examples/layers.rs` is a program.
//!
//! An image is anything with bytes ([`image::Storage`]): a file, a block device, memory.
//! [`driver::Vhd`] is the driver that the daemon runs; [`image::blocking`] runs it with plain reads
//! and writes.
//!
//! ```
//! use image::blocking::Writer;
//! use vhd_rs::{OpenOptions, chain::Chain, driver::Vhd, files, lock, open};
//!
//! let dir = tempfile::tempdir()?;
//! let (base, leaf) = (dir.path().join("base.vhd"), dir.path().join("leaf.vhd"));
//! files::create(&base, 16 << 20, None, false)?;
//! files::snapshot(&leaf, &base, &files::SnapshotOptions::default())?;
//!
//! // Write into the leaf: locked against a running disk, in the daemon's crash order.
//! let file = lock::open_to_change(&leaf, lock::Others::Refuse)?;
//! let for_io = OpenOptions { for_io: true, ..OpenOptions::default() };
//! let mut image = Vhd::new(open(&file, &leaf, &for_io)?);
//! let mut writer = Writer::new(&mut image, &file)?;
//! writer.write(4096, &[0x5a; 1024])?; // sectors of 512 bytes
//! writer.close()?;
//!
//! // Read through the chain.
//! let mut sector = [0; 512];
//! Chain::open(&leaf)?.read(4097, &mut sector)?;
//! assert_eq!(sector, [0x5a; 512]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![deny(unsafe_code)]

mod bytes;

pub mod bat;
pub mod batmap;
mod batmap_read;
mod believe;
pub mod beside;
pub mod chain;
pub mod check;
mod check_bat;
mod check_parent;
pub mod closing;
pub mod coalesce;
pub mod copy;
pub mod create;
pub mod crypt;
pub mod descent;
pub mod driver;
pub mod edit;
pub mod error;
pub mod files;
pub mod fill;
pub mod footer;
mod foreign;
pub mod geometry;
pub mod header;
pub mod heal;
pub mod journal;
pub mod key;
pub mod locate;
pub mod locator;
pub mod lock;
pub mod modify;
pub mod open;
mod overwrite;
pub mod parents;
pub mod path;
mod present;
pub mod rebuild;
pub mod rescue;
pub mod resize;
pub mod revert;
pub mod scan;
pub mod secret;

pub use check::{CheckOptions, Parents, Report, check};
pub use closing::closing;
pub use error::VhdError;
pub use footer::{DiskType, Footer};
pub use header::Header;
pub use heal::heal;
pub use locate::FooterAt;
pub use open::{BatmapState, OpenOptions, Opened, Parent, open, resolve_parent};
pub use present::Present;
