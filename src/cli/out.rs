//! Where commands write. A reader that has gone (`| head`) is no failure: the rest is dropped.

use std::io::{self, IsTerminal, Write};

/// Standard output and standard error, or what a test reads instead.
pub struct Out {
    result: Box<dyn Write>,
    aside: Box<dyn Write>,
    terminal: bool,
    closed: bool,
}

impl std::fmt::Debug for Out {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Out")
            .field("terminal", &self.terminal)
            .field("closed", &self.closed)
            .finish_non_exhaustive()
    }
}

impl Out {
    /// The process' own.
    pub fn standard() -> Out {
        Out {
            terminal: io::stdout().is_terminal(),
            ..Out::to(Box::new(io::stdout()), Box::new(io::stderr()))
        }
    }

    /// To these two; not a terminal.
    pub fn to(result: Box<dyn Write>, aside: Box<dyn Write>) -> Out {
        Out {
            result,
            aside,
            terminal: false,
            closed: false,
        }
    }

    /// Whether somebody looks at a terminal.
    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Whether nobody reads any more.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Writes what was asked for.
    pub fn print(&mut self, text: impl AsRef<str>) {
        if self.closed {
            return;
        }
        let written = self.result.write_all(text.as_ref().as_bytes());
        self.closed = written.and_then(|()| self.result.flush()).is_err();
    }

    /// Writes a line of what was asked for.
    pub fn line(&mut self, text: impl AsRef<str>) {
        self.print(format!("{}\n", text.as_ref()));
    }

    /// Writes a line beside it: progress, warnings, errors.
    pub fn note(&mut self, text: impl AsRef<str>) {
        // There is nobody left to tell when this fails.
        let _ = writeln!(self.aside, "{}", text.as_ref());
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.closed && self.result.write_all(bytes).is_err() {
            self.closed = true;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.closed && self.result.flush().is_err() {
            self.closed = true;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Gone;
    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }

    #[test]
    fn a_reader_that_has_gone_is_no_failure() {
        let mut out = Out::to(Box::new(Gone), Box::new(Gone));
        out.line("one");
        assert!(out.is_closed());
        out.line("two");
        out.note("three");
        assert!(writeln!(out, "four").is_ok());
    }
}
