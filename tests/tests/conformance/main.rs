//! What a replacement of the original daemon has to do with raw and VHD images, through the real programs:
//! groups D, E, F and I of the specification's corpus, in our own form. Numbers like I04 are the corpus's.
//!
//! Everything runs on both disk engines. Cases that belong to features that are not here yet: I13 (coalesce
//! and modify; here in `chains` by reparenting with the generator instead), I29 (changed-block log), I31
//! (local cache: `-r` reads the same bytes and stores nothing), and all of encryption but its refusal.
mod chains;
mod crash;
mod damage;
mod devices;
mod footers;
mod images;
mod io;
mod locators;
mod misuse;
mod originals;
mod refused;
