//! What a replacement of the original daemon has to do with raw and VHD images, through the real
//! programs: groups D, E, F and I of docs/spec/corpus.md, in our own form. Numbers like I04 are the
//! corpus's.
//!
//! Everything runs on both disk engines. I13 (coalesce and modify) is here
//! in `chains` by reparenting with the generator instead.
mod catches;
mod chains;
mod commit;
mod crash;
mod damage;
mod devices;
mod footers;
mod images;
mod io;
mod kills;
mod layers;
mod limits;
mod locators;
mod metrics;
mod misuse;
mod originals;
mod parents;
mod qcow2;
mod refused;
mod secrets;
