//! `resize`: a larger disk.
use std::ffi::OsString;
use std::path::Path;

use cli::{Long, Takes};
use image::Storage;
use qcow2::resize::{grow, grows_in_place};

use crate::open::{self, For, Format};
use crate::size;
use crate::tool::{FORMAT, Fail, Outcome, QUIET, Tool, plain};

const SHRINK: Long = Long { name: "shrink", key: '-', takes: Takes::Nothing };
const PREALLOCATION: Long = Long { name: "preallocation", key: 'P', takes: Takes::Value };

pub(crate) fn run(words: &[OsString], tool: &mut Tool) -> Outcome {
    let o = tool.options("resize", "f:q", &[FORMAT, QUIET, SHRINK, PREALLOCATION], words)?;
    let [name, size] = o.operands() else {
        return tool.usage("resize", "Expecting image file name and size");
    };
    if o.value('P').is_some_and(|value| value != "off") {
        return Err("--preallocation is not supported here; use QEMU's qemu-img".into());
    }
    let path = Path::new(name);
    let format = open::format_of(o.value('f'))?;
    // SM makes a parent larger under a running disk, before the leaf is committed to it.
    let (layer, refusal) = match open::layer(path, format, For::Changing) {
        Ok(layer) => (layer, None),
        Err(refusal) => match open::beside_readers(path, format) {
            Some(layer) => (layer, Some(refusal)),
            None => return Err(refusal),
        },
    };
    let text = size.to_string_lossy().into_owned();
    let (relative, digits) = (text.strip_prefix('+'), text.trim_start_matches('+'));
    let bytes = size::parse(digits).ok_or_else(|| {
        let shown = show::bytes(digits.as_bytes());
        format!("Invalid image size specified: '{shown}'.")
    })?;
    let old = layer.size;
    let total = relative.map_or(Some(bytes), |_| old.checked_add(bytes));
    let total = total.and_then(|total| total.checked_next_multiple_of(512));
    let total = total.filter(|total| i64::try_from(*total).is_ok());
    let total = total.ok_or("New image size is too large")?;
    if total < old {
        return Err(shrinks(o.has(SHRINK.key), tool));
    }
    if let Some(refusal) = refusal {
        let below = layer.parent(For::Reading)?.map_or(0, |parent| parent.size);
        let opened = layer.opened.as_ref();
        if !opened.is_some_and(|opened| grows_in_place(opened, total, below)) {
            return Err(refusal);
        }
    }
    match layer.format {
        Format::Raw => {
            if format.is_none() && !o.has('q') {
                tool.note(&format!(
                    "WARNING: Image format was not specified for '{}' and probing guessed raw: say \
                     -f raw",
                    show::path(path)
                ));
            }
            if layer.file.is_device() {
                return Err("a device has its own size, which is not changed here".into());
            }
            layer.file.set_len(total).map_err(|error| plain(&error))?;
        }
        Format::Qcow2 => {
            // A parent that cannot be looked at might be of any length.
            let below = layer.parent(For::Reading)?.map_or(0, |parent| parent.size);
            grow(&layer.file.0, path, total, below)?;
        }
    }
    if !o.has('q') {
        tool.say("Image resized.\n");
    }
    Ok(0)
}

fn shrinks(wanted: bool, tool: &Tool) -> Fail {
    if wanted {
        return "disks are not made smaller here; use QEMU's qemu-img".into();
    }
    let warning = "warning: Shrinking an image will delete all data beyond the shrunken image's \
                   end. Before performing such an operation, make sure there is no important data \
                   there.";
    let first = "Use the --shrink option to perform a shrink operation.";
    format!("{first}\n{}: {warning}", tool.name).into()
}
