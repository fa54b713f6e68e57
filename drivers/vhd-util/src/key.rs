//! `key`: the hash that tells whether a key fits an encrypted image.
use crate::EINVAL;
use crate::options::{JSON, Options, Term};
use cli::Spec;
use serde_json::json;
use std::ffi::OsString;
use std::path::Path;
use vhd_rs::batmap::KeyHash;
use vhd_rs::secret::Bytes;
use vhd_rs::{OpenOptions, VhdError, chain, key, lock, open};

const USAGE: &str = "usage:\n-C -k KEYPATH [-N NONCE]: calculate keyhash for KEYPATH\n\
    -s -n NAME <-k KEYPATH> | -H HASH> [-N NONCE]: set keyhash for NAME\n\
    -c -n NAME <-k KEYPATH>: check keyhash for NAME\n-p -n NAME: print keyhash for NAME\n-h help\n";
/// A key file with a name that does not belong to the image.
const EPERM: i32 = 1;
/// More than any key has.
const KEY_FILE_BYTES_MAX: usize = 64 << 10;

pub(crate) fn run(args: &[OsString], term: &mut Term) -> i32 {
    let o = match Options::parse("key", Spec { letters: "Cscpn:k:H:N:h", long: &[JSON] }, args) {
        Ok(o) => o,
        Err(text) => {
            term.complain(&format!("{text}{USAGE}"));
            return EINVAL;
        }
    };
    let wrong = |term: &mut Term, code| {
        term.complain(USAGE);
        code
    };
    if o.has('h') {
        return wrong(term, 0);
    }
    let modes = ['C', 's', 'c', 'p'].into_iter().filter(|m| o.has(*m)).collect::<Vec<_>>();
    let ([mode], 0) = (modes.as_slice(), o.operands().len()) else { return wrong(term, EINVAL) };
    let (name, file) = (o.path('n'), o.path('k'));
    let done = match (mode, name, file) {
        ('C', _, Some(file)) => calculate(&file, &o, term),
        ('p', Some(name), _) => print(&name, o.has(JSON.key), term),
        ('c', Some(name), Some(file)) => check(&name, &file),
        ('s', Some(name), Some(file)) if !o.has('H') => set_by_key(&name, &file, &o, term),
        ('s', Some(name), None) if o.has('H') => set_by_hash(&name, &o, term),
        _ => return wrong(term, EINVAL),
    };
    match done {
        Ok(()) => 0,
        Err(e) => {
            term.complain(&format!("{e}\n"));
            e.errno()
        }
    }
}

type Done = Result<(), VhdError>;

fn calculate(file: &Path, o: &Options, term: &mut Term) -> Done {
    let nonce = nonce(o)?;
    let hash = key::hash_of(&nonce, &bytes_of(file)?);
    term.say(&format!("{}\n", key::hex(&hash.hash)));
    Ok(())
}

fn print(name: &Path, json: bool, term: &mut Term) -> Done {
    match stored(name)? {
        Some(KeyHash { nonce, hash }) if json => {
            term.json(&json!({ "nonce": key::hex(&nonce), "hash": key::hex(&hash) }));
        }
        None if json => term.json(&json!({ "nonce": null, "hash": null })),
        Some(KeyHash { nonce, hash }) => {
            term.say(&format!("{} {}\n", key::hex(&nonce), key::hex(&hash)));
        }
        None => term.say("none\n"),
    }
    Ok(())
}

fn check(name: &Path, file: &Path) -> Done {
    belongs(name, file)?;
    let stored = stored(name)?;
    let stored = stored.ok_or_else(|| refuse(name, "this image has no key hash"))?;
    if key::fits(&stored, &bytes_of(file)?) {
        return Ok(());
    }
    Err(refuse(name, "the key is another one than the image was encrypted with"))
}

fn set_by_key(name: &Path, file: &Path, o: &Options, term: &Term) -> Done {
    belongs(name, file)?;
    set(name, &key::hash_of(&nonce(o)?, &bytes_of(file)?), term)
}

fn set_by_hash(name: &Path, o: &Options, term: &Term) -> Done {
    let text = o.value('H').and_then(|t| t.to_str());
    let hash = text.and_then(key::from_hex);
    let hash = hash.ok_or_else(|| refuse(name, "-H takes 64 hexadecimal digits"))?;
    set(name, &KeyHash { nonce: nonce(o)?, hash }, term)
}

fn set(name: &Path, hash: &KeyHash, term: &Term) -> Done {
    let file = lock::open_to_change(name, term.others)?;
    key::set_hash(&file, name, hash)
}

fn stored(name: &Path) -> Result<Option<KeyHash>, VhdError> {
    let file = chain::open_file(name, false)?;
    let options = OpenOptions { read_only: true, ..OpenOptions::default() };
    let opened = open(&file, name, &options)?;
    vhd_rs::edit::refuse_poisoned(name, &opened.footer)?;
    Ok(opened.key_hash)
}

/// 32 zero bytes unless `-N` says otherwise.
fn nonce(o: &Options) -> Result<[u8; 32], VhdError> {
    let Some(text) = o.value('N') else { return Ok([0; 32]) };
    let nonce = text.to_str().and_then(key::from_hex);
    nonce.ok_or_else(|| refuse(Path::new("-N"), "takes 64 hexadecimal digits"))
}

fn bytes_of(file: &Path) -> Result<Bytes, VhdError> {
    let failed = |e: &std::io::Error| VhdError::io(file, "read the key", 0, e);
    let mut opened = key::open_file(file)?;
    Bytes::read(&mut opened, KEY_FILE_BYTES_MAX).map_err(|e| failed(&e))
}

/// A key file of `disk.vhd` is called `disk,aes-xts-plain,256.key`, or 512.
fn belongs(name: &Path, file: &Path) -> Done {
    let base = |path: &Path| path.file_name().map(|n| n.to_string_lossy().into_owned());
    let (image, key) = (base(name).unwrap_or_default(), base(file).unwrap_or_default());
    let stem = image.strip_suffix(".vhd").unwrap_or(&image);
    let fits = |bits: &str| key == format!("{stem},aes-xts-plain,{bits}.key");
    if fits("256") || fits("512") {
        return Ok(());
    }
    let stem = show::bytes(stem.as_bytes());
    let why = format!("a key file of this image is named {stem},aes-xts-plain,256.key, or 512");
    Err(VhdError::request(file, EPERM, why))
}

fn refuse(name: &Path, why: &str) -> VhdError {
    VhdError::request(name, EINVAL, why)
}
