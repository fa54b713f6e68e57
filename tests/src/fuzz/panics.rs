//! Panics as values: text and place, and no noise while a finding is made small.
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

thread_local! {
    /// What the panic of this thread said, while one is awaited.
    static SAID: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// The result of `work`, or the text and place of its panic.
pub(super) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |info| {
            let awaited = SAID.with_borrow_mut(|said| {
                let awaited = said.is_some();
                if awaited {
                    *said = Some(info.to_string());
                }
                awaited
            });
            if !awaited {
                before(info);
            }
        }));
    });
    SAID.set(Some(String::new()));
    let done = catch_unwind(AssertUnwindSafe(work));
    let said = SAID.take().unwrap_or_default();
    done.map_err(|_| said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_has_its_text_and_its_place() {
        let said = caught(|| assert_eq!(1, 2, "numbers")).unwrap_err();
        assert!(said.contains("numbers") && said.contains("panics.rs:"), "{said}");
        assert_eq!(caught(|| 3), Ok(3));
    }
}
