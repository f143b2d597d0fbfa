//! Standard output.

use std::io::{self, Write};

/// Writes to standard output and flushes. A closed pipe is not an error.
pub(super) fn print(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
