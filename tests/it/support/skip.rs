//! Tests that cannot run here: each is reported as skipped.
//!
//! libtest cannot skip a test that has begun, so a skipped test passes. It writes `skipped: NAME: REASON` to the standard
//! error, and adds the line `NAME: REASON` to the file that `GATHERING_TEST_SKIPPED` names. `test.sh` counts these lines,
//! and fails on them when `CI` is set.

use std::env;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::thread;

/// Reports that the calling test does not run, and why.
pub(crate) fn skip(reason: &str) {
    // libtest names the thread of a test after the test.
    let name = thread::current().name().unwrap_or("a test").to_owned();
    let line = format!("{name}: {reason}\n");
    // Not by `eprint!`, whose text libtest keeps to itself when a test passes.
    let _ = write!(io::stderr(), "skipped: {line}");
    if let Some(path) = env::var_os("GATHERING_TEST_SKIPPED") {
        let file = OpenOptions::new().append(true).create(true).open(path);
        // One write, so that the lines of tests that run at the same time stay whole.
        let written = file.and_then(|mut file| file.write_all(line.as_bytes()));
        written.expect("the skipped test is recorded");
    }
}
