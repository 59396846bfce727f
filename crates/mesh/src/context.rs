//! What a call carries along without being told: its deadline and its trace. The server sets it around a handler; the
//! client reads it. A task spawned by a handler takes it along with [`Context::scope`].

use std::time::Duration;

use tokio::time::Instant;

use crate::telemetry::Trace;

tokio::task_local! {
    static CURRENT: Context;
}

/// What a call carries along.
#[derive(Debug, Clone, Copy)]
pub struct Context {
    /// When the answer is no longer waited for. None: whoever calls sets none.
    pub deadline: Option<Instant>,
    /// Where the call belongs.
    pub trace: Trace,
}

impl Context {
    /// A new context for work that no call began: no deadline, a trace of its own.
    pub fn root() -> Self {
        Self { deadline: None, trace: Trace::root() }
    }

    /// The context of the call being handled; a new one outside of any.
    pub fn current() -> Self {
        Self::of_call().unwrap_or_else(Self::root)
    }

    /// The context of the call being handled. None outside of any.
    pub fn of_call() -> Option<Self> {
        CURRENT.try_with(|context| *context).ok()
    }

    /// The same trace, with no deadline: for work that goes on when its caller has stopped waiting.
    pub fn without_deadline(self) -> Self {
        Self { deadline: None, ..self }
    }

    /// The same, with a deadline that is no later than so far.
    pub fn within(self, limit: Duration) -> Self {
        let limit = Instant::now() + limit;
        Self { deadline: Some(self.deadline.map_or(limit, |deadline| deadline.min(limit))), ..self }
    }

    /// Runs a future in this context.
    pub fn scope<F: Future>(self, future: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(self, future)
    }

    /// Does something short in this context.
    pub fn enter<T>(self, work: impl FnOnce() -> T) -> T {
        CURRENT.sync_scope(self, work)
    }
}
