//! Where Picket's programs are, and how they are called. The one place that knows their command lines.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::Run;

/// The directory that holds the programs.
#[derive(Clone, Debug)]
pub struct Programs {
    dir: PathBuf,
}

impl Programs {
    /// Finds it: `PICKET_BIN_DIR`, else where Cargo puts programs, seen from the running test, bench or program.
    ///
    /// # Errors
    /// When `PICKET_BIN_DIR` is no directory or the running program's own place is unknown.
    pub fn locate() -> Result<Self> {
        if let Some(dir) = std::env::var_os("PICKET_BIN_DIR") {
            // Programs are started from other working directories.
            let given = PathBuf::from(dir);
            let dir = std::path::absolute(&given).with_context(|| format!("PICKET_BIN_DIR={}", given.display()))?;
            ensure!(dir.is_dir(), "PICKET_BIN_DIR={} is not a directory", dir.display());
            return Ok(Self { dir });
        }
        Self::beside_this()
    }

    fn beside_this() -> Result<Self> {
        let own = std::env::current_exe().context("find the running program")?;
        // target/debug/deps/lab-0123 for tests and benches, target/debug/picket-demo for programs.
        let mut dir = own.parent().context("the running program has no directory")?;
        if dir.file_name().is_some_and(|name| name == "deps" || name == "examples") {
            dir = dir.parent().context("the running program has no directory")?;
        }
        Ok(Self { dir: dir.to_owned() })
    }

    /// The path of one program.
    ///
    /// # Errors
    /// When it is not there; the error says how to build it.
    pub fn path(&self, name: &str) -> Result<PathBuf> {
        let file = self.dir.join(name);
        if !file.is_file() {
            bail!("no program {}: build it (`cargo build --workspace --bins`) or set PICKET_BIN_DIR", file.display());
        }
        Ok(file)
    }

    /// The lab's listening program. It is no part of what `PICKET_BIN_DIR` has to hold: Cargo builds it with the tests.
    ///
    /// # Errors
    /// When it is not built.
    pub(super) fn lab_listen() -> Result<PathBuf> {
        let name = "picket-lab-listen";
        Self::beside_this()?.path(name).or_else(|_| Self::locate()?.path(name))
    }

    /// The controller: `picket serve`.
    ///
    /// # Errors
    /// When it is not built.
    pub fn serve(&self, config: &Path, data: &Path) -> Result<Run> {
        let run = Run::new(self.path("picket")?).label("picket-serve").env("RUST_LOG", log_level());
        Ok(run.arg("serve").arg("--config").arg(config).arg("--data").arg(data))
    }

    /// An operator's command: `picket --server URL ...`.
    ///
    /// # Errors
    /// When it is not built.
    pub fn picket(&self, server: &str, args: &[&str]) -> Result<Run> {
        Ok(Run::new(self.path("picket")?).label("picket").args(["--server", server]).args(args))
    }

    /// An operator's command on the controller's own machine: `picket --data DIR ...`.
    ///
    /// # Errors
    /// When it is not built.
    pub fn operator(&self, data: &Path, args: &[&str]) -> Result<Run> {
        Ok(Run::new(self.path("picket")?).label("picket").arg("--data").arg(data).args(args))
    }

    /// Enrols a probe: `picket-probe enrol`.
    ///
    /// # Errors
    /// When it is not built.
    pub fn probe_enrol(&self, token: &str, data: &Path) -> Result<Run> {
        let run = Run::new(self.path("picket-probe")?).label("probe-enrol").env("RUST_LOG", log_level());
        Ok(run.args(["enrol", token]).arg("--data").arg(data))
    }

    /// Runs a probe: `picket-probe run`.
    ///
    /// # Errors
    /// When it is not built.
    pub fn probe_run(&self, config: &Path, data: &Path) -> Result<Run> {
        let run = Run::new(self.path("picket-probe")?).label("probe-run").env("RUST_LOG", log_level());
        Ok(run.arg("run").arg("--config").arg(config).arg("--data").arg(data))
    }

    /// Any other command of the probe's program, for one `picket-probe scan`.
    ///
    /// # Errors
    /// When it is not built.
    pub fn probe(&self, args: &[&str]) -> Result<Run> {
        Ok(Run::new(self.path("picket-probe")?).label("probe").env("RUST_LOG", log_level()).args(args))
    }
}

/// What the programs log: `PICKET_LAB_LOG`, else `info`.
fn log_level() -> String {
    std::env::var("PICKET_LAB_LOG").unwrap_or_else(|_| "info".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_not_built_says_how() {
        let programs = Programs { dir: "/nowhere".into() };
        let error = programs.serve(Path::new("c"), Path::new("d")).unwrap_err().to_string();
        assert!(error.contains("/nowhere/picket") && error.contains("cargo build"), "{error}");
    }

    #[test]
    fn seen_from_a_test_the_programs_are_one_directory_up() {
        // Where PICKET_BIN_DIR is set, it decides.
        if std::env::var_os("PICKET_BIN_DIR").is_none() {
            assert_ne!(Programs::locate().unwrap().dir.file_name().unwrap(), "deps");
        }
    }
}
