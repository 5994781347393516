//! Output of commands. This crate replaces `println!` and `eprintln!` because those of the standard library panic when
//! the reader of a pipe has exited, as in `meterd usage acme | head -1`.
//!
//! After the reader has exited, output is discarded. The command ends without a message, and with the exit code that a
//! shell reports for a program that SIGPIPE ended.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;
use std::sync::OnceLock;

/// Exit code after a broken pipe: 128 + SIGPIPE.
const BROKEN_PIPE: u8 = 141;

/// The first error of writing to standard output.
static WRITE_ERROR: OnceLock<io::Error> = OnceLock::new();

/// Prints a line to standard output.
macro_rules! println {
    ($($text:tt)*) => { $crate::print::line(format_args!($($text)*)) };
}

/// Prints a line to standard error.
macro_rules! eprintln {
    ($($text:tt)*) => { $crate::print::note(format_args!($($text)*)) };
}

/// Prints a line to standard output.
pub fn line(text: Arguments<'_>) {
    write(|stdout| stdout.write_fmt(text).and_then(|()| stdout.write_all(b"\n")));
}

/// Prints bytes to standard output.
pub fn bytes(bytes: &[u8]) {
    write(|stdout| stdout.write_all(bytes));
}

/// Prints a line to standard error. Ignores errors.
pub fn note(text: Arguments<'_>) {
    drop(writeln!(io::stderr(), "{text}"));
}

/// Whether standard output has failed. A command can stop then, because further output is discarded.
pub fn has_failed() -> bool {
    WRITE_ERROR.get().is_some()
}

/// Flushes standard output. Returns `code`, or another exit code if the output could not be written.
pub fn finish(code: ExitCode) -> ExitCode {
    write(Write::flush);
    match WRITE_ERROR.get() {
        None => code,
        Some(error) if error.kind() == ErrorKind::BrokenPipe => ExitCode::from(BROKEN_PIPE),
        Some(error) => {
            note(format_args!("error: cannot write to standard output: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn write(print: impl FnOnce(&mut io::StdoutLock<'static>) -> io::Result<()>) {
    if !has_failed()
        && let Err(error) = print(&mut io::stdout().lock())
    {
        drop(WRITE_ERROR.set(error));
    }
}
