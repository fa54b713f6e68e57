//! What a frontend has to say, for the log.

/// A line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Somebody may want to do something about it.
    pub warning: bool,
    /// A sentence.
    pub text: String,
}

impl Note {
    /// Something to look at.
    pub fn warning(text: impl Into<String>) -> Note {
        Note { warning: true, text: text.into() }
    }

    /// Something to know.
    pub fn info(text: impl Into<String>) -> Note {
        Note { warning: false, text: text.into() }
    }
}
