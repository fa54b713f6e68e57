//! Paths of images: canonical with the exceptions that keep volume names alive, and relative.
use crate::error::{VhdError, errno};
use std::io;
use std::path::{Component, Path, PathBuf};

const MAPPER: &str = "/dev/mapper";
const DRBD: &str = "/dev/drbd/by-res";

/// The canonical form of a path (§5.3): symlinks are followed, but `/dev/mapper/X` and
/// `/dev/drbd/by-res/…` stay as given and `/dev/VG/LV` becomes `/dev/mapper/VG-LV` if that exists.
///
/// # Errors
/// Those of `realpath`.
pub fn canonical(path: &Path) -> io::Result<PathBuf> {
    if path.starts_with(MAPPER) || path.starts_with(DRBD) {
        return Ok(path.into());
    }
    if let Some(node) = mapper_node(path).filter(|node| node.exists()) {
        return Ok(node);
    }
    path.canonicalize()
}

/// `/dev/VG/LV` → `/dev/mapper/VG-LV`, with every `-` inside a name doubled.
fn mapper_node(path: &Path) -> Option<PathBuf> {
    let mut parts = path.strip_prefix("/dev").ok()?.components();
    let (Some(Component::Normal(group)), Some(Component::Normal(volume)), None) =
        (parts.next(), parts.next(), parts.next())
    else {
        return None;
    };
    let doubled = |name: &std::ffi::OsStr| Some(name.to_str()?.replace('-', "--"));
    Some(Path::new(MAPPER).join(format!("{}-{}", doubled(group)?, doubled(volume)?)))
}

/// `to` as seen from the directory of `from`, both canonical: `./p.vhd`, `./d/p.vhd`, `../p.vhd`.
pub fn relative(from: &Path, to: &Path) -> PathBuf {
    let dir: Vec<Component<'_>> = from.parent().unwrap_or(from).components().collect();
    let target: Vec<Component<'_>> = to.components().collect();
    let shared = dir.iter().zip(&target).take_while(|(a, b)| a == b).count();
    let up = dir.len() - shared;
    let mut out = if up == 0 { PathBuf::from(".") } else { PathBuf::new() };
    out.extend((0..up).map(|_| ".."));
    out.extend(target.iter().skip(shared));
    out
}

/// The first candidate that is a readable file, canonical (§5.2): absolute, or seen from the
/// directory of the canonical child.
///
/// # Errors
/// The error of the last try, usually ENOENT; EINVAL if there was nothing to try.
pub fn resolve(child: &Path, candidates: &[PathBuf]) -> Result<PathBuf, VhdError> {
    let home = canonical(child).map_err(|e| VhdError::io(child, "resolve the path", 0, &e))?;
    let home = home.parent().unwrap_or(Path::new("/"));
    let mut last = errno::EINVAL;
    for candidate in candidates {
        match readable(home, candidate) {
            Ok(path) => return Ok(path),
            Err(e) => last = e.raw_os_error().unwrap_or(errno::EINVAL),
        }
    }
    Err(VhdError::Parent { name: child.into(), tried: candidates.into(), errno: last })
}

fn readable(home: &Path, candidate: &Path) -> io::Result<PathBuf> {
    if candidate.is_absolute() && open(candidate).is_ok() {
        return canonical(candidate);
    }
    // An absolute path that is not readable is tried below the child's directory, as the original.
    let tail = candidate.strip_prefix("/").unwrap_or(candidate);
    let path = canonical(&home.join(tail))?;
    open(&path).map(|()| path)
}

/// Anything but a file or a block device is as good as nothing; opening a FIFO would wait for a writer.
fn open(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::FileTypeExt;
    let kind = std::fs::metadata(path)?.file_type();
    if !kind.is_file() && !kind.is_block_device() {
        return Err(io::Error::from_raw_os_error(errno::ENOENT));
    }
    std::fs::File::open(path).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relative_text(from: &str, to: &str) -> String {
        relative(Path::new(from), Path::new(to)).display().to_string()
    }

    #[test]
    fn relative_paths_start_with_a_dot() {
        assert_eq!(relative_text("/a/c.vhd", "/a/p.vhd"), "./p.vhd");
        assert_eq!(relative_text("/a/c.vhd", "/a/d/p.vhd"), "./d/p.vhd");
        assert_eq!(relative_text("/a/d/c.vhd", "/a/p.vhd"), "../p.vhd");
        assert_eq!(relative_text("/a/b/c.vhd", "/x/p.vhd"), "../../x/p.vhd");
        assert_eq!(relative_text("/dev/mapper/V-c", "/dev/mapper/V-p"), "./V-p");
    }

    #[test]
    fn volumes_keep_their_mapper_names() {
        let node = mapper_node(Path::new("/dev/VG-x/VHD-1-2")).unwrap();
        assert_eq!(node, Path::new("/dev/mapper/VG--x-VHD--1--2"));
        assert_eq!(mapper_node(Path::new("/dev/sda")), None);
        let kept = canonical(Path::new("/dev/mapper/none")).unwrap();
        assert_eq!(kept, Path::new("/dev/mapper/none"));
    }

    #[test]
    fn the_first_candidate_that_exists_wins() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().canonicalize().unwrap();
        let child = home.join("c.vhd");
        std::fs::write(&child, b"").unwrap();
        std::fs::write(home.join("p.vhd"), b"").unwrap();
        let candidates = ["./q.vhd", "./p.vhd"].map(PathBuf::from);
        assert_eq!(resolve(&child, &candidates).unwrap(), home.join("p.vhd"));
        assert_eq!(resolve(&child, &candidates[..1]).unwrap_err().errno(), 2);
        assert_eq!(resolve(&child, &[]).unwrap_err().errno(), 22);
    }
}
