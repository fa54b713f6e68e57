//! Which directory, and the names in it.

use super::*;
use std::os::unix::fs::PermissionsExt;

fn chosen(uid: u32, over: Option<&str>, xdg: Option<&str>) -> (String, bool) {
    let (path, private) = choose(uid, over.map(OsStr::new), xdg.map(OsStr::new));
    (path.to_str().expect("UTF-8").to_owned(), private)
}

#[test]
fn root_and_users_have_their_own_directories() {
    assert_eq!(chosen(0, None, Some("/run/user/0")), ("/run/blktap-control".into(), false));
    assert_eq!(chosen(7, None, Some("/run/user/7")), ("/run/user/7/blktap-control".into(), false));
    assert_eq!(chosen(7, None, None), ("/tmp/blktap-control-7".into(), true));
    assert_eq!(chosen(7, None, Some("relative")), ("/tmp/blktap-control-7".into(), true));
}

#[test]
fn the_variable_overrides_for_everyone() {
    assert_eq!(chosen(0, Some("/x/y"), None), ("/x/y".into(), false));
    assert_eq!(chosen(7, Some("/x/y"), Some("/run/user/7")), ("/x/y".into(), false));
    assert!(chosen(7, Some("x"), None).0.starts_with('/'), "made absolute: the daemon may chdir");
}

#[test]
fn names() {
    let run = RunDir::at(Path::new("/r"));
    let name = |path: PathBuf| path.to_str().expect("UTF-8").to_owned();
    assert_eq!(name(run.ctl(12)), "/r/ctl12");
    assert_eq!(name(run.nbdclient(12)), "/r/nbdclient12");
    assert_eq!(name(run.nbd(12, 3)), "/r/nbd12.3");
    assert_eq!(name(run.nbd_old(12, 3)), "/r/nbd-old12.3");
    assert_eq!(name(run.nbdserver(12, 3)), "/r/nbdserver12.3");
    assert_eq!(name(run.nbdserver_new(12, 3)), "/r/nbdserver-new12.3");
    assert_eq!(name(run.marker(16383)), "/r/tapdisk/tapdisk-16383");
}

#[test]
fn pid_of_a_control_socket() {
    assert_eq!(pid_of_ctl(Path::new("/r/ctl12")), Some(12));
    for other in ["/r/ctl", "/r/ctl12x", "/r/ctl-1", "/r/nbd12", "/r/ctl99999999999"] {
        assert_eq!(pid_of_ctl(Path::new(other)), None, "{other}");
    }
}

#[test]
fn numbers_come_in_byte_order_of_the_names() {
    let dir = tempfile::tempdir().expect("temporary directory");
    for name in ["ctl99", "ctl100", "ctlx", "nbd5.0", "xctl7"] {
        fs::write(dir.path().join(name), "").expect("write");
    }
    assert_eq!(RunDir::at(dir.path()).ctl_numbers(), Ok(vec![100, 99]));
    assert_eq!(RunDir::at(dir.path()).marker_numbers(), Ok(vec![]), "no directory, no minors");
}

#[test]
fn a_directory_that_others_may_enter_is_refused() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let uid = fs::metadata(dir.path()).expect("metadata").uid();
    let set =
        |mode| fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).expect("chmod");
    set(0o700);
    assert_eq!(check_private(dir.path(), uid), Ok(()));
    set(0o755);
    let text = check_private(dir.path(), uid).expect_err("open to others").to_string();
    assert!(text.contains("has mode 0755 and not 0700"), "{text}");
    set(0o700);
    let text = check_private(dir.path(), uid + 1).expect_err("another user's").to_string();
    assert!(text.contains("belongs to user"), "{text}");
}

#[test]
fn a_link_or_file_in_its_place_is_refused() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let uid = sys::euid();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(dir.path(), &link).expect("symlink");
    assert!(check_private(&link, uid).is_err(), "a link");
    let absent = dir.path().join("absent");
    assert_eq!(check_private(&absent, uid), Ok(()), "will be made");
}

#[test]
fn a_directory_in_which_others_make_names_is_refused() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let uid = sys::euid();
    let run = RunDir::at(dir.path());
    for mode in [0o777, 0o1777, 0o775, 0o722] {
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).expect("chmod");
        let text = run.create(0o755).expect_err("open to others").to_string();
        assert!(text.contains(&format!("(mode {mode:04o}): chmod go-w it")), "{text}");
        assert_eq!(check_safe(dir.path(), uid).expect_err("as well").errno(), libc::EACCES);
    }
    for mode in [0o700, 0o755, 0o711] {
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).expect("chmod");
        assert_eq!(run.create(0o755), Ok(()));
    }
    let meta = fs::metadata(dir.path()).expect("metadata");
    assert_eq!(not_safe(&meta, uid + 1).is_none(), uid == 0, "root's is good for everybody");
}

#[test]
fn a_strangers_directory_or_link_is_refused() {
    if sys::euid() != 0 {
        return sys::skip("only root can make things of another user");
    }
    sys::settle_umask();
    let dir = tempfile::tempdir().expect("temporary directory");
    let (place, link) = (dir.path().join("place"), dir.path().join("link"));
    fs::create_dir(&place).expect("made");
    std::os::unix::fs::symlink(&place, &link).expect("symlink");
    assert_eq!(RunDir::at(&link).create(0o755), Ok(()), "our own link");
    std::os::unix::fs::lchown(&link, Some(65534), None).expect("chown");
    let text = RunDir::at(&link).create(0o755).expect_err("a stranger's link").to_string();
    assert!(text.contains("belongs to user 65534, neither root nor 0"), "{text}");
    std::os::unix::fs::chown(&place, Some(65534), None).expect("chown");
    assert!(RunDir::at(&place).create(0o755).is_err());
}

#[test]
fn create_makes_missing_parents() {
    sys::settle_umask();
    let dir = tempfile::tempdir().expect("temporary directory");
    let run = RunDir::at(&dir.path().join("a/b"));
    run.create(0o700).expect("made");
    run.create(0o700).expect("exists");
    assert_eq!(fs::metadata(run.path()).expect("metadata").mode() & 0o777, 0o700);
}
