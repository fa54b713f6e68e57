//! What stands beside the chain of a simulated disk: a secondary, a commit of the leaf.
use image::Purpose;
use request::{Outcome, Request, Verb};

use super::super::disk::SimFile;
use super::super::model::parse;
use super::World;
use engine::commit::Stage;

impl World {
    /// What happened to the secondary since the last look.
    pub(super) fn note_events(&mut self) {
        self.ran.kept += self.engine.kept_sectors();
        let events = self.engine.events();
        self.mirror_lost = events.mirror_lost.is_some();
        self.note_commit();
        let Some(second) = &mut self.stack.second else { return };
        if events.taken_over && !second.taken_over {
            second.taken_over = true;
            self.ran.taken_over += 1;
        }
    }

    /// A remote mirror that failed is not opened again.
    pub(super) fn drop_lost(&mut self, files: &mut Vec<SimFile>) {
        if std::mem::take(&mut self.mirror_lost) {
            files.pop();
            self.formats.pop();
            self.stack.second = None;
            self.ran.mirrors[0] += 1;
        }
    }

    /// A change is answered: it was marked before, and if it went well it is in the mirror.
    pub(super) fn note_change(
        &mut self,
        request: &Request,
        outcome: Outcome,
    ) -> Result<(), String> {
        let (Verb::Write { .. } | Verb::Zero { .. } | Verb::Discard { .. }) = request.verb else {
            return Ok(());
        };
        if !self.stack.marked.all(request.span) {
            return Err(format!("{request:?} was not marked in the log of changes"));
        }
        if outcome.is_ok() && !matches!(request.verb, Verb::Discard { .. }) {
            let range = request.span.start as usize..request.span.end() as usize;
            self.stack.mirrored[range].fill(true);
        }
        Ok(())
    }

    /// A remote mirror that never failed holds everything that was answered since it was opened.
    pub(super) fn verify_mirror(&mut self) -> Result<(), String> {
        let mirror = self.stack.second.filter(|s| s.remote && s.purpose == Purpose::Mirror);
        if mirror.is_none() || self.engine.events().mirror_lost.is_some() {
            return Ok(());
        }
        self.ran.mirrors[1] += 1;
        let files = &self.engine.disk_ref().inner_ref().files;
        let bytes = &files[files.len() - 1].bytes;
        for s in (0..self.sectors).filter(|s| self.stack.mirrored[*s as usize]) {
            let value = parse(&bytes[s as usize * 512..][..512], s);
            if !self.model.may_survive(s, value, false) {
                let why = self.model.explain(s);
                return Err(format!("the mirror's sector {s} holds {value:#x}, allowed {why}"));
            }
        }
        Ok(())
    }

    // ---- a commit of the leaf ------------------------------------------------------------------

    /// How far it has come.
    fn note_commit(&mut self) {
        if !self.stack.base {
            return;
        }
        match self.engine.commit().0 {
            Stage::Concluded => self.ran.commits[0] += 1,
            Stage::Failed(_) => self.ran.commits[1] += 1,
            Stage::Off | Stage::Copying | Stage::Flushing => self.ran.commits[2] += 1,
        }
    }

    /// Whether base may be the disk.
    pub(super) fn is_concluded(&self) -> bool {
        self.engine.commit().0 == Stage::Concluded
    }

    /// Base is the disk from now on, or not, as the owner has it.
    pub(super) fn pivot(&mut self, files: &mut Vec<SimFile>, concluded: bool) {
        if concluded && self.stack.wants_base() {
            files.remove(0);
            self.formats.remove(0);
            self.ran.commits[3] += 1;
        }
    }

    /// A commit that is over has left the whole disk in base.
    pub(super) fn verify_base(&mut self) -> Result<(), String> {
        if !self.is_concluded() {
            return Ok(());
        }
        let values = self.values("base", 1)?;
        for (s, value) in (0..).zip(values) {
            if !self.model.may_survive(s, value, false) {
                let why = self.model.explain(s);
                return Err(format!("base's sector {s} holds {value:#x}, allowed {why}"));
            }
        }
        Ok(())
    }
}
