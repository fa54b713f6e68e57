use super::*;
use std::fs;
use std::os::unix::fs::symlink;

struct Tree {
    /// Canonical; the child's directory is `own` in it.
    top: PathBuf,
    _dir: tempfile::TempDir,
}

impl Tree {
    fn new() -> Tree {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        for name in ["own/deep", "other"] {
            fs::create_dir_all(top.join(name)).unwrap();
        }
        for name in ["own/child", "own/base", "own/deep/base", "base", "other/base"] {
            fs::write(top.join(name), "").unwrap();
        }
        Tree { top, _dir: dir }
    }

    fn place(&self, name: &str) -> Node {
        Node::find(&self.top.join(name)).unwrap()
    }

    fn permits(&self, name: &str, known: Known) -> Result<(), Refusal> {
        permit(&Home::at(&self.top.join("own/child")).unwrap(), &self.place(name), known)
    }
}

#[test]
fn a_parent_lies_in_the_childs_directory_or_below() {
    let t = Tree::new();
    for name in ["own/base", "own/deep/base", "other/../own/base"] {
        assert_eq!(t.permits(name, Known::ByPath), Ok(()), "{name}");
    }
    for name in ["base", "other/base", "own/../base", "own/deep/../../other/base"] {
        assert_eq!(t.permits(name, Known::ByPath), Err(Refusal::Elsewhere(None)), "{name}");
    }
}

#[test]
fn an_id_that_fits_reaches_the_directory_above_and_no_further() {
    let t = Tree::new();
    assert_eq!(t.permits("base", Known::ById), Ok(()));
    assert_eq!(t.permits("other/base", Known::ById), Err(Refusal::Elsewhere(None)));
    let home = Home::Directory("/".into(), None);
    assert!(permit(&home, &t.place("own/base"), Known::ById).is_err(), "/ is no tree of images");
}

#[test]
fn a_link_is_where_it_leads() {
    let t = Tree::new();
    symlink(t.top.join("other/base"), t.top.join("own/link")).unwrap();
    symlink(t.top.join("other"), t.top.join("own/folder")).unwrap();
    symlink(t.top.join("own/base"), t.top.join("other/link")).unwrap();
    assert!(t.permits("own/link", Known::ByPath).is_err());
    assert!(t.permits("own/folder/base", Known::ByPath).is_err());
    assert_eq!(t.permits("other/link", Known::ByPath), Ok(()));
    symlink(t.top.join("own/child"), t.top.join("other/child")).unwrap();
    let home = Home::at(&t.top.join("other/child")).unwrap();
    assert_eq!(permit(&home, &t.place("own/base"), Known::ByPath), Ok(()));
}

#[test]
fn what_is_found_is_what_is_opened_whatever_the_name_leads_to_later() {
    let t = Tree::new();
    fs::write(t.top.join("own/base"), "right").unwrap();
    let place = t.place("own/base");
    assert_eq!(t.permits("own/base", Known::ByPath), Ok(()));
    fs::rename(t.top.join("other/base"), t.top.join("own/base")).unwrap();
    let read = std::io::read_to_string(place.open(false).unwrap()).unwrap();
    assert_eq!(read, "right");
}

#[test]
fn files_that_the_kernel_makes_up_are_no_storage() {
    let t = Tree::new();
    for path in ["/proc/self/environ", "/proc/self/mem", "/sys/kernel/notes"] {
        let place = Node::find(Path::new(path)).unwrap();
        let inside = Home::Directory(Path::new(path).parent().unwrap().into(), None);
        for home in [&inside, &Home::at(&t.top.join("own/child")).unwrap()] {
            for known in [Known::ById, Known::ByPath] {
                assert_eq!(permit(home, &place, known), Err(Refusal::NoStorage), "{path}");
            }
        }
    }
}

#[test]
fn repositories_of_sm_know_each_others_images_by_id_only() {
    // What is compared is paths; these need not be there.
    let at = |path: &str| Path::new(path).to_path_buf();
    let t = Tree::new();
    let node = t.place("other/base");
    let base = node.found();
    let cache = Home::Directory(at("/run/sr-mount/local"), None);
    let shared = at("/run/sr-mount/shared/base.vhd");
    assert!(neighbour(&cache, &shared, base));
    assert!(!neighbour(&cache, &at("/run/sr-mounted/base.vhd"), base));
    assert!(!neighbour(&Home::Directory(at("/srv/a"), None), &shared, base));
    assert!(!inside(Path::new("/run/sr-mount/local"), &shared, base));
}

#[test]
fn who_makes_an_image_vouches_for_its_parent_and_for_no_other() {
    let t = Tree::new();
    let (child, base) = (File::open(t.top.join("own/child")).unwrap(), t.place("other/base"));
    let home = || Home::of(&child).unwrap();
    assert_eq!(needs_voucher(&home(), &base, Known::ByPath), Ok(true));
    match vouch(&child, &base) {
        Ok(()) => {}
        Err(e) => return println!("skipped: no trusted attributes here: {e}"),
    }
    assert_eq!(permit(&home(), &base, Known::ByPath), Ok(()));
    assert_eq!(
        needs_voucher(&home(), &base, Known::ByPath),
        Ok(true),
        "still, if it were made anew"
    );
    fs::write(t.top.join("other/more"), "").unwrap();
    assert!(permit(&home(), &t.place("other/more"), Known::ByPath).is_err());
    // A plain copy has nobody's word.
    fs::copy(t.top.join("own/child"), t.top.join("own/copy")).unwrap();
    let copy = Home::at(&t.top.join("own/copy")).unwrap();
    assert!(permit(&copy, &base, Known::ByPath).is_err());
    forget(&child).unwrap();
    forget(&child).unwrap();
    assert!(permit(&home(), &base, Known::ByPath).is_err());
}
