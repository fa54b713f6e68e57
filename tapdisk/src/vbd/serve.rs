//! Images that a worker has opened get engine and sockets: the first time, again after a pause, or
//! in the program that goes on with a disk.
use super::data_path::{DataPath, info};
use super::decide::{Answer, Then};
use super::device::{self, HostDevice};
use super::{Env, Opened, State, Vbd};
use crate::formats::{Images, OpenError};
use engine::stats::Carried;

/// What follows when images are served; those that cannot be, and why.
type Served = std::result::Result<Then, (OpenError, Images)>;

impl Vbd {
    /// The images are open: the first time, again after a pause, or in another program.
    pub(super) fn serve(&mut self, env: &Env) -> Answer {
        let mut images = self.work.images.take().expect("they were opened");
        self.commit_meets(&mut images);
        self.work.held_by = images.held.as_deref().cloned();
        let served = match self.state {
            State::Opening { .. } => self.serve_first(env, images),
            _ => self.serve_again(env, images),
        };
        match served {
            Ok(_) if self.work.held_by.is_some() => Answer::Served(Then::Held),
            Ok(then) => Answer::Served(then),
            Err((error, images)) => {
                self.work.images = Some(images);
                Answer::NotServed(self.unsaid(error))
            }
        }
    }

    fn serve_first(&mut self, env: &Env, images: Images) -> Served {
        let opened = self.opened.clone().expect("what is being opened was asked for");
        let found = info(&images);
        self.start_data_path(env, &opened, images)?;
        self.info = found;
        self.show_files(env);
        self.poll_rings(env);
        Ok(if self.wanted_device().is_some() { Then::Device } else { Then::Open })
    }

    /// Engine and sockets.
    fn start_data_path(
        &mut self,
        env: &Env,
        opened: &Opened,
        images: Images,
    ) -> std::result::Result<&mut DataPath, (OpenError, Images)> {
        let own_slots = self.wanted_device().map_or(0, |kind| kind.own_slots());
        let place = (self.minor, self.token);
        let frontends = &mut self.frontends;
        let mut data = DataPath::start(env, place, (opened, own_slots), images, frontends)?;
        data.engine.set_rates(self.rates);
        Ok(self.data.insert(data))
    }

    /// The kind of the block device that was asked for.
    pub(super) fn wanted_device(&self) -> Option<&'static dyn HostDevice> {
        let opened = self.opened.as_ref()?;
        device::wanted(opened.device.as_ref(), self.module.has_minor.then_some(self.minor))
    }

    /// The images are open again: they must be the same disk.
    fn serve_again(&mut self, env: &Env, images: Images) -> Served {
        let options = self.again.take().expect("it was asked for");
        let opened = Opened { options, ..self.opened.clone().expect("it was open") };
        let (had, has) = (self.info, info(&images));
        if had != has {
            let text = format!(
                "{} has {} sectors of {} bytes, and the disk had {} of {} when it was opened: \
                 close and open it to use another size",
                opened.options.name, has.sectors, has.sector_size, had.sectors, had.sector_size
            );
            return Err((OpenError::new(libc::EMEDIUMTYPE, text), images));
        }
        if let Some(left) = self.left.take() {
            self.opened = Some(opened);
            return self.start_again(env, images, left);
        }
        let Some(data) = &mut self.data else {
            return Err((OpenError::new(libc::EINVAL, "nothing is paused"), images));
        };
        if images.held.is_some() {
            self.opened = Some(opened);
            return Ok(Then::Held);
        }
        data.put_in(images, &opened, &mut self.frontends)?;
        self.opened = Some(opened);
        self.show_files(env);
        self.write_record(env);
        if !std::mem::take(&mut self.module.lends) {
            return Ok(Then::Open);
        }
        // The block device that was taken away for another program comes back.
        self.keep_ring();
        self.goes_without = true;
        Ok(Then::Device)
    }

    /// The images are open: who has waited is served.
    fn start_again(&mut self, env: &Env, images: Images, left: Carried) -> Served {
        let opened = self.opened.clone().expect("it was open");
        let device = self.device.take();
        self.info = info(&images);
        let data = self.start_data_path(env, &opened, images)?;
        data.engine.count_on(left.into());
        self.show_files(env);
        self.poll_rings(env);
        let kept = self.serve_kept_tap(env);
        self.device = device.filter(|_| kept);
        if self.work.held_by.is_some() {
            return Ok(Then::Held);
        }
        let wanted = self.wanted_device();
        let module = !kept && wanted.is_some_and(|kind| !kind.outlives());
        if wanted.is_some() && (opened.take_over || module) {
            self.goes_without = module;
            return Ok(Then::Device);
        }
        self.device = device;
        Ok(Then::Open)
    }

    fn write_record(&mut self, env: &Env) {
        device::write_record(&self.site(env, 0));
    }
}
