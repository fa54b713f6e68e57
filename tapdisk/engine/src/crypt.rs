//! The stage of encryption: nothing else knows that data of an image may be encrypted.
//!
//! What is written is encrypted in the request's own buffer when it is issued, and made plain again
//! if the request starts anew elsewhere; what is read is made plain when it has landed.
use crate::Engine;
use crate::slot::sectors_mask;
use host::arena::Buf;
use image::Cipher;
use request::disk::{Disk, FileId, Op};
use request::{SlotId, Verb};

impl<D: Disk> Engine<D> {
    #[inline]
    fn cipher(&self, file: FileId) -> Option<&dyn Cipher> {
        self.map.chain.as_ref()?.layers[usize::from(file.0)].cipher.as_deref()
    }

    /// Whether data of an image are written as they are.
    #[inline]
    pub(super) fn is_plain(&self, file: FileId) -> bool {
        self.cipher(file).is_none()
    }

    /// The `count` sectors of the buffer from `skip` on, as they are written: encrypted in place
    /// where the image is.
    #[inline]
    pub(super) fn encoded(&mut self, id: SlotId, count: u32, skip: u32) -> Buf {
        let slot = &mut self.table[id];
        let chain = self.map.chain.as_ref().expect("a request runs on a chain");
        let whole = self.rules.limits.slot_buf(id.0);
        let sector = slot.request.span.start + u64::from(skip);
        let cipher = &chain.layers[usize::from(slot.target.0)].cipher;
        if matches!(slot.request.verb, Verb::Zero { .. }) {
            // Zeros come here only where they have to be encrypted, a buffer at a time.
            let buf = whole.part(0, count * 512);
            let bytes = self.io.disk.arena().slice_mut(buf);
            bytes.fill(0);
            cipher.as_ref().inspect(|cipher| cipher.encrypt(sector, bytes));
            return buf;
        }
        let buf = whole.part(skip * 512, count * 512);
        if let Some(cipher) = cipher {
            cipher.encrypt(sector, self.io.disk.arena().slice_mut(buf));
            slot.coded |= sectors_mask(skip, count);
        }
        buf
    }

    /// Sectors that lie in a buffer, as they are written to an image.
    pub(super) fn encode(&mut self, file: FileId, sector: u64, buf: Buf) {
        let chain = self.map.chain.as_ref().expect("a request runs on a chain");
        if let Some(cipher) = &chain.layers[usize::from(file.0)].cipher {
            cipher.encrypt(sector, self.io.disk.arena().slice_mut(buf));
        }
    }

    /// Sectors that were read from an image into a buffer, as the guest knows them.
    #[inline]
    pub(super) fn decode(&mut self, file: FileId, sector: u64, buf: Buf) {
        let Some(chain) = &self.map.chain else { return };
        if let Some(cipher) = &chain.layers[usize::from(file.0)].cipher {
            cipher.decrypt(sector, self.io.disk.arena().slice_mut(buf));
        }
    }

    /// A request's read has landed.
    #[inline]
    pub(super) fn decode_read(&mut self, id: SlotId, op: &Op) {
        if self.is_plain(op.file) {
            return;
        }
        let into = (op.buf.offset - self.rules.limits.slot_buf(id.0).offset) / 512;
        self.decode(op.file, self.slot(id).request.span.start + u64::from(into), op.buf);
    }

    /// Undoes the encryption for the present target.
    pub(super) fn make_plain(&mut self, id: SlotId) {
        let slot = &mut self.table[id];
        let chain = self.map.chain.as_ref().expect("a request runs on a chain");
        let Some(cipher) = &chain.layers[usize::from(slot.target.0)].cipher else { return };
        while slot.coded != 0 {
            let first = slot.coded.trailing_zeros();
            let count = (slot.coded >> first).trailing_ones();
            slot.coded &= !sectors_mask(first, count);
            let buf = self.rules.limits.slot_buf(id.0).part(first * 512, count * 512);
            let sector = slot.request.span.start + u64::from(first);
            cipher.decrypt(sector, self.io.disk.arena().slice_mut(buf));
        }
    }
}
