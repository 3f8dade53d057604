//! Why something about the data plane failed: what was tried, what was found, what to do.

use std::error::Error;

/// A failure of the data plane. Its text is complete: causes are part of it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct ApplyError(String);

impl ApplyError {
    /// `tried`, and why it failed, down to the last cause.
    pub(crate) fn new(tried: impl Into<String>, cause: impl Error) -> Self {
        let mut text = tried.into();
        let mut cause: Option<&dyn Error> = Some(&cause);
        while let Some(error) = cause {
            let line = error.to_string();
            // Some errors repeat their cause in their own text.
            if !text.contains(&line) {
                text.push_str(": ");
                text.push_str(&line);
            }
            cause = error.source();
        }
        Self(text)
    }

    /// A text of its own.
    pub(crate) fn text(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub(crate) fn missing_program(name: &str) -> Self {
        Self(format!("the eBPF object has no program {name}: this binary was not built right"))
    }
}
