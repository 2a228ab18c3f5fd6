//! What a person at a terminal sees and does: a line that tells how far it is, and Ctrl-C once or twice.

use std::fs::File;
use std::io::{ErrorKind, PipeReader, PipeWriter, Read, Write};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::pty::{OpenptyResult, openpty};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::{Lab, POLICY, PROBE, has_tool};

const ENDLESS: &str = "scan 198.19.0.0/22 -p 1-1000 -Pn --rate 500pps -o ndjson";

/// The program as the foreground of a terminal of its own, and that terminal's other end: what is written there is typed, what is read
/// there is shown.
fn on_a_terminal(lab: &Lab, args: &str) -> (Child, File) {
    let OpenptyResult { master, slave } = openpty(None, None).unwrap();
    let mut session = Command::new("setsid");
    session.args(["--ctty", "ip", "netns", "exec", &lab.probe, PROBE]).args(args.split_whitespace());
    session.env("PICKET_POLICY__ALLOW", POLICY).env("RUST_LOG", "error").env("TERM", "xterm");
    session.stdin(slave.try_clone().unwrap()).stdout(slave.try_clone().unwrap()).stderr(slave);
    (session.spawn().unwrap(), master.into())
}

/// Reads until `wanted` has been seen, or nobody has the terminal open any more, and returns everything.
fn read_until(terminal: &mut File, wanted: impl Fn(&str) -> bool) -> String {
    let (mut text, mut buf) = (String::new(), [0; 4096]);
    while !wanted(&text) {
        match terminal.read(&mut buf) {
            Ok(len) => text.push_str(&String::from_utf8_lossy(&buf[..len])),
            // Linux says so where the other side is closed.
            Err(error) if error.raw_os_error() == Some(Errno::EIO as i32) => break,
            Err(error) => panic!("{error}: {text}"),
        }
    }
    text
}

#[test]
fn a_terminal_shows_how_far_it_is_and_ctrl_c_ends_it_with_the_coverage() {
    let Some(lab) = Lab::new() else { return };
    if !has_tool("setsid", &["--version"]) {
        return;
    }
    let (mut child, mut terminal) = on_a_terminal(&lab, ENDLESS);
    // The first line says that nothing has been sent, a later one that something has.
    let line = |text: &str| text.matches("\r\x1b[K[").count() >= 4 && text.contains(" pps  ");
    let shown = read_until(&mut terminal, line);
    assert!(shown.contains("[....................] ports 0.") && shown.contains(" answers  "), "{shown}");
    terminal.write_all(b"\x03").unwrap();
    let rest = read_until(&mut terminal, |_| false);
    let status = child.wait().unwrap();
    let lines: Vec<&str> = rest.lines().collect();
    let (first, last) = (&lines[..lines.len().min(5)], lines.last().copied().unwrap_or_default());
    assert_eq!(status.code(), Some(3), "{first:?} ... {last}");
    assert!(first.iter().any(|line| line.ends_with("stopping")), "{first:?} ... {last}");
    // What comes last is the coverage, on a line that the progress line has left.
    let coverage: serde_json::Value =
        serde_json::from_str(last.trim_start_matches("\r\x1b[K")).unwrap_or_else(|error| panic!("{error}: {last}"));
    assert_eq!((&coverage["type"], &coverage["complete"], &coverage["asked"]), (&"coverage".into(), &false.into(), &1_024_000.into()));
}

#[test]
fn a_trace_that_goes_on_is_drawn_in_its_place_and_ctrl_c_leaves_the_table() {
    let Some(lab) = Lab::new() else { return };
    if !has_tool("setsid", &["--version"]) {
        return;
    }
    let (mut child, mut terminal) = on_a_terminal(&lab, "trace 198.18.1.2 --continuous --every 100ms");
    // Each drawing but the first begins by going back over its three lines.
    let shown = read_until(&mut terminal, |text| text.matches("\r\x1b[3A").count() >= 3);
    assert!(shown.contains("198.18.1.2 by icmp, 1 cycle: 1 reached\x1b[K\r\n"), "{shown:?}");
    assert!(shown.contains("\r\x1b[3A198.18.1.2 by icmp, 2 cycles: 2 reached"), "{shown:?}");
    terminal.write_all(b"\x03").unwrap();
    let rest = read_until(&mut terminal, |_| false);
    assert_eq!(child.wait().unwrap().code(), Some(0), "nothing else would have ended it: {rest:?}");
    let last = rest.rsplit("\x1b[J").next().unwrap();
    let lines: Vec<&str> = last.lines().collect();
    let [heading, columns, hop, "", sums] = lines[..] else { panic!("{rest:?}") };
    assert!(heading.starts_with("198.18.1.2 by icmp, ") && columns.starts_with("HOP ADDRESS"), "{last}");
    assert!(hop.starts_with("  1 198.18.1.2") && sums.contains(" paths, "), "{last}");
}

#[test]
fn no_terminal_no_line() {
    let Some(lab) = Lab::new() else { return };
    let run = lab.run("scan 198.19.0.0/28 -p 1-100 -Pn --rate 1kpps -o ndjson");
    assert_eq!((run.code, run.err.as_str()), (Some(0), ""));
}

/// A pipe that holds all it can, so that whoever writes to it waits.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let full = loop {
        if let Err(error) = writer.write(&[b'\n'; 4096]) {
            break error;
        }
    };
    assert_eq!(full.kind(), ErrorKind::WouldBlock);
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    (reader, writer)
}

/// Whether the process does something of its own on SIGINT.
fn listens(child: &Child) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:")).unwrap();
    u64::from_str_radix(caught.trim(), 16).unwrap() & 1 << (Signal::SIGINT as u32 - 1) != 0
}

/// Calls `again` until it returns something; a test that waits longer has failed.
fn wait_for<T>(mut again: impl FnMut() -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = again() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let waited = runtime.block_on(async { tokio::time::timeout(Duration::from_secs(30), found).await });
    waited.expect("it never came")
}

#[test]
fn a_second_ctrl_c_ends_it_whoever_does_not_read_the_results() {
    let Some(lab) = Lab::new() else { return };
    let (mut reader, writer) = full_pipe();
    let mut child = lab.command(ENDLESS).stdout(writer).spawn().unwrap();
    wait_for(|| listens(&child).then_some(()));
    // As somebody who has lost his patience.
    let ended: ExitStatus = wait_for(|| {
        kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
        child.try_wait().unwrap()
    });
    assert_eq!(ended.code(), Some(3));
    let mut text = Vec::new();
    reader.read_to_end(&mut text).unwrap();
    assert!(text.iter().all(|byte| *byte == b'\n'), "it had no room for a word");
}
