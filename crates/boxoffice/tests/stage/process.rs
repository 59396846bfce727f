//! A process of a test.

use std::{
    io::{BufRead, BufReader, Read},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use mesh_test::wait_until;

/// How long a process may take to start or to end, several at once on a small machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A process; killed when the test ends.
pub(crate) struct Process {
    child: Child,
    pub(crate) output: Lines,
    pub(crate) errors: Lines,
}

/// The lines that came out of a process so far.
#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<Mutex<Vec<String>>>);

impl Lines {
    fn of(pipe: impl Read + Send + 'static) -> Self {
        let lines = Self::default();
        let sink = lines.clone();
        thread::spawn(move || {
            for line in BufReader::new(pipe).lines().map_while(Result::ok) {
                sink.get().push(line);
            }
        });
        lines
    }

    pub(crate) fn get(&self) -> MutexGuard<'_, Vec<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Process {
    pub(crate) fn start(command: &mut Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let (output, errors) =
            (Lines::of(child.stdout.take().unwrap()), Lines::of(child.stderr.take().unwrap()));
        Self { child, output, errors }
    }

    /// Sends a signal, such as `-KILL`.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// How it ended. None: it runs.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for its end; how it ended.
    pub(crate) async fn end(&mut self) -> ExitStatus {
        wait_until("the process to end", PATIENCE, async || match self.child.try_wait().unwrap() {
            Some(status) => Ok(status),
            None => Err(format!("it runs: {:?}; {:?}", *self.output.get(), *self.errors.get())),
        })
        .await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
