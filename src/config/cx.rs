//! What compiling carries along: where things stand, what was found, where relative paths start.

use super::problem::Problem;
use super::yaml::{Kind, Node, Pos, Scalar};
use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
};

/// One file while it is compiled.
#[derive(Debug)]
pub(super) struct Cx {
    pub(super) file: String,
    /// Relative paths start here: the directory of the main file.
    pub(super) base: PathBuf,
    places: HashMap<String, Pos>,
    /// What was written where `${ENV}` was expanded.
    written: HashMap<String, String>,
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<Problem>,
    /// Keys that could not be decoded: what misses them is no news.
    faulty: Vec<String>,
    /// Every file that was read besides (secrets, certificates), for the watch.
    pub(super) read: Vec<PathBuf>,
}

/// Larger secrets are a mistake.
const MAX_SECRET: u64 = 64 << 10;

impl Cx {
    pub(super) fn new(
        file: &str,
        base: &Path,
        root: &Node,
        problems: Vec<Problem>,
        warnings: Vec<Problem>,
    ) -> Cx {
        let (mut places, mut written) = (HashMap::new(), HashMap::new());
        root.walk(&mut |node| {
            places.insert(node.path.clone(), node.report);
            if let Kind::Scalar(Scalar {
                written: Some(text), ..
            }) = &node.kind
            {
                written.insert(node.path.clone(), text.clone());
            }
        });
        Cx {
            file: file.to_owned(),
            base: base.to_owned(),
            places,
            written,
            faulty: problems.iter().map(|problem| problem.key.clone()).collect(),
            problems,
            warnings,
            read: Vec::new(),
        }
    }

    /// The place of a key, or of the nearest thing around it.
    fn pos(&self, path: &str) -> Pos {
        let mut path = path;
        loop {
            if let Some(pos) = self.places.get(path) {
                return *pos;
            }
            match path.rfind(['.', '[']) {
                Some(end) => path = &path[..end],
                None => return self.places.get("").copied().unwrap_or_default(),
            }
        }
    }

    fn problem(&self, path: &str, what: impl Into<String>, hint: impl Into<String>) -> Problem {
        let pos = self.pos(path);
        Problem {
            file: self.file.clone(),
            line: pos.line,
            column: pos.column,
            key: path.to_owned(),
            what: what.into(),
            hint: hint.into(),
        }
    }

    /// Whether something at or below a key could not be read.
    pub(super) fn is_faulty(&self, path: &str) -> bool {
        self.faulty.iter().any(|faulty| {
            let rest = faulty.strip_prefix(path);
            rest.is_some_and(|rest| path.is_empty() || rest.is_empty() || rest.starts_with(['.', '[']))
        })
    }

    /// A fault, unless it is but a consequence of one that was already found at or below the same key.
    pub(super) fn error(&mut self, path: &str, what: impl Into<String>, hint: impl Into<String>) {
        if !self.is_faulty(path) {
            let problem = self.problem(path, what, hint);
            self.problems.push(problem);
        }
    }

    pub(super) fn warn(&mut self, path: &str, what: impl Into<String>, hint: impl Into<String>) {
        let warning = self.problem(path, what, hint);
        self.warnings.push(warning);
    }

    /// That `serve` cannot do something yet.
    pub(super) fn not_yet(&self, path: &str, what: &str) -> Problem {
        self.problem(
            path,
            format!("{what}: understood, but `serin serve` cannot do this yet"),
            "remove it to serve; `serin rehearse` runs it",
        )
    }

    /// The place of a key, for faults that are found after compiling.
    pub(super) fn here(&self, path: &str) -> Problem {
        self.problem(path, "", "")
    }

    /// `file:line` of a key, for faults that name two places.
    pub(super) fn place(&self, path: &str) -> String {
        format!("{}:{}", self.file, self.pos(path).line)
    }

    /// What was written at a key whose value comes from the environment.
    pub(super) fn environment_at(&self, path: &str) -> Option<&str> {
        self.written.get(path).map(String::as_str)
    }

    /// A path as it was written, made absolute.
    pub(super) fn resolve(&self, path: &str) -> PathBuf {
        self.base.join(path)
    }

    /// The trimmed content of a secret's file.
    pub(super) fn secret_file(&mut self, path: &str, file: &str) -> Option<String> {
        let file = self.resolve(file);
        self.read.push(file.clone());
        match read_bounded(&file, MAX_SECRET) {
            Ok(text) if text.trim().is_empty() => {
                self.error(
                    path,
                    format!("the secret file `{}` is empty", file.display()),
                    "put the secret into it",
                );
                None
            }
            Ok(text) => Some(text.trim().to_owned()),
            Err(error) => {
                let what = format!("cannot read the secret file `{}`: {error}", file.display());
                self.error(
                    path,
                    what,
                    "relative paths start at the configuration's directory",
                );
                None
            }
        }
    }
}

/// Reads a text file that is not larger than `most`; never blocks on a pipe or device.
pub(super) fn read_bounded(path: &Path, most: u64) -> io::Result<String> {
    let metadata = fs::metadata(path)?;
    if metadata.is_dir() {
        return Err(io::Error::other("it is a directory"));
    }
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    if metadata.len() > most {
        return Err(io::Error::other(format!("it has more than {most} bytes")));
    }
    let bytes = fs::read(path)?;
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let line = error.as_bytes()[..valid].split(|byte| *byte == b'\n').count();
        io::Error::other(format!("it is not UTF-8 (line {line})"))
    })
}
