//! `create`: a new image, raw or qcow2.
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use image::Storage;
use image::unfinished::Unfinished;
use vhd_rs::parents::Bond;

use crate::open::{self, For, Format};
use crate::parameters::Parameters;
use crate::size;
use crate::tool::{FORMAT, Fail, Outcome, QUIET, Tool, plain};

const MODE: u32 = 0o644;

pub(crate) fn run(words: &[OsString], tool: &mut Tool) -> Outcome {
    let o = tool.options("create", "f:o:b:F:uq", &[FORMAT, QUIET], words)?;
    let (name, size) = match o.operands() {
        [name] => (name, None),
        [name, size] => (name, Some(size)),
        [] => return tool.usage("create", "Expecting image file name"),
        [_, _, more, ..] => {
            return tool.usage("create", &format!("Unexpected argument: {}", show::path(more)));
        }
    };
    let format = o.value('f').map_or(Some(Format::Raw), Format::named).ok_or_else(|| {
        let format = show::path(o.value('f').unwrap_or_default()).to_string();
        let shown = show::path(name);
        Fail::from(format!("{shown}: Unknown file format '{format}': use QEMU's qemu-img"))
    })?;
    let size = match size {
        Some(text) => Some(asked(text)?),
        None => None,
    };
    let shown = show::path(name).to_string();
    let named = |fail: Fail| match fail.text.starts_with(&format!("{shown}: ")) {
        true => fail,
        false => Fail { text: format!("{shown}: {}", fail.text), ..fail },
    };
    let path = Path::new(name);
    match format {
        Format::Raw => raw(path, size, o.has('q'), tool).map_err(named),
        Format::Qcow2 => {
            let mut given = Parameters::default();
            o.values('o').try_for_each(|text| given.take(text)).map_err(named)?;
            given.backing_file = o.value('b').map(bytes).or(given.backing_file);
            given.backing_fmt = o.value('F').map(bytes).or(given.backing_fmt);
            given.size = size.or(given.size);
            qcow2(path, given, (o.has('u'), o.has('q')), tool).map_err(named)
        }
    }
}

fn bytes(word: &OsStr) -> Vec<u8> {
    word.as_bytes().to_vec()
}

/// A size as it was asked for.
fn asked(text: &OsStr) -> Outcome<u64> {
    let shown = show::path(text);
    let bytes = text.to_str().and_then(size::parse);
    let range = bytes.is_some() || text.as_bytes().starts_with(b"-");
    bytes.filter(|bytes| i64::try_from(*bytes).is_ok()).ok_or_else(|| match range {
        true => format!("Invalid image size specified. Must be between 0 and {}.", i64::MAX).into(),
        false => format!("Invalid image size specified: '{shown}'.").into(),
    })
}

/// Opens what is to become an image; a file that is not there is made.
fn made(path: &Path) -> Outcome<(File, Option<Unfinished>)> {
    let new = !path.exists();
    let shown = show::path(path);
    let file = image::open_or_make(path, MODE).map_err(|error| {
        let why = match error {
            image::NodeError::Io(error) => plain(&error),
            image::NodeError::Odd(odd) => format!("it is {odd}"),
        };
        Fail::from(format!("Could not create '{shown}': {why}"))
    })?;
    let unfinished = new.then(|| Unfinished::begin(path));
    open::alone(&file, path)?;
    Ok((file, unfinished))
}

fn raw(path: &Path, size: Option<u64>, quiet: bool, tool: &mut Tool) -> Outcome {
    let size = size.ok_or("Image creation needs a size parameter")?;
    if !quiet {
        tool.say(&format!("Formatting '{}', fmt=raw size={size}\n", show::path(path)));
    }
    let (file, unfinished) = made(path)?;
    let bytes = size.next_multiple_of(512);
    let failed =
        |error: std::io::Error| Fail::from(format!("Could not resize it: {}", plain(&error)));
    if file.is_device() && Storage::len(&file).map_err(failed)? < bytes {
        return Err("The device is too small".into());
    }
    Storage::set_len(&file, 0).and_then(|()| Storage::set_len(&file, bytes)).map_err(failed)?;
    unfinished.into_iter().for_each(Unfinished::whole);
    Ok(0)
}

/// The size of what lies below, which has to be there.
fn below(path: &Path, given: &Parameters) -> Outcome<Option<u64>> {
    let Some(name) = &given.backing_file else { return Ok(None) };
    if open::path_of(name).is_none() {
        let name = show::bytes(name);
        return Err(format!("'{name}' is no file or device: use QEMU's qemu-img").into());
    }
    let format = given.backing_fmt.as_deref().map(OsStr::from_bytes);
    let format = open::format_of(format).and_then(|format| {
        let parent = open::layer(&open::beside(path, name), format, For::Reading)?;
        Ok((format, parent))
    });
    let (format, parent) = format.map_err(|fail| Fail {
        // One name is enough.
        text: format!("{}\nCould not open backing image.", once(&fail.text)),
        ..fail
    })?;
    if format.is_none() {
        let found = parent.format.name();
        let text = "Backing file specified without backing format";
        return Err(format!("{text}\nDetected format of {found}.").into());
    }
    Ok(Some(parent.size))
}

/// `Could not open 'x': Could not open 'x': why` with the name once.
fn once(text: &str) -> &str {
    let rest = text.split_once(": ").filter(|(first, rest)| rest.starts_with(first));
    rest.map_or(text, |(_, rest)| rest)
}

fn qcow2(path: &Path, given: Parameters, how: (bool, bool), tool: &mut Tool) -> Outcome {
    let (unsafely, quiet) = how;
    if let Some(name) = &given.backing_file
        && let (Ok(below), Ok(itself)) =
            (open::beside(path, name).canonicalize(), path.canonicalize())
        && below == itself
    {
        return Err("an image is not its own parent".into());
    }
    let below = if unsafely { None } else { below(path, &given)? };
    let parent = given.backing_file.as_deref().filter(|_| !unsafely);
    let parent = parent.map(|name| open::beside(path, name));
    let bond = parent.as_deref().map(|parent| Bond::new(path, parent, None)).transpose()?;
    let size = given.size.or(below).ok_or("Image creation needs a size parameter")?;
    let options = given.options(size);
    if !quiet {
        tool.tick(&String::from_utf8_lossy(&given.told(path.as_os_str(), size)));
    }
    let options = options?;
    let (file, unfinished) = made(path)?;
    // Who makes it vouches for a parent elsewhere, as with vhd-util.
    if let (Some(bond), Some(parent)) = (&bond, &parent) {
        bond.vouch(path, &file, parent)?;
    }
    qcow2::create(&file, path, &options).map_err(|error| {
        let text = error.to_string();
        text.split(" is not made: ").last().unwrap_or(&text).to_owned()
    })?;
    bond.map_or(Ok(()), |bond| bond.forget(path, &file))?;
    unfinished.into_iter().for_each(Unfinished::whole);
    Ok(0)
}
