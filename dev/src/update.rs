//! Merges a newer revision of the template into a generated project.
//!
//! `cargo generate` renders the template twice with the project's answers: at the revision that the project has, and at
//! the new one. Git applies the difference between the two renderings to the project, so the project's own edits and
//! renames stay. `docs/decisions/13-updates-by-a-three-way-merge.md` states the alternatives.
use std::{
    collections::HashSet,
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use crate::cargo;

/// The file with the answers to the template's questions and, after the first update, the template's revision.
const RECORD: &str = ".template.toml";

/// Directory of the template's starter files, which a project may have in place of the example.
const STARTER: &str = "template/starter/";

/// Command that installs the renderer. The template's `README.md` and `docs/template.md` name the same version.
pub const INSTALL_COMMAND: &str = "cargo install --locked cargo-generate@0.23.8";

/// The reason why an update failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("failed to run {program}: {source}")]
    Start { program: &'static str, source: io::Error },
    #[error("{command} failed: {output}")]
    Failed { command: String, output: String },
    #[error("failed to use {}: {source}", .path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{} is missing: run this command at the root of a generated project", .0.display())]
    NoRecord(PathBuf),
    #[error("{RECORD} has no {0}")]
    NoAnswer(&'static str),
    #[error("the working tree has changes: commit or stash them first")]
    Changes,
    #[error("cargo-generate is missing: {INSTALL_COMMAND}")]
    NoGenerator,
    #[error("no template revision resembles the commit that added {RECORD}: name the revision with --since")]
    NoOrigin,
}

/// The result of a merge.
#[derive(Debug)]
pub enum Merge {
    /// The project has this revision already.
    UpToDate,
    /// All changes are merged, in one commit on a new branch.
    Clean { branch: String },
    /// The lines in which Git reports the conflicts. The working tree contains conflict markers.
    Conflicts { branch: String, conflicts: Vec<String> },
}

/// Merges the revision `to` of the template `from` (a URL or a path) into the project of the current directory, on a
/// new branch. `since` is the template's revision that the project has. Without `since`, `.template.toml` or the
/// template's history determines this revision.
pub fn run(from: &str, to: &str, since: Option<&str>, progress: &dyn Fn(&str)) -> Result<Merge, Error> {
    let current = Git { directory: PathBuf::from(".") };
    let root = PathBuf::from(current.run(["rev-parse", "--show-toplevel"])?);
    let project = Git { directory: root.clone() };
    let path = root.join(RECORD);
    let record = fs::read_to_string(&path).map_err(|_| Error::NoRecord(path))?;
    if !project.run(["status", "--porcelain"])?.is_empty() {
        return Err(Error::Changes);
    }
    if cargo_generate(["--version"]).is_err() {
        return Err(Error::NoGenerator);
    }

    // The directory is within `target`, so Git ignores its files.
    let work = root.join("target/update");
    remove(&work)?;
    fs::create_dir_all(&work).map_err(failed(&work))?;
    let template = Git { directory: work.join("template.git") };
    let merged = current
        .run([
            "clone".as_ref(),
            "--quiet".as_ref(),
            "--bare".as_ref(),
            from.as_ref(),
            template.directory.as_os_str(),
        ])
        .and_then(|_| {
            Update { project, template, record, work: work.clone() }.merge(from, to, since, progress)
        });
    remove(&work)?;
    merged
}

/// The state of an update.
struct Update {
    project: Git,
    template: Git,
    record: String,
    work: PathBuf,
}

impl Update {
    fn merge(
        &self,
        from: &str,
        to: &str,
        since: Option<&str>,
        progress: &dyn Fn(&str),
    ) -> Result<Merge, Error> {
        let revision =
            |name: &str| self.template.run(["rev-parse", "--verify", &format!("{name}^{{commit}}")]);
        let new = revision(to)?;
        let old = if let Some(known) = since.or_else(|| value(&self.record, "revision")) {
            revision(known)?
        } else {
            progress("searching the template's history for the revision of this project");
            self.origin(&new)?
        };
        if old == new {
            return Ok(Merge::UpToDate);
        }
        progress(&format!("rendering the template at {} and at {}", short(&old), short(&new)));
        let base = self.render(&old, "old")?;
        let rendered = self.render(&new, "new")?;
        self.renumber(&base, &rendered, progress)?;
        fs::write(base.join(RECORD), &self.record).map_err(failed(&base))?;
        fs::write(rendered.join(RECORD), with_revision(&self.record, &new)).map_err(failed(&rendered))?;

        let base = self.commit(&base, None, &format!("Template at {old}"))?;
        let message =
            format!("Update from the template\n\nRevisions {} to {} of {from}.", short(&old), short(&new));
        let update = self.commit(&rendered, Some(&base), &message)?;
        let branch = format!("template-{}", short(&new));
        self.project.run(["switch", "--quiet", "--create", &branch])?;
        let picked = self.project.output(["cherry-pick", &update])?;
        if picked.status.success() {
            return Ok(Merge::Clean { branch });
        }
        let output = text(&picked.stdout);
        let mut conflicts: Vec<_> = output.lines().filter(|line| line.starts_with("CONFLICT")).collect();
        if conflicts.is_empty() {
            let command = "git cherry-pick".to_owned();
            return Err(Error::Failed { command, output: text(&picked.stderr) });
        }
        if self.resolve_lock() {
            conflicts.retain(|line| !line.ends_with(" in Cargo.lock"));
        }
        if conflicts.is_empty() {
            self.project.run(["commit", "--quiet", "--no-edit", "--cleanup=strip"])?;
            return Ok(Merge::Clean { branch });
        }
        Ok(Merge::Conflicts { branch, conflicts: conflicts.into_iter().map(ToOwned::to_owned).collect() })
    }

    /// Resolves a conflict in Cargo.lock: takes the template's versions, and lets Cargo add the project's own crates.
    /// Returns whether the conflict is resolved, which is impossible while a manifest has conflicts.
    fn resolve_lock(&self) -> bool {
        let git = |arguments: &[&str]| self.project.run(arguments).is_ok();
        if !git(&["checkout", "--theirs", "--", "Cargo.lock"]) {
            return false;
        }
        if update_lock(&self.project.directory).is_err() {
            git(&["checkout", "--merge", "--", "Cargo.lock"]);
            return false;
        }
        git(&["add", "Cargo.lock"])
    }

    /// Returns the template's revision whose files are most similar to the commit that added the record. Of equally
    /// similar revisions, the oldest is selected. A revision that is too old only causes conflicts, but a revision that
    /// is too new silently loses changes of the template.
    fn origin(&self, newest: &str) -> Result<String, Error> {
        let added = self.project.run(["log", "--diff-filter=A", "--format=%H", "--", RECORD])?;
        let first = added.lines().last().ok_or(Error::NoOrigin)?;
        let files = self.project.run(["ls-tree", "-r", first])?;
        let files: HashSet<_> = files.lines().collect();
        let mut best = (0, String::new());
        for revision in self.template.run(["rev-list", "--topo-order", newest])?.lines() {
            let listed = self.template.run(["ls-tree", "-r", revision])?;
            let equal =
                listed.lines().filter(|line| files.contains(line.replacen(STARTER, "", 1).as_str())).count();
            if equal >= best.0 {
                best = (equal, revision.to_owned());
            }
        }
        if best.0 * 2 < files.len() {
            return Err(Error::NoOrigin);
        }
        Ok(best.1)
    }

    /// Renders a revision of the template with the project's answers. Returns the directory.
    fn render(&self, revision: &str, directory: &str) -> Result<PathBuf, Error> {
        let name = value(&self.record, "name").ok_or(Error::NoAnswer("name"))?;
        let destination = self.work.join(directory);
        fs::create_dir_all(&destination).map_err(failed(&destination))?;
        let [git, values] = [self.template.directory.clone(), self.project.directory.join(RECORD)];
        let [git, values, into] = [&git, &values, &destination].map(|path| path.display().to_string());
        cargo_generate([
            "--git",
            &git,
            "--revision",
            revision,
            "--name",
            name,
            "--destination",
            &into,
            "--template-values-file",
            &values,
            "--silent",
            "--vcs",
            "none",
            "--no-workspace",
        ])?;
        let rendered = destination.join(name);
        // Replaces the template's name in Cargo.lock with the project's name, as the project's first build did.
        update_lock(&rendered)?;
        Ok(rendered)
    }

    /// Numbers the added migrations after the project's migrations, because two migrations must not have the same
    /// number. `serve` compares only the newest number, so it would not detect that an added migration with a lower
    /// number is missing.
    fn renumber(&self, old: &Path, new: &Path, progress: &dyn Fn(&str)) -> Result<(), Error> {
        let directory = Path::new("migrations");
        let mut next = names(&self.project.directory.join(directory))?
            .iter()
            .filter_map(|name| number(name))
            .max()
            .unwrap_or(0)
            + 1;
        let before = names(&old.join(directory))?;
        for name in names(&new.join(directory))?.into_iter().filter(|name| !before.contains(name)) {
            let Some(number_of_added) = number(&name) else { continue };
            if number_of_added < next {
                let renamed =
                    format!("{next:04}{}", name.trim_start_matches(|digit: char| digit.is_ascii_digit()));
                progress(&format!("the migration {name} of the template becomes {renamed}"));
                let path = new.join(directory).join(&name);
                fs::rename(&path, new.join(directory).join(renamed)).map_err(failed(&path))?;
            }
            next = next.max(number_of_added) + 1;
        }
        Ok(())
    }

    /// Commits the files of a directory in the project's repository, on no branch. Returns the commit's hash.
    fn commit(&self, files: &Path, parent: Option<&str>, message: &str) -> Result<String, Error> {
        let repository = self.project.run(["rev-parse", "--absolute-git-dir"])?;
        let git = |arguments: &[&str]| {
            let mut command = Command::new("git");
            command
                .current_dir(files)
                .envs([("GIT_DIR", Path::new(&repository)), ("GIT_WORK_TREE", files)])
                .env("GIT_INDEX_FILE", self.work.join("index"))
                .args(arguments);
            succeeded(&mut command, "git")
        };
        git(&["read-tree", "--empty"])?;
        git(&["add", "--all", "--force", "."])?;
        let tree = git(&["write-tree"])?;
        let parent: Vec<_> = parent.into_iter().flat_map(|parent| ["-p", parent]).collect();
        git(&[&["commit-tree", &tree, "-m", message], &parent[..]].concat())
    }
}

/// A repository.
struct Git {
    directory: PathBuf,
}

impl Git {
    fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new("git");
        // The search for conflicts depends on the English messages.
        command.env("LC_ALL", "C").arg("-C").arg(&self.directory).args(arguments);
        command
    }

    fn output<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<Output, Error> {
        self.command(arguments).output().map_err(|source| Error::Start { program: "git", source })
    }

    /// Returns the standard output, without the newline at its end.
    fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Result<String, Error> {
        succeeded(&mut self.command(arguments), "git")
    }
}

/// Runs `cargo generate`, which requires an author's name in the environment even if the answers contain one.
fn cargo_generate<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Result<String, Error> {
    let mut command = Command::new(cargo::program());
    command
        .env_clear()
        .envs(cargo::user_environment())
        .env("CARGO_NAME", "update")
        .arg("generate")
        .args(arguments);
    succeeded(&mut command, "cargo")
}

/// Adapts Cargo.lock to the manifests. Locked versions stay.
fn update_lock(directory: &Path) -> Result<String, Error> {
    let mut command = Command::new(cargo::program());
    command.env_clear().envs(cargo::user_environment()).current_dir(directory);
    succeeded(command.args(["update", "--workspace", "--quiet"]), "cargo")
}

/// Runs a command, and returns its standard output without the newline at its end.
fn succeeded(command: &mut Command, program: &'static str) -> Result<String, Error> {
    let output = command.stdin(Stdio::null()).output().map_err(|source| Error::Start { program, source })?;
    if output.status.success() {
        return Ok(text(&output.stdout).trim_end().to_owned());
    }
    let arguments = command.get_args().map(|argument| argument.to_string_lossy().into_owned());
    let command = [program.to_owned()].into_iter().chain(arguments).collect::<Vec<_>>().join(" ");
    Err(Error::Failed { command, output: text(&[output.stdout, output.stderr].concat()) })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}

fn failed(path: &Path) -> impl Fn(io::Error) -> Error {
    move |source| Error::File { path: path.to_owned(), source }
}

fn remove(directory: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(directory)(error)),
        _ => Ok(()),
    }
}

/// Returns the names of a directory's files, sorted.
fn names(directory: &Path) -> Result<Vec<String>, Error> {
    let entries = fs::read_dir(directory)
        .and_then(Iterator::collect::<io::Result<Vec<_>>>)
        .map_err(failed(directory))?;
    let mut names: Vec<_> =
        entries.iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    Ok(names)
}

/// Returns the number at the beginning of a migration's file name.
fn number(name: &str) -> Option<u64> {
    name.split_once('_')?.0.parse().ok()
}

/// Returns the text of a key in the record.
fn value<'a>(record: &'a str, key: &str) -> Option<&'a str> {
    record.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = \"")?.strip_suffix('"'))
}

fn with_revision(record: &str, revision: &str) -> String {
    let revision = format!("revision = \"{revision}\"\n");
    let others = record.lines().filter(|line| !line.starts_with("revision = "));
    others.chain([revision.as_str()]).collect::<Vec<_>>().join("\n")
}

fn short(revision: &str) -> &str {
    revision.get(..8).unwrap_or(revision)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by a panic")]
mod tests {
    use super::*;

    #[test]
    fn the_record_keeps_its_answers_and_one_revision() {
        let record = "[values]\nname = \"ledger\"\nexample = true\n";
        let updated = with_revision(&with_revision(record, "old"), "new");
        assert_eq!(updated, format!("{record}revision = \"new\"\n"));
        assert_eq!(value(&updated, "revision"), Some("new"));
        assert_eq!(value(&updated, "name"), Some("ledger"));
        assert_eq!(value(record, "revision"), None);
    }
}
