//! The frontends over an engine in memory, and over the real devices where there are any. One
//! program: linking is most of a small change's loop.
#[path = "../../../tests/counting/mod.rs"]
mod counting;

mod blkif_barriers;
mod blkif_hostile;
mod blkif_rings;
mod blkif_support;
mod blktap_ring;
mod blktap_support;
mod nbd_clients;
mod nbd_negotiation;
mod nbd_no_alloc;
mod nbd_real_clients;
mod nbd_sockets;
mod nbd_support;
mod nbd_transmission;
mod ublk_device;

#[global_allocator]
static ALLOCATOR: crate::counting::Counting = crate::counting::Counting;
