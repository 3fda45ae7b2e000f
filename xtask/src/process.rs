//! Running other programs: with their output passed on, kept, or under a time
//! limit. Nothing that is run here may wait for a person, so none has a stdin.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};

/// Runs a program whose output is the user's to see; an exit code other than 0
/// is an error.
pub fn run(command: &mut Command) -> Result<()> {
    let status = start(command)?
        .wait()
        .with_context(|| format!("waiting for {}", line(command)))?;
    expect_success(command, status)
}

/// Runs a program and returns what it wrote to stdout, without the white space
/// around it. What it wrote to stderr becomes part of the error.
pub fn capture(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("starting {}", line(command)))?;
    if !output.status.success() {
        bail!(
            "{} failed with {}:\n{}{}",
            line(command),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
    }
    let text = String::from_utf8(output.stdout)
        .with_context(|| format!("{} did not write UTF-8", line(command)))?;
    Ok(text.trim().to_owned())
}

/// Runs a program, shows what it writes to stdout and gives every line of that
/// to `observe`. Returns whether its exit code was 0.
pub fn observe(command: &mut Command, mut observe: impl FnMut(&str)) -> Result<bool> {
    command.stdout(Stdio::piped());
    let mut child = start(command)?;
    let mut lines = BufReader::new(child.stdout.take().context("stdout was piped")?);
    let mut bytes = Vec::new();
    let mut out = std::io::stdout().lock();
    while lines.read_until(b'\n', &mut bytes)? > 0 {
        out.write_all(&bytes)?;
        observe(String::from_utf8_lossy(&bytes).trim_end());
        bytes.clear();
    }
    Ok(child.wait()?.success())
}

/// How a program under a time limit ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ending {
    /// It exited with code 0.
    Success,
    /// It exited otherwise, or could not be started.
    Failure,
    /// It was killed, with all its children, when its time was up.
    TimedOut,
}

/// Runs a program silently and kills it and its children after `limit`.
pub fn run_within(command: &mut Command, limit: Duration) -> Result<Ending> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // A group of its own is what can be killed together with its children.
        .process_group(0);
    let Ok(mut child) = command.spawn() else {
        return Ok(Ending::Failure);
    };
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(if status.success() {
                Ending::Success
            } else {
                Ending::Failure
            });
        }
        if Instant::now() >= deadline {
            let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
            kill_process_group(group.context("a process has an id")?, Signal::KILL)
                .with_context(|| format!("killing {}", line(command)))?;
            child.wait()?;
            return Ok(Ending::TimedOut);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A command as one would type it, for messages. Its environment is left out.
pub fn line(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}

fn start(command: &mut Command) -> Result<std::process::Child> {
    command
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("starting {}", line(command)))
}

fn expect_success(command: &Command, status: ExitStatus) -> Result<()> {
    if status.success() {
        Ok(())
    } else {
        bail!("{} failed with {status}", line(command))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_hangs_is_killed_with_its_children() {
        let folder = tempfile::tempdir().unwrap();
        let pid_file = folder.path().join("pid");
        let mut command = Command::new("sh");
        command
            .args(["-c", "sleep 600 & echo $! > \"$PID_FILE\"; wait"])
            .env("PID_FILE", &pid_file);
        // Long enough for the shell to have written the file on any machine: it
        // is read only if it is there.
        let ending = run_within(&mut command, Duration::from_secs(2)).unwrap();
        assert_eq!(ending, Ending::TimedOut);
        if let Some(child) = std::fs::read_to_string(&pid_file)
            .ok()
            .and_then(|pid| pid.trim().parse::<i32>().ok())
        {
            // The signal is on its way when the parent has been waited for, no more.
            let gone = || {
                let state = std::fs::read_to_string(format!("/proc/{child}/stat"));
                state.map_or(true, |state| state.contains(") Z "))
            };
            let deadline = Instant::now() + Duration::from_secs(30);
            while !gone() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(10));
            }
            assert!(gone(), "the child outlived its parent");
        }
    }

    #[test]
    fn an_exit_code_tells_success_from_failure() {
        let within = |script: &str| {
            run_within(
                Command::new("sh").args(["-c", script]),
                Duration::from_secs(600),
            )
            .unwrap()
        };
        assert_eq!(within("exit 0"), Ending::Success);
        assert_eq!(within("exit 3"), Ending::Failure);
        let missing = run_within(
            &mut Command::new("/nonexistent/program"),
            Duration::from_secs(600),
        );
        assert_eq!(missing.unwrap(), Ending::Failure);
    }

    #[test]
    fn a_failure_names_the_command_and_what_it_said() {
        let error = capture(Command::new("sh").args(["-c", "echo no luck >&2; exit 1"]));
        let message = format!("{:#}", error.unwrap_err());
        assert!(message.contains("sh -c"), "{message}");
        assert!(message.contains("no luck"), "{message}");
    }
}
