//! `convert`: a disk with all its parents into a new image, raw or qcow2.
use std::ffi::OsString;
use std::path::Path;

use image::blocking::{Layer as Reading, Writer, read};
use image::unfinished::Unfinished;
use image::{Image, Span, Storage};
use qcow2::{Qcow2, ready};
use vhd_rs::lock::{self, Others};

use crate::open::{self, Format, Layer};
use crate::parameters::Parameters;
use crate::tool::{FORMAT, Fail, Outcome, PROGRESS, QUIET, SHARE, Tool, plain};
use crate::walk::{Walk, is_data};

const CHUNK: u64 = 2 << 20;

pub(crate) fn run(words: &[OsString], tool: &mut Tool) -> Outcome {
    let letters = "f:O:o:t:T:m:WpqU";
    let o = tool.options("convert", letters, &[FORMAT, QUIET, PROGRESS, SHARE], words)?;
    let [from, to] = o.operands() else {
        let what = "Expecting one source and one target file name (for more use QEMU's qemu-img)";
        return tool.usage("convert", what);
    };
    let target = o.value('O').map_or(Some(Format::Raw), Format::named).ok_or_else(|| {
        let name = show::path(o.value('O').unwrap_or_default()).to_string();
        Fail::from(format!("Unknown file format '{name}': use QEMU's qemu-img"))
    })?;
    let mut given = Parameters::default();
    o.values('o').try_for_each(|text| given.take(text))?;
    if given.backing_file.is_some() {
        return Err("backing_file is not supported with convert here: use QEMU's qemu-img".into());
    }
    let layers = open::chain(Path::new(from), open::format_of(o.value('f'))?)?;
    if !o.has('U') {
        // A copy of what moves is the disk of no moment.
        let (top, name) = (&layers[0], show::path(from));
        if let Some(pid) = lock::settled(&top.file.0, &top.path, Others::Refuse)
            .map_err(|error| open::in_use(&error))?
        {
            let who = lock::named(pid);
            return Err(format!(
                "{name}: {who} is writing it; close the disk there first (-U: copy it \
                                all the same)"
            )
            .into());
        }
    }
    let told = o.has('p') && !o.has('q');
    let done = convert(&layers, Path::new(to), target, &given, told, tool);
    if told {
        tool.say("\n");
    }
    done.map(|()| 0)
}

fn convert(
    layers: &[Layer],
    to: &Path,
    target: Format,
    given: &Parameters,
    told: bool,
    tool: &mut Tool,
) -> Outcome<()> {
    let size = layers[0].size.next_multiple_of(512);
    let shown = show::path(to).to_string();
    let failed = |error: std::io::Error| Fail::from(format!("{shown}: {}", plain(&error)));
    let new = !to.exists();
    let file = image::open_or_make(to, 0o644)
        .map_err(|error| format!("Could not create '{shown}': errno {}", error.errno()))?;
    if layers.iter().any(|layer| open::same(&layer.file.0, &file)) {
        return Err(format!("{shown} is the image that is to be copied, or one below it").into());
    }
    let unfinished = new.then(|| Unfinished::begin(to));
    open::alone(&file, to)?;
    let mut driver: Box<dyn Image> = match target {
        Format::Qcow2 => {
            qcow2::create(&file, to, &given.options(size)?)?;
            if size == 0 {
                unfinished.into_iter().for_each(Unfinished::whole);
                return Ok(());
            }
            Box::new(Qcow2::to_write(ready(&file, to, qcow2::open(&file, to)?)?))
        }
        Format::Raw => {
            if file.is_device() && Storage::len(&file).map_err(failed)? < size {
                return Err(format!("{shown}: the device is smaller than the disk").into());
            }
            Storage::set_len(&file, 0)
                .and_then(|()| Storage::set_len(&file, size))
                .map_err(failed)?;
            Box::new(raw::Raw::new(size / 512, file.is_device()))
        }
    };
    let fresh = target == Format::Qcow2 || !file.is_device();
    let mut writer = Writer::new(&mut *driver, &file).map_err(failed)?;
    copy(layers, &mut writer, fresh, told, tool)?;
    writer.close().map_err(failed)?;
    unfinished.into_iter().for_each(Unfinished::whole);
    Ok(())
}

/// Copies what is not zeros; zeros only where old bytes lie.
fn copy(
    layers: &[Layer],
    writer: &mut Writer<'_>,
    fresh: bool,
    told: bool,
    tool: &mut Tool,
) -> Outcome<()> {
    let failed =
        |error: std::io::Error| Fail::from(format!("error while copying: {}", plain(&error)));
    let drivers: Vec<Box<dyn Image>> = layers.iter().map(Layer::driver).collect();
    let chain = drivers.iter().zip(layers);
    let chain = chain.map(|(image, layer)| Reading { image: &**image, storage: &layer.file });
    let chain: Vec<Reading<'_>> = chain.collect();
    let mut walk = Walk::new(layers);
    let total = walk.size();
    let mut buf = vec![0; usize::try_from(CHUNK).unwrap_or(0)];
    let (mut at, mut last) = (0, u64::MAX);
    while at < total {
        let found = walk.step(at, CHUNK)?;
        let span = Span::between(at / 512, (at + found.bytes) / 512);
        if is_data(found.kind) {
            let bytes = buf.get_mut(..span.bytes()).ok_or("a run is longer than its buffer")?;
            read(&chain, span, bytes).map_err(failed)?;
            pieces(writer, span, bytes, fresh)?;
        } else if !fresh {
            writer.zero(span, true, false).map_err(failed)?;
        }
        at += found.bytes;
        let share = at * 100 / total.max(1);
        if told && share != last {
            last = share;
            tool.tick(&format!("    ({share}.00/100%)\r"));
        }
    }
    Ok(())
}

/// Writes what is not zeros, by pieces of 64 KiB.
fn pieces(writer: &mut Writer<'_>, span: Span, bytes: &[u8], fresh: bool) -> Outcome<()> {
    const PIECE: usize = 64 << 10;
    let failed =
        |error: std::io::Error| Fail::from(format!("error while copying: {}", plain(&error)));
    let mut sector = span.start;
    for piece in bytes.chunks(PIECE) {
        let zero = fresh && piece.iter().all(|byte| *byte == 0);
        if !zero {
            writer.write(sector, piece).map_err(failed)?;
        }
        sector += u64::try_from(piece.len() / 512).unwrap_or(0);
    }
    Ok(())
}
