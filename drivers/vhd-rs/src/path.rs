//! Paths of images: canonical with the exceptions that keep volume names alive, and relative.
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
}
