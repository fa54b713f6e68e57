//! Points at which the tests of storage managers stop a command: an environment variable, whatever
//! it holds, ends the program there as a crash would.
use std::io::Write;
use vhd_rs::modify::Point;

/// The name of the variable that stops at a point.
fn name(point: Point) -> &'static str {
    match point {
        Point::ReparentBegin => "VHD_UTIL_TEST_FAIL_REPARENT_BEGIN",
        Point::ReparentLocator => "VHD_UTIL_TEST_FAIL_REPARENT_LOCATOR",
        Point::ReparentEnd => "VHD_UTIL_TEST_FAIL_REPARENT_END",
        Point::ResizeBegin => "VHD_UTIL_TEST_FAIL_RESIZE_BEGIN",
        Point::ResizeDataMoved => "VHD_UTIL_TEST_FAIL_RESIZE_DATA_MOVED",
        Point::ResizeMetadataMoved => "VHD_UTIL_TEST_FAIL_RESIZE_METADATA_MOVED",
        Point::ResizeEnd => "VHD_UTIL_TEST_FAIL_RESIZE_END",
    }
}

/// Ends the program with 22 if the environment says so.
pub(crate) fn reached(point: Point) {
    let name = name(point);
    if std::env::var_os(name).is_some() {
        // As after a crash, nothing else matters any more.
        let _ = writeln!(std::io::stdout(), "Failing at {name}");
        std::process::exit(crate::EINVAL);
    }
}
