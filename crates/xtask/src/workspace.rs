//! The workspace as cargo and the disk tell of it: packages, what they depend on, and their sources.

use std::{
    env, fmt, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::rust_source::SourceFile;

/// Something that breaks a rule.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    /// Where: a file, with a line if there is one.
    pub(crate) place: String,
    /// The rule, what breaks it, and how to mend it.
    pub(crate) rule: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.rule)
    }
}

/// The whole workspace.
pub(crate) struct Workspace {
    /// Its top directory.
    pub(crate) root: PathBuf,
    /// Its members.
    pub(crate) packages: Vec<Package>,
}

/// A member of the workspace.
pub(crate) struct Package {
    /// Its name, such as `svc-booking`.
    pub(crate) name: String,
    /// Its manifest, relative to the workspace.
    pub(crate) manifest: String,
    /// The other members it depends on.
    pub(crate) dependencies: Vec<Dependency>,
    /// The files below its `src`.
    pub(crate) sources: Vec<SourceFile>,
    /// Every `.rs` file of it, `tests/` and `benches/` included, relative to the workspace.
    pub(crate) rust_files: Vec<String>,
}

impl Package {
    /// The name of the service that this package is: `booking` for `svc-booking`.
    pub(crate) fn service(&self) -> Option<&str> {
        self.name.strip_prefix("svc-")
    }
}

/// That one member depends on another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Dependency {
    /// The other's name.
    pub(crate) name: String,
    /// Whether only its tests do.
    pub(crate) for_tests: bool,
}

impl Workspace {
    /// Reads the workspace that the current directory is in.
    pub(crate) fn find() -> Result<Self> {
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo)
            .args(["metadata", "--no-deps", "--format-version", "1"])
            .output()
            .context("cargo metadata did not run")?;
        ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
        let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata is not JSON")?;
        let root = PathBuf::from(text(&metadata, "workspace_root")?);
        let members = packages_of(&metadata)?;
        let names: Vec<String> = members.iter().map(|(name, _)| name.clone()).collect();
        let mut packages = Vec::new();
        for (name, package) in members {
            let manifest = PathBuf::from(text(package, "manifest_path")?);
            let directory = manifest.parent().context("a manifest without a directory")?;
            let mut rust_files = Vec::new();
            collect_files(directory, ".rs", &mut rust_files)?;
            rust_files.sort();
            packages.push(Package {
                name,
                manifest: relative(&root, &manifest),
                dependencies: dependencies_of(package, &names)?,
                sources: read_sources(&root, &directory.join("src"), &rust_files)?,
                rust_files: rust_files.iter().map(|file| relative(&root, file)).collect(),
            });
        }
        Ok(Self { root, packages })
    }
}

fn packages_of(metadata: &Value) -> Result<Vec<(String, &Value)>> {
    let packages = metadata["packages"].as_array().context("cargo metadata lists no packages")?;
    packages.iter().map(|package| Ok((text(package, "name")?, package))).collect()
}

/// Those dependencies of a package that are members of the workspace.
fn dependencies_of(package: &Value, members: &[String]) -> Result<Vec<Dependency>> {
    let listed = package["dependencies"].as_array().context("a package without a list of dependencies")?;
    let mut dependencies = Vec::new();
    for dependency in listed {
        let name = text(dependency, "name")?;
        if members.contains(&name) {
            dependencies.push(Dependency { name, for_tests: dependency["kind"] == "dev" });
        }
    }
    Ok(dependencies)
}

fn text(value: &Value, key: &str) -> Result<String> {
    Ok(value[key].as_str().with_context(|| format!("cargo metadata says no {key}"))?.to_owned())
}

fn relative(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).display().to_string()
}

/// The files below a directory whose names end so.
pub(crate) fn collect_files(directory: &Path, ending: &str, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            // Build output may lie below a package; it isn't ours to judge.
            if name != "target" && !name.starts_with('.') {
                collect_files(&path, ending, files)?;
            }
        } else if name.ends_with(ending) {
            files.push(path);
        }
    }
    Ok(())
}

fn read_sources(root: &Path, src: &Path, rust_files: &[PathBuf]) -> Result<Vec<SourceFile>> {
    let mut sources = Vec::new();
    for file in rust_files {
        if let Ok(within) = file.strip_prefix(src) {
            let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
            sources.push(SourceFile::parse(&relative(root, file), &within.display().to_string(), &text));
        }
    }
    Ok(sources)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_members_count_as_dependencies_and_tests_are_told_apart() {
        let package = json!({"dependencies": [
            {"name": "mesh", "kind": null},
            {"name": "tokio", "kind": null},
            {"name": "mesh-test", "kind": "dev"},
            {"name": "boxoffice-proto", "kind": "build"},
        ]});
        let members = ["mesh", "mesh-test", "boxoffice-proto"].map(str::to_owned);
        let expected = [("mesh", false), ("mesh-test", true), ("boxoffice-proto", false)]
            .map(|(name, for_tests)| Dependency { name: name.to_owned(), for_tests });
        assert_eq!(dependencies_of(&package, &members).expect("well-formed"), expected);
    }

    #[test]
    fn this_workspace_is_found_with_its_sources() {
        let workspace = Workspace::find().expect("cargo metadata runs");
        let xtask = workspace.packages.iter().find(|package| package.name == "xtask").expect("this package");
        assert_eq!(xtask.manifest, "crates/xtask/Cargo.toml");
        assert!(xtask.rust_files.contains(&"crates/xtask/src/workspace.rs".to_owned()));
        assert!(xtask.sources.iter().any(|source| source.path == "crates/xtask/src/main.rs"));
    }
}
