//! Programs run inside a lab: started in a namespace, watched through their output, ended with their guard.
//!
//! Invariant: a [`Proc`] and everything it started is dead when the guard has been dropped, however it was stopped before.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;

use super::Namespace;

/// How often files and children are looked at while waiting for a condition.
const LOOK: Duration = Duration::from_millis(5);

/// What to run: program, arguments, environment. Can be run many times.
#[derive(Clone, Debug)]
pub struct Run {
    program: OsString,
    args: Vec<OsString>,
    envs: Vec<(OsString, OsString)>,
    cwd: Option<PathBuf>,
    label: Option<String>,
    input: Vec<u8>,
}

impl Run {
    /// A program by name or path.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self { program: program.as_ref().to_owned(), args: Vec::new(), envs: Vec::new(), cwd: None, label: None, input: Vec::new() }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args<I>(mut self, args: I) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.envs.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Sets the working directory.
    #[must_use]
    pub fn cwd(mut self, dir: impl AsRef<Path>) -> Self {
        self.cwd = Some(dir.as_ref().to_owned());
        self
    }

    /// Names the run's output files and messages; the program's file name by default.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Gives it something to read on standard input, which is empty otherwise.
    #[must_use]
    pub fn input(mut self, text: impl AsRef<[u8]>) -> Self {
        self.input = text.as_ref().to_owned();
        self
    }

    /// Runs it by way of another program that ends in running it, as `nice -n -15` or `taskset -c 1` do.
    #[must_use]
    pub fn under<I>(mut self, wrapper: I) -> Self
    where
        I: IntoIterator,
        I::Item: AsRef<OsStr>,
    {
        let label = self.name();
        let mut words = wrapper.into_iter().map(|word| word.as_ref().to_owned());
        if let Some(program) = words.next() {
            let inner = std::mem::replace(&mut self.program, program);
            self.args = words.chain([inner]).chain(self.args).collect();
            self.label = Some(label);
        }
        self
    }

    fn name(&self) -> String {
        self.label.clone().unwrap_or_else(|| {
            Path::new(&self.program).file_name().map_or_else(|| "program".to_owned(), |name| name.to_string_lossy().into_owned())
        })
    }

    /// Starts it in a namespace: output into files, in a process group of its own.
    pub(super) fn spawn(&self, namespace: &Namespace) -> Result<Proc> {
        let name = self.name();
        let stem = format!("{}-{name}", namespace.short());
        let stdout_file = namespace.lab().next_file(&format!("{stem}.out"));
        let stderr_file = stdout_file.with_extension("err");
        let create = |file: &Path| File::create(file).with_context(|| format!("make {}", file.display()));
        let mut command = Command::new(super::find_program("ip").context("no program ip on this machine")?);
        // `ip netns exec` replaces itself by the program, so the child's id is the program's.
        command.args(["netns", "exec", namespace.name()]).arg(&self.program).args(&self.args);
        // Variables with this prefix are the test run's own (where the programs are, what must not be skipped), and would be
        // configuration to a program under test.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"PICKET_")) {
            command.env_remove(name);
        }
        command.envs(self.envs.iter().map(|(name, value)| (name, value)));
        if let Some(dir) = &self.cwd {
            command.current_dir(dir);
        }
        if self.input.is_empty() {
            command.stdin(Stdio::null());
        } else {
            let file = stdout_file.with_extension("in");
            std::fs::write(&file, &self.input).with_context(|| format!("write {}", file.display()))?;
            command.stdin(File::open(&file).with_context(|| format!("open {}", file.display()))?);
        }
        command.stdout(create(&stdout_file)?).stderr(create(&stderr_file)?).process_group(0);
        let child = command.spawn().with_context(|| format!("start {name} in {namespace}"))?;
        Ok(Proc { child, status: None, name: stem, stdout_file, stderr_file })
    }
}

/// What a program that has ended said.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Its exit status.
    pub status: ExitStatus,
    /// All of its standard output.
    pub stdout: String,
    /// All of its standard error.
    pub stderr: String,
}

impl Finished {
    /// Its standard output, if it ended with success.
    ///
    /// # Errors
    /// When it did not; the error holds its standard error.
    pub fn ok(self) -> Result<String> {
        if !self.status.success() {
            bail!("ended with {}: {}{}", self.status, self.stderr, self.stdout);
        }
        Ok(self.stdout)
    }
}

/// A running program of the lab. Dropping it kills its process group.
#[derive(Debug)]
pub struct Proc {
    child: Child,
    status: Option<ExitStatus>,
    name: String,
    stdout_file: PathBuf,
    stderr_file: PathBuf,
}

impl Proc {
    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// All standard output so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        read_lossy(&self.stdout_file)
    }

    /// All standard error so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        read_lossy(&self.stderr_file)
    }

    /// The file that standard output goes to; there as long as the lab is.
    #[must_use]
    pub fn stdout_file(&self) -> &Path {
        &self.stdout_file
    }

    /// The file that standard error goes to; there as long as the lab is.
    #[must_use]
    pub fn stderr_file(&self) -> &Path {
        &self.stderr_file
    }

    /// Waits until a line of standard output or standard error contains `pattern`, and returns the first such line.
    ///
    /// # Errors
    /// When the program ends without having said it, or the deadline passes; the error holds the end of its output.
    pub fn wait_for_line(&mut self, pattern: &str, deadline: Duration) -> Result<String> {
        self.wait_for(&format!("a line with {pattern:?}"), deadline, |stdout, stderr| {
            stdout.lines().chain(stderr.lines()).find(|line| line.contains(pattern)).map(str::to_owned)
        })
    }

    /// Waits until `find` gives something for standard output and standard error so far. `what` names it in the error.
    ///
    /// # Errors
    /// When the program ends before, or the deadline passes.
    pub fn wait_for<T>(&mut self, what: &str, deadline: Duration, mut find: impl FnMut(&str, &str) -> Option<T>) -> Result<T> {
        let start = Instant::now();
        loop {
            // The state is read before the output: what a program said last is seen even if it ended meanwhile.
            let ended = self.try_wait()?;
            if let Some(found) = find(&self.stdout(), &self.stderr()) {
                return Ok(found);
            }
            if let Some(status) = ended {
                bail!("{}: ended with {status} before {what}{}", self.name, self.tails());
            }
            if start.elapsed() > deadline {
                bail!("{}: no {what} within {deadline:?}{}", self.name, self.tails());
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Its exit status, if it has ended. What it had started and left behind ends with it.
    ///
    /// # Errors
    /// When the kernel refuses to say.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        if self.status.is_none() {
            // Its group is ended before it is reaped: until then its id cannot have become another's.
            let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
            let state = waitid(Id::Pid(self.pid()), flags).with_context(|| format!("wait for {}", self.name))?;
            if state != WaitStatus::StillAlive {
                let _ = killpg(self.pid(), Signal::SIGKILL);
                self.status = self.child.try_wait().with_context(|| format!("wait for {}", self.name))?;
            }
        }
        Ok(self.status)
    }

    /// True while it runs (or is stopped).
    #[must_use]
    pub fn running(&mut self) -> bool {
        matches!(self.try_wait(), Ok(None))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When the deadline passes first.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.try_wait()? {
                return Ok(status);
            }
            if start.elapsed() > deadline {
                bail!("{}: still running after {deadline:?}{}", self.name, self.tails());
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Waits for its end and gives all it said.
    ///
    /// # Errors
    /// When the deadline passes first.
    pub fn finish(mut self, deadline: Duration) -> Result<Finished> {
        let status = self.wait(deadline)?;
        Ok(Finished { status, stdout: self.stdout(), stderr: self.stderr() })
    }

    /// Sends a signal to the program alone; one that has ended already is left in peace.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.try_wait()?.is_some() {
            return Ok(());
        }
        kill(self.pid(), signal).with_context(|| format!("send {signal} to {}", self.name))
    }

    /// Kills it at once (SIGKILL), with everything it started, and waits until it is gone.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.try_wait()? {
            return Ok(status);
        }
        // The group, so that helpers of the program die too. Between fork and exec the group may not exist yet.
        let _ = killpg(self.pid(), Signal::SIGKILL);
        let _ = self.child.kill();
        let status = self.child.wait().with_context(|| format!("wait for {}", self.name))?;
        self.status = Some(status);
        Ok(status)
    }

    /// Asks it to end (SIGTERM) and waits.
    ///
    /// # Errors
    /// When it is still running at the deadline.
    pub fn terminate(&mut self, deadline: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait(deadline)
    }

    /// Freezes it (SIGSTOP) until [`Proc::thaw`].
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn freeze(&mut self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Lets it run again (SIGCONT).
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn thaw(&mut self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// Its resident memory in KiB, from `/proc`.
    ///
    /// # Errors
    /// When it has ended.
    pub fn resident_kib(&self) -> Result<u64> {
        let file = format!("/proc/{}/status", self.id());
        let text = std::fs::read_to_string(&file).with_context(|| format!("read {file} of {}", self.name))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).with_context(|| format!("no VmRSS in {file}"))?;
        line.trim().trim_end_matches(" kB").parse().with_context(|| format!("VmRSS of {file}: {line:?}"))
    }

    /// The processor time it has used, user and system, from `/proc` (whole clock ticks).
    ///
    /// # Errors
    /// When it has ended.
    pub fn processor_time(&self) -> Result<Duration> {
        let file = format!("/proc/{}/stat", self.id());
        let text = std::fs::read_to_string(&file).with_context(|| format!("read {file} of {}", self.name))?;
        let rest = text.rsplit_once(')').with_context(|| format!("no name in {file}"))?.1;
        let ticks: u64 = rest.split_whitespace().skip(11).take(2).map(|field| field.parse::<u64>().unwrap_or(0)).sum();
        let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)
            .context("sysconf CLK_TCK")?
            .and_then(|n| u64::try_from(n).ok())
            .filter(|n| *n > 0)
            .unwrap_or(100);
        Ok(Duration::from_millis(ticks * 1000 / per_second))
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a process id fits i32"))
    }

    fn tails(&self) -> String {
        let mut text = String::new();
        for (what, file) in [("stdout", &self.stdout_file), ("stderr", &self.stderr_file)] {
            let all = read_lossy(file);
            // A progress line that is drawn again and again is one very long line.
            let from = all.ceil_char_boundary(all.len().saturating_sub(6_000));
            let lines: Vec<&str> = all[from..].lines().collect();
            if !lines.is_empty() {
                text.push_str(&format!("\n--- end of {what} of {} ---\n", self.name));
                text.push_str(&lines[lines.len().saturating_sub(40)..].join("\n"));
            }
        }
        text
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        let before = self.try_wait();
        let _ = self.kill();
        if std::thread::panicking() {
            let state = match before {
                Ok(Some(status)) => match status.signal() {
                    Some(signal) => format!("had died of signal {signal}"),
                    None => format!("had ended with {status}"),
                },
                _ => "was running".to_owned(),
            };
            eprintln!("lab: {} {state}{}", self.name, self.tails());
        }
    }
}

fn read_lossy(file: &Path) -> String {
    std::fs::read(file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}
