//! Builds the playground's front end (`web/`) if Node is installed, and embeds its files for `src/playground.rs`.
//!
//! The build of the server does not fail without Node or the npm registry: the server is then built without the
//! playground. A warning of the build and the page of the playground say so.

#![expect(
    clippy::disallowed_methods,
    reason = "a build script gets its input from environment variables"
)]

use std::env;
use std::error::Error;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

/// Sources of the front end.
const SOURCES: [&str; 5] = [
    "index.html",
    "package-lock.json",
    "package.json",
    "src",
    "vite.config.js",
];

/// Suffix of a compressed copy.
const PACKED: &str = ".gz";

fn main() -> Result<(), Box<dyn Error>> {
    let web = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("web");
    let dist = web.join("dist");
    println!("cargo::rerun-if-changed=build.rs");
    for source in SOURCES {
        println!("cargo::rerun-if-changed=web/{source}");
    }

    // A build in an editor and one on the command line may run at the same time; npm must not.
    let lock = File::open(web.join("package.json"))?;
    lock.lock()?;
    let sources = SOURCES.iter().filter_map(|name| modified(&web.join(name)));
    if modified(&dist.join("index.html")) < sources.max()
        && let Err(reason) = build(&web)
    {
        println!("cargo::warning=The playground could not be built: {reason}");
        // Rebuild the crate after a manual build of the front end.
        fs::create_dir_all(&dist)?;
        println!("cargo::rerun-if-changed=web/dist");
    }
    embed(&dist, &PathBuf::from(env::var("OUT_DIR")?))?;
    Ok(())
}

/// The latest modification time of a file, or of any file in a folder.
fn modified(path: &Path) -> Option<SystemTime> {
    if path.is_dir() {
        let entries = fs::read_dir(path).ok()?;
        entries.filter_map(|e| modified(&e.ok()?.path())).max()
    } else {
        path.metadata().ok()?.modified().ok()
    }
}

fn build(web: &Path) -> Result<(), String> {
    let installed = modified(&web.join("node_modules/.package-lock.json"));
    if installed < modified(&web.join("package-lock.json")) {
        npm(web, &["ci", "--fetch-retries=1"])?;
    }
    npm(web, &["run", "build"])
}

fn npm(web: &Path, args: &[&str]) -> Result<(), String> {
    let output = Command::new("npm")
        .args(args)
        .current_dir(web)
        .output()
        .map_err(|_| "npm was not found; install Node 20.19 or newer".to_owned())?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let cause = said.lines().skip_while(|line| !line.contains("rror"));
    let cause = cause.take(2).collect::<Vec<_>>().join(" ");
    Err(format!("`npm {}` in web/ failed: {cause}", args.join(" ")))
}

/// Copies the built files to `OUT_DIR`, so that the crate does not depend on `dist` at compile time, and writes their
/// table.
fn embed(dist: &Path, out: &Path) -> io::Result<()> {
    let copy = out.join("playground");
    if copy.exists() {
        fs::remove_dir_all(&copy)?;
    }
    fs::create_dir_all(copy.join("assets"))?;
    let mut paths = Vec::new();
    if dist.join("index.html").exists() {
        paths.push("index.html".to_owned());
        for entry in fs::read_dir(dist.join("assets"))? {
            paths.push(format!("assets/{}", entry?.file_name().display()));
        }
    }
    paths.sort();
    for path in &paths {
        fs::copy(dist.join(path), copy.join(path))?;
    }

    let mut table = String::from("static ASSETS: &[(&str, Content)] = &[\n");
    let include =
        |path: &str| format!("include_bytes!(concat!(env!(\"OUT_DIR\"), \"/playground/{path}\"))");
    for path in paths.iter().filter(|path| !path.ends_with(PACKED)) {
        let packed = format!("{path}{PACKED}");
        // A file and its compressed copy together would be a sixth of the server's binary.
        let content = if paths.contains(&packed) {
            format!("Content::Gzip({})", include(&packed))
        } else {
            format!("Content::Plain({})", include(path))
        };
        writeln!(table, "    ({path:?}, {content}),").map_err(io::Error::other)?;
    }
    table.push_str("];\n");
    fs::write(out.join("playground.rs"), table)
}
