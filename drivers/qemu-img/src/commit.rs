//! `commit -d`: what an image has goes into its parent.
//!
//! The image stays as it is and hides its parent until somebody takes it away, so a commit that was
//! cut off is done again. Progress on standard output is what the storage manager reads.
use std::ffi::OsString;
use std::path::Path;

use image::blocking::{Layer as Reading, Writer, read};
use image::{Image, Span, Storage};
use qcow2::map::Kind;
use qcow2::resize::grow;
use qcow2::{Qcow2, What, ready, repair};

use crate::open::{self, For, Format, Layer};
use crate::tool::{FORMAT, Fail, Outcome, PROGRESS, QUIET, Tool, plain};
use crate::walk::Walk;

/// Bytes that are copied at once.
const CHUNK: u64 = 2 << 20;

pub(crate) fn run(words: &[OsString], tool: &mut Tool) -> Outcome {
    let o = tool.options("commit", "f:t:b:r:dpq", &[FORMAT, QUIET, PROGRESS], words)?;
    let [name] = o.operands() else {
        return tool.usage("commit", "Expecting one image file name");
    };
    if !o.has('d') || o.has('b') || o.has('r') {
        let why = "commit is done with -d only here (into the direct parent; the image is kept as \
                   it is), without -b and -r";
        return Err(format!("{why}: use QEMU's qemu-img").into());
    }
    let path = Path::new(name);
    let top = open::layer(path, open::format_of(o.value('f'))?, For::Changing)?;
    let Some(base) = top.parent(For::Changing)? else {
        return Err("Image does not have a backing file".into());
    };
    let told = (tool.qemu || o.has('p')) && !o.has('q');
    let done = commit(top, base, told, tool);
    if told {
        tool.say("\n");
    }
    done?;
    if !o.has('q') {
        tool.say("Image committed.\n");
    }
    Ok(0)
}

/// The images below a base, and the base made ready: repaired, and as large as the top.
fn prepared(base: Layer, size: u64) -> Outcome<(Layer, Vec<Layer>)> {
    let mut below = Vec::new();
    let mut next = base.parent(For::Reading)?;
    while let Some(layer) = next {
        next = layer.parent(For::Reading)?;
        below.push(layer);
        if below.len() > 128 {
            return Err("the chain of parents does not end".into());
        }
    }
    let shorter = base.size < size;
    let (format, path) = (base.format, base.path.clone());
    match &base.opened {
        None if shorter && base.file.is_device() => {
            let why = "is a device that is smaller than the image";
            return Err(format!("{} {why}", show::path(&path)).into());
        }
        None if shorter => base.file.set_len(size).map_err(|error| plain(&error))?,
        None => {}
        Some(opened) => {
            opened.may_be_written(&path)?;
            let clean = !opened.needs_repair()
                || repair(&base.file.0, &path, What::All, &mut |_| ())?.is_clean();
            if !clean {
                return Err(format!("{}: repair it first: check -r all", show::path(&path)).into());
            }
            if shorter {
                let longest = below.first().map_or(0, |layer| layer.size);
                grow(&base.file.0, &path, size, longest)?;
            }
        }
    }
    // The lock goes with the file, which stays open.
    let size = base.file.len().map_err(|error| plain(&error))?;
    let opened = match format {
        Format::Raw => None,
        Format::Qcow2 => Some(qcow2::open(&base.file.0, &path)?),
    };
    let size = opened.as_ref().map_or(size, |opened| opened.header.size);
    Ok((Layer { opened, size, ..base }, below))
}

fn commit(top: Layer, base: Layer, told: bool, tool: &mut Tool) -> Outcome<()> {
    let (base, below) = prepared(base, top.size)?;
    let mut driver: Box<dyn Image> = match &base.opened {
        None => base.driver(),
        Some(opened) => Box::new(Qcow2::to_write(ready(&base.file.0, &base.path, opened.clone())?)),
    };
    let drivers: Vec<Box<dyn Image>> = below.iter().map(Layer::driver).collect();
    let chain = drivers.iter().zip(&below);
    let chain = chain.map(|(image, layer)| Reading { image: &**image, storage: &layer.file });
    let failed = |error: std::io::Error| {
        Fail::from(format!(
            "Error while committing into {}: {}",
            show::path(&base.path),
            plain(&error)
        ))
    };
    let lonely = below.is_empty();
    let mut writer = Writer::new(&mut *driver, &base.file).map_err(failed)?.over(chain.collect());
    let done = copy(&top, &mut writer, lonely, told, tool);
    // Also after an error, so that the base is closed in order.
    let closed = writer.close().map_err(failed);
    done.and(closed)
}

fn copy(
    top: &Layer,
    writer: &mut Writer<'_>,
    lonely: bool,
    told: bool,
    tool: &mut Tool,
) -> Outcome<()> {
    let failed =
        |error: std::io::Error| Fail::from(format!("Error while committing: {}", plain(&error)));
    let image = top.driver();
    let chain = [Reading { image: &*image, storage: &top.file }];
    let layers = std::slice::from_ref(top);
    let mut walk = Walk::new(layers);
    let total = walk.size();
    let mut buf = vec![0; usize::try_from(CHUNK).unwrap_or(0)];
    let (mut at, mut last) = (0, u64::MAX);
    while at < total {
        let found = walk.run(at, total.min(at.next_multiple_of(CHUNK).max(at + CHUNK)))?;
        let span = Span::between(at / 512, (at + found.bytes) / 512);
        match found.kind {
            Kind::Below => {}
            Kind::Zero { .. } => writer.zero(span, lonely, false).map_err(failed)?,
            Kind::Data { .. } | Kind::Packed => {
                let bytes = buf.get_mut(..span.bytes()).ok_or("a run is longer than its buffer")?;
                read(&chain, span, bytes).map_err(failed)?;
                writer.write(span.start, bytes).map_err(failed)?;
            }
        }
        at += found.bytes;
        let share = at * 200 / total.max(1);
        if told && share != last {
            last = share;
            tool.tick(&format!("({at}/{total})\r"));
        }
    }
    if told {
        tool.tick(&format!("({total}/{total})\r"));
    }
    Ok(())
}
