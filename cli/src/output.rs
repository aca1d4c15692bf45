//! How the binary speaks: errors, exit codes, tables. Frozen by tests, since scripts read them.

use std::fmt;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use anyhow::Context;
use clap::ValueEnum;

/// Form of what a command prints to stdout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A table for people.
    #[default]
    Table,
    /// JSON for programs; its members stay.
    Json,
}

/// Nothing runs on the state folder: exit code 3, so that a script can tell it from a failure.
#[derive(Debug)]
pub(crate) struct NotRunning(pub(crate) String);

impl fmt::Display for NotRunning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotRunning {}

/// Writes to stdout. A reader that has read enough (`strata crds | head`) is no failure.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("cannot write the output"),
        _ => Ok(()),
    }
}

/// Prints what failed and why, cause by cause, to stderr.
pub(crate) fn error(failure: &anyhow::Error) {
    let _ = writeln!(std::io::stderr(), "error: {}", one_line(failure));
}

/// The chain of causes in one line. A cause that its predecessor already quotes is left out.
fn one_line(failure: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in failure.chain() {
        let cause = cause.to_string();
        if text.contains(&cause) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&cause);
    }
    text
}

/// 1 for a failure, 3 when nothing runs. Wrong arguments exit with 2 before this.
pub(crate) fn exit_code(failure: &anyhow::Error) -> ExitCode {
    ExitCode::from(if failure.is::<NotRunning>() { 3 } else { 1 })
}

/// Lays rows out in columns two spaces apart, under their headings.
pub(crate) fn table<const N: usize>(headings: [&str; N], rows: &[[String; N]]) -> String {
    let width = |i: usize| {
        rows.iter().map(|row| row[i].chars().count()).chain([headings[i].chars().count()]).max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in std::iter::once(headings.map(str::to_owned)).chain(rows.iter().cloned()) {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, w)| format!("{cell:w$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_told_once() {
        let inner = anyhow::anyhow!("permission denied");
        let failure = inner.context("cannot read a.yaml: permission denied").context("up failed");
        assert_eq!(one_line(&failure), "up failed: cannot read a.yaml: permission denied");
    }

    #[test]
    fn exit_codes_tell_failures_apart() {
        let code = |failure: anyhow::Error| format!("{:?}", exit_code(&failure));
        assert_eq!(code(anyhow::anyhow!("x")), format!("{:?}", ExitCode::from(1)));
        assert_eq!(code(NotRunning("x".into()).into()), format!("{:?}", ExitCode::from(3)));
    }

    #[test]
    fn columns_line_up() {
        let rows = [["a".to_owned(), "1".to_owned()], ["long".to_owned(), "22".to_owned()]];
        insta::assert_snapshot!(table(["NAME", "N"], &rows), @r"
        NAME  N
        a     1
        long  22
        ");
    }
}
