//! Regenerates `.sqlx`: the query descriptions with which the service is compiled without a database.
//!
//! This module replaces `cargo sqlx prepare`, and needs neither that tool nor an existing database. The migrations of
//! this checkout run on a temporary database, and the query macros describe their queries with this database.
//!
//! The platform (`platform/src`), the slices (`src/slices`) and the rest of the service each have their own directory
//! of descriptions, so that a project can replace the slices together with their descriptions. sqlx first searches the
//! directory that `SQLX_OFFLINE_DIR` in `.cargo/config.toml` names, and then `.sqlx` in the directory of the package.
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use sqlx::{
    Connection as _, PgConnection,
    migrate::{MigrateError, Migrator},
};

use crate::{
    cargo,
    postgres::{self, Purpose, Server},
    project,
};

/// The reason why the query descriptions could not be regenerated or compared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Postgres(#[from] postgres::Error),
    #[error("failed to apply the migrations: {0}")]
    Migrate(#[from] MigrateError),
    #[error("failed to connect to the database: {0}")]
    Connect(#[from] sqlx::Error),
    #[error(transparent)]
    Cargo(#[from] cargo::Error),
    #[error("a query description is not JSON: {0}")]
    Description(#[from] serde_json::Error),
    #[error("failed to use {}: {source}", .path.display())]
    File { path: PathBuf, source: io::Error },
}

/// The directories of descriptions, each with the sources whose queries it describes. The `src` entry excludes the
/// sources of the other entries.
const CACHES: [(&str, &str); 3] =
    [("platform/.sqlx", "platform/src"), (FIRST_CACHE, "src/slices"), (".sqlx", "src")];

/// The directory of `SQLX_OFFLINE_DIR`, in which sqlx searches first, for every package.
const FIRST_CACHE: &str = "src/slices/.sqlx";

/// Paths of description files that must be added (`missing`), updated (`changed`) or deleted (`unused`).
#[derive(Debug, Default)]
pub struct Difference {
    pub missing: Vec<String>,
    pub changed: Vec<String>,
    pub unused: Vec<String>,
}

impl Difference {
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.changed.is_empty() && self.unused.is_empty()
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let groups = [("missing", &self.missing), ("changed", &self.changed), ("unused", &self.unused)];
        for (what, names) in groups {
            for name in names {
                writeln!(f, "  {what}: {name}")?;
            }
        }
        Ok(())
    }
}

/// Regenerates the description of every query, and returns the differences from the committed descriptions. Updates the
/// committed descriptions unless `check` is set.
pub async fn run(check: bool, progress: &dyn Fn(&str)) -> Result<Difference, Error> {
    let server = Server::find_or_start(Purpose::Tests, progress).await?;
    let database = format!("{}_prepare_{}", project::identifier(), std::process::id());
    server.create_database(&database, None).await?;
    let described = describe(server.admin_url_of(&database).as_str(), progress).await;
    server.drop_database(&database).await?;
    server.stop().await?;

    let described = by_cache(&described?)?;
    let mut committed = Descriptions::new();
    for (cache, _) in CACHES {
        let files = read(&project::root().join(cache))?;
        committed.extend(files.into_iter().map(|(name, content)| (format!("{cache}/{name}"), content)));
    }
    let difference = compare(&committed, &described);
    if !check {
        write(&described, &difference)?;
    }
    Ok(difference)
}

/// Assigns each description to every directory of [`CACHES`] whose sources contain its query. If a macro concatenates a
/// query from several literals, no source contains the query, and the description is stored in [`FIRST_CACHE`].
fn by_cache(described: &Descriptions) -> Result<Descriptions, Error> {
    let mut sorted = Descriptions::new();
    for (cache, directory) in CACHES {
        let others: Vec<_> =
            CACHES.iter().map(|(_, other)| *other).filter(|other| *other != directory).collect();
        let mut sources = String::new();
        read_sources(&project::root().join(directory), &others, &mut sources)?;
        for (name, content) in described {
            let description: Description = serde_json::from_slice(content)?;
            let quoted = description.query.replace('"', "\\\"");
            if sources.contains(&description.query) || sources.contains(&quoted) {
                sorted.insert(format!("{cache}/{name}"), content.clone());
            }
        }
    }
    let names: BTreeSet<_> =
        sorted.keys().filter_map(|path| path.rsplit('/').next()).map(ToOwned::to_owned).collect();
    let composed = described.iter().filter(|(name, _)| !names.contains(*name));
    let composed: Vec<_> =
        composed.map(|(name, content)| (format!("{FIRST_CACHE}/{name}"), content.clone())).collect();
    sorted.extend(composed);
    Ok(sorted)
}

#[derive(Deserialize)]
struct Description {
    query: String,
}

/// Appends the Rust sources below `directory` to `sources`, except the directories in `others`.
fn read_sources(directory: &Path, others: &[&str], sources: &mut String) -> Result<(), Error> {
    let failed = |source| Error::File { path: directory.to_owned(), source };
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_dir() {
            if !others.iter().any(|other| path == project::root().join(other)) {
                read_sources(&path, others, sources)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push_str(&std::fs::read_to_string(&path).map_err(failed)?);
        }
    }
    Ok(())
}

type Descriptions = BTreeMap<String, Vec<u8>>;

async fn describe(database_url: &str, progress: &dyn Fn(&str)) -> Result<Descriptions, Error> {
    progress("applying the migrations");
    let migrator = Migrator::new(project::root().join("migrations")).await?;
    let mut connection = PgConnection::connect(database_url).await?;
    migrator.run(&mut connection).await?;
    connection.close().await?;

    // A separate build directory within `target`. The environment variables below would otherwise cause a recompilation
    // in `target` itself.
    let usual =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| project::root().join("target"), PathBuf::from);
    let target =
        std::path::absolute(&usual).map_err(|source| Error::File { path: usual, source })?.join("sqlx");
    let queries = target.join("queries").join(project::name());
    let failed = |source| Error::File { path: queries.clone(), source };
    if queries.exists() {
        std::fs::remove_dir_all(&queries).map_err(failed)?;
    }
    std::fs::create_dir_all(&queries).map_err(failed)?;

    progress("expanding every query against the database (the first run also compiles the dependencies)");
    let (target, directory) = (target.display().to_string(), queries.display().to_string());
    let environment = [
        ("CARGO_TARGET_DIR", target.as_str()),
        ("DATABASE_URL", database_url),
        ("SQLX_OFFLINE", "false"),
        ("SQLX_OFFLINE_DIR", directory.as_str()),
    ];
    // The macros must be expanded again to describe their queries, because cargo does not detect a changed database.
    let packages = ["--package", "platform", "--package", project::name()];
    cargo::run(&[&["clean", "--quiet"], &packages[..]].concat(), &environment).await?;
    // Only the libraries contain query macros. The command checks the libraries of all packages, so that it resolves
    // the same features as clippy in CI. Clippy runs in the same build directory, so both commands share the compiled
    // dependencies.
    cargo::run(&["check", "--lib"], &environment).await?;
    read(&queries)
}

fn read(directory: &Path) -> Result<Descriptions, Error> {
    let mut descriptions = Descriptions::new();
    if !directory.exists() {
        return Ok(descriptions);
    }
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| Error::File { path, source }
    };
    for entry in std::fs::read_dir(directory).map_err(failed(directory))? {
        let path = entry.map_err(failed(directory))?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with("query-") {
            descriptions.insert(name, std::fs::read(&path).map_err(failed(&path))?);
        }
    }
    Ok(descriptions)
}

fn compare(committed: &Descriptions, described: &Descriptions) -> Difference {
    let mut difference = Difference::default();
    for (name, content) in described {
        match committed.get(name) {
            None => difference.missing.push(name.clone()),
            Some(old) if old != content => difference.changed.push(name.clone()),
            Some(_) => {}
        }
    }
    difference.unused = committed.keys().filter(|name| !described.contains_key(*name)).cloned().collect();
    difference
}

fn write(described: &Descriptions, difference: &Difference) -> Result<(), Error> {
    let directory = project::root();
    let failed = |source| Error::File { path: directory.clone(), source };
    for (cache, _) in CACHES {
        std::fs::create_dir_all(directory.join(cache)).map_err(failed)?;
    }
    for name in &difference.unused {
        std::fs::remove_file(directory.join(name)).map_err(failed)?;
    }
    for name in difference.missing.iter().chain(&difference.changed) {
        let content = described.get(name).map(Vec::as_slice).unwrap_or_default();
        std::fs::write(directory.join(name), content).map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptions(entries: &[(&str, &str)]) -> Descriptions {
        entries.iter().map(|(name, content)| ((*name).to_owned(), content.as_bytes().to_vec())).collect()
    }

    #[test]
    fn every_kind_of_difference_is_named() {
        let committed = descriptions(&[("same", "1"), ("changed", "1"), ("unused", "1")]);
        let described = descriptions(&[("same", "1"), ("changed", "2"), ("missing", "1")]);
        let difference = compare(&committed, &described);
        assert_eq!(difference.to_string(), "  missing: missing\n  changed: changed\n  unused: unused\n");
        assert!(compare(&committed, &committed).is_empty());
    }
}
