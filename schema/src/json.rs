//! Writes JSON into memory, which does not fail: all keys of the maps that the server writes are text.

use serde::Serialize;

/// The characters that a JSON string must escape.
const fn must_escape(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// Writes a string.
pub(crate) fn write_text(out: &mut Vec<u8>, text: &str) {
    if text.bytes().any(must_escape) {
        return write_json(out, text);
    }
    out.reserve(text.len() + 2);
    out.push(b'"');
    out.extend_from_slice(text.as_bytes());
    out.push(b'"');
}

/// Writes a value.
pub(crate) fn write_json(out: &mut Vec<u8>, value: &(impl Serialize + ?Sized)) {
    let _ = serde_json::to_writer(out, value);
}

/// Begins the next member of an object.
pub(crate) fn write_key(out: &mut Vec<u8>, key: &str) {
    // No value ends with the brace that begins an object.
    if out.last() != Some(&b'{') {
        out.push(b',');
    }
    write_text(out, key);
    out.push(b':');
}
