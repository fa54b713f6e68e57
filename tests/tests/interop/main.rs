//! Beside others: qemu and libnbd as second party, random work compared with a shadow, pauses and
//! crashes under a writer, space given back, other servers as images.
mod clients;
mod coalescing;
mod qemu;
mod random;
mod servers;
mod space;
mod under_load;
mod upgrade;
mod writer;
