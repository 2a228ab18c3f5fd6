//! The real programs: `picket serve` on free ports, and `picket` as its client, as an operator would use them on one machine.

#![expect(clippy::unwrap_used, reason = "these are tests, their helpers included")]

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Output, Stdio};

use picket_controller::cli::Endpoints;

/// A controller that ends with the test.
struct Controller {
    child: Child,
    stderr: BufReader<ChildStderr>,
    data: PathBuf,
    endpoints: Endpoints,
}

fn picket() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_picket"));
    let ours = std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PICKET_"));
    for (name, _) in ours {
        command.env_remove(name);
    }
    command
}

fn serve(data: &Path) -> Command {
    let mut command = picket();
    command.args([
        "serve",
        "--listen-mqtt",
        "127.0.0.1:0",
        "--listen-api",
        "127.0.0.1:0",
        "--listen-dashboard",
        "127.0.0.1:0",
        "--log-level",
        "warn",
    ]);
    command.env("PICKET_POLICY__ALLOW", "198.18.0.0/15").arg("--data").arg(data);
    command
}

impl Controller {
    fn start(data: &Path) -> Self {
        let ready = data.with_extension("ready");
        let mut child = serve(data).arg("--ready-file").arg(&ready).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut seen = String::new();
        while !seen.contains("next: ") {
            let mut line = String::new();
            assert_ne!(stderr.read_line(&mut line).unwrap(), 0, "the controller ended: {seen}");
            seen.push_str(&line);
        }
        let endpoints = serde_json::from_slice(&std::fs::read(data.join("endpoints.json")).unwrap()).unwrap();
        Self { child, stderr, data: data.to_owned(), endpoints }
    }

    fn run(&self, line: &str) -> Output {
        picket().arg("--data").arg(&self.data).args(line.split_whitespace()).stdin(Stdio::null()).output().unwrap()
    }

    fn ok(&self, line: &str) -> String {
        let output = self.run(line);
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, line: &str) -> serde_json::Value {
        serde_json::from_str(&self.ok(&format!("{line} --json"))).unwrap()
    }

    /// Asks it to end; gives what it said and its exit status.
    fn stop(mut self) -> (String, Option<i32>) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.child.id().cast_signed()), nix::sys::signal::Signal::SIGTERM).unwrap();
        let status = self.child.wait().unwrap();
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut self.stderr, &mut rest).unwrap();
        (rest, status.code())
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn failed(output: &Output) -> (i32, String) {
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn nothing_is_prepared_and_everything_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("picket");
    let controller = Controller::start(&data);
    let mode = |name: &str| std::fs::metadata(data.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(""), mode("admin.token"), mode("ca.key"), mode("signing.key")), (0o700, 0o600, 0o600, 0o600));
    assert!(controller.endpoints.api_port != 0 && controller.endpoints.mqtt_port != 0 && controller.endpoints.dashboard_port != 0);
    assert!(data.with_extension("ready").exists());

    assert!(controller.ok("fleet").starts_with("0 probes"));
    assert_eq!(controller.ok("probe list"), "no probes\n");
    let token = controller.ok("probe add attic --site hq --label top");
    assert!(token.trim().parse::<picket_wire::enrol::Token>().is_ok(), "{token}");
    assert_eq!(controller.json("probe show attic")["state"], "invited");
    assert!(controller.ok("probe revoke attic --reason stolen").contains("revoked"));

    let password = controller.ok("dashboard-user add grafana");
    assert!(password.trim().len() >= 16);
    assert!(controller.ok("dashboard-user list").contains("grafana"));
    controller.ok("dashboard-user remove grafana");
    assert!(controller.ok("db rebuild").contains("0 records"));

    let (said, code) = controller.stop();
    assert_eq!(code, Some(0), "{said}");
    assert!(!data.join("endpoints.json").exists());
}

#[test]
fn jobs_are_submitted_listed_and_cancelled() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(&dir.path().join("picket"));
    let plan = controller.ok("scan 198.18.0.0/30 -p 22,80 --dry-run");
    assert!(plan.starts_with("8 targets on 4 addresses"), "{plan}");
    assert_eq!(controller.ok("job list"), "no jobs\n");
    let job = controller.ok("scan 198.18.0.0/30 -p 22,80 --detach --name first");
    let job = job.trim();
    assert!(controller.ok("job list").contains(job));
    assert!(controller.ok(&format!("job show {job}")).contains("first"));
    assert!(controller.ok(&format!("job cancel {job} --wait")).contains("cancelled"));
    assert_eq!(failed(&controller.run(&format!("job watch {job}"))).0, 3);
    assert_eq!(controller.ok(&format!("results --job {job}")), "nothing that is up or open or unfiltered\n");
    assert_eq!(controller.ok(&format!("results --job {job} --output csv")).lines().count(), 1);
    assert_eq!(controller.ok(&format!("results --job {job} --output ndjson")), "");
    assert_eq!(controller.json(&format!("results --job {job}")), serde_json::json!([]));
}

#[test]
fn ctrl_c_asks_the_job_to_stop() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(&dir.path().join("picket"));
    let mut scan = picket();
    scan.arg("--data").arg(&controller.data).args(["scan", "198.18.0.0/30", "-p", "80", "--progress"]);
    let mut scan = scan.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(scan.stderr.take().unwrap());
    let mut said = String::new();
    // The first line of progress: from here on the scan waits for a probe that never comes.
    while !said.contains("% of") {
        assert_ne!(stderr.read_line(&mut said).unwrap(), 0, "{said}");
    }
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(scan.id().cast_signed()), nix::sys::signal::Signal::SIGINT).unwrap();
    std::io::Read::read_to_string(&mut stderr, &mut said).unwrap();
    let output = scan.wait_with_output().unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(3), "{said}{stdout}");
    assert!(said.contains("asking the job to stop"), "{said}");
    assert!(stdout.contains("is cancelled") && stdout.contains(" asked = "), "{stdout}");
}

#[test]
fn whoever_may_not_is_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(&dir.path().join("picket"));
    let reader = dir.path().join("reader.token");
    std::fs::write(&reader, controller.ok("token add reader --scope read")).unwrap();
    let with = |token: &Path, line: &str| failed(&controller.run(&format!("--token-file {} {line}", token.display())));
    assert_eq!(with(&reader, "fleet").0, 0);
    let (code, said) = with(&reader, "probe add attic");
    assert!(code == 5 && said.contains("needs admin"), "{code} {said}");
    let (code, said) = with(&reader, "scan 198.18.0.1 -p 80");
    assert!(code == 5 && said.contains("needs operate"), "{code} {said}");
    controller.ok("token revoke reader");
    let (code, said) = with(&reader, "fleet");
    assert!(code == 5 && said.contains("not known here"), "{code} {said}");
    let forged = dir.path().join("forged.token");
    std::fs::write(&forged, "forged").unwrap();
    assert_eq!(with(&forged, "fleet").0, 5);

    let (code, said) = failed(&controller.run("scan 192.0.2.1 -p 80 --rate 0pps"));
    assert!(code == 2 && said.contains("never send"), "{code} {said}");
    let (code, said) = failed(&controller.run("job show 0000000000000007"));
    assert!(code == 1 && said.contains("there is no job"), "{code} {said}");
}

#[test]
fn a_controller_that_is_not_there_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let controller = Controller::start(&dir.path().join("picket"));
    let other = Controller::start(&dir.path().join("other"));
    let foreign = failed(&controller.run(&format!("--ca {} fleet", other.data.join("ca.pem").display())));
    assert!(foreign.0 == 4 && foreign.1.contains("not of the authority"), "{foreign:?}");
    let name = format!("https://localhost.localdomain:{}", controller.endpoints.api_port);
    let wrong_name = failed(&controller.run(&format!("--server {name} fleet")));
    assert_eq!(wrong_name.0, 4, "{wrong_name:?}");
    let api = controller.endpoints.api.clone();
    let data = controller.data.clone();
    controller.stop();
    let gone = failed(&picket().arg("--data").arg(&data).args(["--server", &api, "fleet"]).output().unwrap());
    assert!(gone.0 == 4 && gone.1.contains("is `picket serve` running"), "{gone:?}");
    let stopped = failed(&picket().arg("--data").arg(&data).arg("fleet").output().unwrap());
    assert!(stopped.0 == 4 && stopped.1.contains("start it with"), "{stopped:?}");
}

#[test]
fn one_data_directory_has_one_controller_and_survives_it() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("picket");
    let controller = Controller::start(&data);
    let second = failed(&serve(&data).output().unwrap());
    assert!(second.0 == 1 && second.1.contains("another controller runs with the data directory"), "{second:?}");
    let token = std::fs::read(data.join("admin.token")).unwrap();
    controller.ok("probe add attic");
    let job = controller.ok("scan 198.18.0.1 -p 80 --detach");
    controller.stop();
    let controller = Controller::start(&data);
    assert_eq!(std::fs::read(data.join("admin.token")).unwrap(), token);
    assert_eq!(controller.json("probe show attic")["id"], "attic");
    assert!(controller.ok("job list").contains(job.trim()));
}

#[test]
fn a_wrong_start_says_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut command = picket();
    command
        .args(["serve", "--listen-mqtt", "127.0.0.1:0", "--listen-dashboard", "127.0.0.1:0", "--listen-api", &address])
        .arg("--data")
        .arg(dir.path().join("picket"));
    let output = failed(&command.output().unwrap());
    assert!(
        output.0 == 1 && output.1.contains(&format!("listen on {address} for the HTTPS API")) && output.1.contains("hint: "),
        "{output:?}"
    );
    let file = dir.path().join("controller.toml");
    std::fs::write(&file, "[api]\nlissen = ':1'\n").unwrap();
    let output = failed(&picket().arg("serve").arg("--config").arg(&file).output().unwrap());
    assert!(output.0 == 2 && output.1.contains("there is no key `api.lissen`; did you mean `api.listen`?"), "{output:?}");
}
