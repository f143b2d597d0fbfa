//! The program, as a separate process.

use std::env;
use std::io::{Seek, Write};
use std::process::{Output, Stdio};

use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};

use super::server::SIGNING_KEY;
use super::wait::within;

/// The program, without the environment variables of this process that could configure it, and with a signing key.
pub(crate) fn gathering(arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gathering"));
    command
        .args(arguments.split_whitespace())
        .kill_on_drop(true);
    for (name, _) in env::vars().filter(|(name, _)| is_ours(name)) {
        command.env_remove(name);
    }
    command.env("GATHERING__AUTH__SIGNING_KEY", SIGNING_KEY);
    // The requests of tests exceed the default rate limits.
    command.env("GATHERING__LIMITS__MODE", "off");
    command
}

fn is_ours(name: &str) -> bool {
    name.starts_with("GATHERING") || matches!(name, "DATABASE_URL" | "REDIS_URL")
}

/// Runs a command to its end.
pub(crate) async fn run(command: &mut Command) -> Output {
    within("the end of a program", command.output())
        .await
        .expect("runs")
}

pub(crate) fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

/// The one-line error of a command, which must fail.
pub(crate) async fn refusal(command: &mut Command) -> String {
    let output = run(command).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(text(&output.stdout), "");
    let line = text(&output.stderr)
        .strip_prefix("error: ")
        .expect("an error");
    assert_eq!(line.lines().count(), 1, "{line}");
    line.to_owned()
}

/// A server process that has printed its address.
pub(crate) struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    pub(crate) url: String,
}

impl Running {
    pub(crate) async fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("runs");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let first = within("the first line of a server", lines.next_line()).await;
        let first = first.expect("is read").expect("a line");
        let url = first
            .strip_prefix("listening on ")
            .expect("an address")
            .to_owned();
        Self { child, lines, url }
    }

    pub(crate) async fn line(&mut self) -> String {
        within("the next line of a server", self.lines.next_line())
            .await
            .expect("is read")
            .expect("a line")
    }

    pub(crate) fn signal(&self, name: &str) {
        signal(&self.child, name);
    }

    /// Its standard error, which must be piped.
    pub(crate) fn errors(&mut self) -> ChildStderr {
        self.child.stderr.take().expect("a pipe")
    }

    /// The id of its process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id().expect("is running")
    }

    pub(crate) async fn ends(&mut self) {
        ends(&mut self.child).await;
    }
}

pub(crate) fn signal(child: &Child, name: &str) {
    let id = child.id().expect("is running").to_string();
    let sent = std::process::Command::new("kill")
        .args(["-s", name, &id])
        .status();
    assert!(sent.expect("kill runs").success());
}

pub(crate) async fn ends(child: &mut Child) {
    let status = within("the end of a process", child.wait()).await;
    assert!(status.expect("has a status").success());
}

/// Gives a command this standard input.
pub(crate) fn typing<'a>(command: &'a mut Command, input: &str) -> &'a mut Command {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(input.as_bytes()).expect("is written");
    file.rewind().expect("is rewound");
    command.stdin(file)
}
