//! Raw images, type `aio`.
use cli::{EINVAL, JSON, Options, Term, number};
use image::unfinished::Unfinished;
use image::{Node, NodeError, Storage};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

const MIB: u64 = 1 << 20;

/// `create aio -r MB FILE`: zeros, written. (The original fails at that.) A file that could not be
/// completed is removed.
pub(crate) fn create(o: &Options, term: &mut Term) -> Option<i32> {
    let [size, name] = o.operands() else { return None };
    let size = number::<u64>(size).filter(|size| *size > 0 && *size <= u64::MAX / MIB)?;
    if !o.has('r') {
        term.complain("Cannot create sparse aio image\n");
        return Some(EINVAL);
    }
    let name = Path::new(name);
    let done = image::open_or_make(name, 0o644).and_then(|file| {
        let unfinished = (!file.is_device()).then(|| Unfinished::begin(name));
        fill(&file, size)?;
        unfinished.into_iter().for_each(Unfinished::whole);
        Ok(())
    });
    Some(done.map_or_else(|e| failed(name, &e, term), |()| 0))
}

fn fill(mut file: &File, mib: u64) -> io::Result<()> {
    Storage::set_len(file, 0)?;
    let zeros = vec![0; MIB as usize];
    (0..mib).try_for_each(|_| file.write_all(&zeros))?;
    file.sync_all()
}

/// `query aio [-v] FILE`: the size in MiB, of a file or a block device. (The original prints 0.)
pub(crate) fn query(o: &Options, term: &mut Term) -> Option<i32> {
    let [name] = o.operands() else { return None };
    let name = Path::new(name);
    if ['p', 'f', 'd', 'b'].iter().any(|letter| o.has(*letter)) {
        return None;
    }
    let size = Node::find(name).and_then(|node| Ok(Storage::len(&node.open(false)?)?));
    match size {
        Ok(size) if o.has(JSON.key) => {
            let name = name.display().to_string();
            term.json(&serde_json::json!({ "name": name, "virtual_bytes": size }));
        }
        Ok(size) if o.has('v') => term.say(&format!("{}\n", size / MIB)),
        Ok(_) => {}
        Err(e) => {
            term.say(&format!("failed opening {}: -{}\n", show::path(name), e.errno()));
            term.complain(&format!("{}: could not open the image: {e}\n", show::path(name)));
            return Some(e.errno());
        }
    }
    Some(0)
}

fn failed(name: &Path, e: &NodeError, term: &mut Term) -> i32 {
    term.complain(&format!("{}: could not make the image: {e}\n", show::path(name)));
    e.errno()
}
