//! What commands print. `println!` and `eprintln!` of this crate are these: those of the standard library panic when
//! the reader has gone, as in `meterd usage acme | head -1`.
//!
//! After its reader has gone, standard output takes everything and writes nothing, and the command ends without a word,
//! with the exit code that a shell gives to a program that SIGPIPE has ended, as `cat` is.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;
use std::sync::OnceLock;

/// 128 and SIGPIPE.
const READER_GONE: u8 = 141;

/// Why standard output takes no more.
static FAILED: OnceLock<io::Error> = OnceLock::new();

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

/// Prints a line to standard error. If nobody reads it, nobody misses it.
pub fn note(text: Arguments<'_>) {
    drop(writeln!(io::stderr(), "{text}"));
}

/// Whether nothing more can be printed, so that a command may end.
pub fn has_ended() -> bool {
    FAILED.get().is_some()
}

/// The end of a command: with its own exit code, unless what it printed did not arrive.
pub fn end(code: ExitCode) -> ExitCode {
    write(Write::flush);
    match FAILED.get() {
        None => code,
        Some(error) if error.kind() == ErrorKind::BrokenPipe => ExitCode::from(READER_GONE),
        Some(error) => {
            note(format_args!("error: cannot write to standard output: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn write(print: impl FnOnce(&mut io::StdoutLock<'static>) -> io::Result<()>) {
    if !has_ended()
        && let Err(error) = print(&mut io::stdout().lock())
    {
        drop(FAILED.set(error));
    }
}
