//! The images of a scan as trees: parents before children, hidden roots first.
use super::image::{Image, ScanOptions};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};

/// All lines of all trees.
pub(crate) fn lines(images: Vec<Image>, wanted: ScanOptions) -> Vec<u8> {
    let images: BTreeMap<PathBuf, Image> =
        images.into_iter().map(|image| (image.path.clone(), image)).collect();
    let mut children: BTreeMap<&Path, BTreeSet<&Path>> = BTreeMap::new();
    for (path, image) in &images {
        if let Some(link) = image.parent.as_ref().filter(|link| images.contains_key(&link.path)) {
            children.entry(&link.path).or_default().insert(path);
        }
    }
    let parent_known =
        |image: &Image| image.parent.as_ref().is_some_and(|link| images.contains_key(&link.path));
    let roots = images.iter().filter(|(_, image)| !parent_known(image));
    let mut order: Vec<&Path> = roots.map(|(path, _)| path.as_path()).collect();
    order.sort_by_key(|path| images.get(*path).is_some_and(|i| i.facts.hidden == 0));
    // What goes round in circles has no root; it is not lost for that.
    order.extend(images.keys().map(PathBuf::as_path));

    let mut out = Vec::new();
    let mut done: HashSet<&Path> = HashSet::new();
    let mut todo: Vec<(&Path, usize)> = order.into_iter().rev().map(|path| (path, 0)).collect();
    while let Some((path, depth)) = todo.pop() {
        let Some(image) = images.get(path).filter(|_| done.insert(path)) else { continue };
        out.extend(image.line(wanted, Some(depth)));
        if !wanted.json && image.parent.is_some() && !parent_known(image) {
            out.extend_from_slice(b" (not found in scan)");
        }
        out.push(b'\n');
        let kids = children.get(path).into_iter().flatten().rev();
        todo.extend(kids.map(|kid| (*kid, depth + 1)));
    }
    out
}
