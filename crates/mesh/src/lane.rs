//! A lane for hot writes: a task that takes whatever waits, commits it at once, and gives each caller its own answer
//! after the commit. It never lingers: a lone job is a batch of one.
//!
//! A commit costs a disk flush whether it carries one job or sixty-four, so under load a lane does many times the work
//! of a connection a job.

use std::{
    future::Future,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use boxoffice_proto::common::v1::ErrorReason;
use futures_util::FutureExt;
use opentelemetry::KeyValue;
use tokio::sync::{mpsc, oneshot};

use crate::{context::Context, failure::Failure, metrics};

/// The most jobs in a batch.
pub const BATCH_LIMIT: usize = 64;
/// The most jobs that wait; more are refused.
const QUEUE_LIMIT: usize = 4096;

/// How long a batch may take: far longer than one does, even redone job by job. A connection of Postgres that goes silent is
/// given up long before.
const BATCH_PATIENCE: Duration = Duration::from_secs(30);

/// What a lane does with a batch.
pub trait Work: Send + 'static {
    /// What a caller wants done.
    type Job: Send + 'static;
    /// What a caller gets.
    type Answer: Send + 'static;

    /// The service that works, and what the lane is called in its metrics.
    const NAME: (&'static str, &'static str);

    /// Does the jobs and commits them together; the answers are in the order of the jobs. A job that is refused changes
    /// nothing and does not stop the others.
    fn run(
        &mut self,
        jobs: Vec<Self::Job>,
    ) -> impl Future<Output = Vec<Result<Self::Answer, Failure>>> + Send;
}

struct Ticket<W: Work> {
    job: W::Job,
    /// The call that it is for.
    call: Option<Context>,
    answer: oneshot::Sender<Result<W::Answer, Failure>>,
}

/// Where jobs are handed in.
pub struct Lane<W: Work> {
    queue: mpsc::Sender<Ticket<W>>,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    batches: AtomicU64,
    jobs: AtomicU64,
}

impl<W: Work> Clone for Lane<W> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), counts: Arc::clone(&self.counts) }
    }
}

impl<W: Work> Lane<W> {
    /// Starts a lane. It ends when its last handle is dropped, after the jobs handed in.
    pub fn start(mut work: W) -> Self {
        let (queue, mut tickets) = mpsc::channel::<Ticket<W>>(QUEUE_LIMIT);
        let counts = Arc::new(Counts::default());
        let lane = Self { queue, counts: Arc::clone(&counts) };
        let name = std::any::type_name::<W>();
        let labels = [KeyValue::new("service", W::NAME.0), KeyValue::new("lane", W::NAME.1)];
        let batch_jobs = metrics::meter()
            .u64_histogram("lane.batch.jobs")
            .with_description("Jobs that a lane committed at once")
            .with_boundaries(vec![1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0])
            .build()
            .bind(&labels);
        lane.watch_waiting(labels);
        tokio::spawn(async move {
            let mut batch = Vec::with_capacity(BATCH_LIMIT);
            while tickets.recv_many(&mut batch, BATCH_LIMIT).await > 0 {
                // Whoever is about to hand a job in does so first; if nobody is, no time passes.
                tokio::task::yield_now().await;
                while batch.len() < BATCH_LIMIT
                    && let Ok(ticket) = tickets.try_recv()
                {
                    batch.push(ticket);
                }
                // Whoever stopped waiting before their job began needs no work. Those in a batch are in different traces; what is
                // done for all of them is part of the first one's.
                let mut call = None;
                let (jobs, callers): (Vec<_>, Vec<_>) = batch
                    .drain(..)
                    .filter(|ticket| !ticket.answer.is_closed())
                    .map(|ticket| {
                        call = call.or(ticket.call);
                        (ticket.job, ticket.answer)
                    })
                    .unzip();
                if jobs.is_empty() {
                    continue;
                }
                let call = call.unwrap_or_else(Context::root);
                counts.batches.fetch_add(1, Ordering::Relaxed);
                counts.jobs.fetch_add(jobs.len() as u64, Ordering::Relaxed);
                batch_jobs.record(jobs.len() as u64);
                // A panic is told to those of this batch, by dropping their callers; the lane goes on.
                let work = AssertUnwindSafe(call.without_deadline().scope(work.run(jobs))).catch_unwind();
                let answers = match tokio::time::timeout(BATCH_PATIENCE, work).await {
                    Ok(Ok(answers)) => answers,
                    Ok(Err(_)) => {
                        tracing::error!(lane.work = name, "a batch panicked; its message stands above");
                        continue;
                    }
                    Err(_) => {
                        tracing::error!(lane.work = name, "the database went silent during a batch");
                        callers.iter().map(|_| Err(silence())).collect()
                    }
                };
                debug_assert_eq!(answers.len(), callers.len());
                for (caller, answer) in callers.into_iter().zip(answers) {
                    let _ = caller.send(answer);
                }
            }
            tracing::info!(
                lane.work = name,
                lane.batches = counts.batches.load(Ordering::Relaxed),
                lane.jobs = counts.jobs.load(Ordering::Relaxed),
                "a lane ended"
            );
        });
        lane
    }

    fn watch_waiting(&self, labels: [KeyValue; 2]) {
        let queue = self.queue.downgrade();
        metrics::meter()
            .u64_observable_gauge("lane.waiting.jobs")
            .with_description("Jobs that wait for a lane")
            .with_callback(move |observer| {
                if let Some(queue) = queue.upgrade() {
                    observer.observe((queue.max_capacity() - queue.capacity()) as u64, &labels);
                }
            })
            .build();
    }

    /// Has a job done, and waits for its answer. If the caller stops waiting, a job that has not begun is left out, one
    /// that has is finished.
    ///
    /// # Errors
    /// Whatever the work answers; `OVERLOADED` if too many jobs wait; `INTERNAL` if the lane broke.
    pub async fn submit(&self, job: W::Job) -> Result<W::Answer, Failure> {
        let (answer, answered) = oneshot::channel();
        self.queue.try_send(Ticket { job, call: Context::of_call(), answer }).map_err(
            |error| match error {
                mpsc::error::TrySendError::Full(_) => {
                    Failure::new(ErrorReason::Overloaded, "too many writes are waiting")
                        .retry_after(Duration::from_secs(1))
                }
                mpsc::error::TrySendError::Closed(_) => Failure::internal("the lane has ended"),
            },
        )?;
        answered.await.unwrap_or_else(|_| Err(Failure::internal("the lane broke during the job")))
    }

    /// How many batches were committed so far, and how many jobs they carried.
    pub fn counts(&self) -> (u64, u64) {
        (self.counts.batches.load(Ordering::Relaxed), self.counts.jobs.load(Ordering::Relaxed))
    }
}

/// What the callers of a batch hear that did not end: whether it was written is not known.
fn silence() -> Failure {
    Failure::new(ErrorReason::DatabaseUnavailable, "the database did not answer in time")
        .retry_after(Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use futures_util::future::{join_all, poll_immediate};
    use tokio::sync::Semaphore;

    use super::*;
    use crate::telemetry::TraceId;

    /// A job that breaks its batch.
    const POISON: u32 = 1000;
    /// A job that never ends.
    const ENDLESS: u32 = 2000;

    /// Doubles numbers; refuses odd ones. Tells the sizes of its batches.
    struct Doubling(mpsc::UnboundedSender<usize>);

    impl Work for Doubling {
        type Job = u32;
        type Answer = u32;

        const NAME: (&'static str, &'static str) = ("test", "doubling");

        async fn run(&mut self, jobs: Vec<u32>) -> Vec<Result<u32, Failure>> {
            let _ = self.0.send(jobs.len());
            tokio::task::yield_now().await;
            assert!(!jobs.contains(&POISON), "poisoned, as the test wants");
            if jobs.contains(&ENDLESS) {
                std::future::pending::<()>().await;
            }
            let answer =
                |job: u32| if job.is_multiple_of(2) { Ok(job * 2) } else { Err(Failure::internal("odd")) };
            jobs.into_iter().map(answer).collect()
        }
    }

    #[tokio::test]
    async fn each_caller_gets_its_own_answer_and_batches_form() {
        let (sizes, mut seen) = mpsc::unbounded_channel();
        let lane = Lane::start(Doubling(sizes));
        let answers = join_all((0..200).map(|job| lane.submit(job))).await;
        for (job, answer) in (0..200).zip(answers) {
            assert_eq!(answer.ok(), (job % 2 == 0).then_some(job * 2));
        }
        let mut sizes = Vec::new();
        while let Ok(size) = seen.try_recv() {
            sizes.push(size);
        }
        assert_eq!(sizes.iter().sum::<usize>(), 200);
        assert!(sizes.len() < 10 && sizes.iter().all(|size| *size <= BATCH_LIMIT), "{sizes:?}");
        assert_eq!(lane.counts(), (sizes.len() as u64, 200));
    }

    #[tokio::test]
    async fn a_caller_that_left_costs_no_work() {
        let (sizes, mut seen) = mpsc::unbounded_channel();
        let lane = Lane::start(Doubling(sizes));
        let abandoned = poll_immediate(lane.submit(2)).await;
        assert!(abandoned.is_none());
        assert_eq!(lane.submit(4).await.ok(), Some(8));
        assert_eq!(seen.recv().await, Some(1));
    }

    /// Tells the batches it begins, and those it finishes, one for each permit of the gate.
    struct Gated {
        begun: mpsc::UnboundedSender<Vec<u32>>,
        finished: mpsc::UnboundedSender<Vec<u32>>,
        gate: Arc<Semaphore>,
    }

    impl Work for Gated {
        type Job = u32;
        type Answer = ();

        const NAME: (&'static str, &'static str) = ("test", "gated");

        async fn run(&mut self, jobs: Vec<u32>) -> Vec<Result<(), Failure>> {
            let _ = self.begun.send(jobs.clone());
            self.gate.acquire().await.expect("never closed").forget();
            let answers = jobs.iter().map(|_| Ok(())).collect();
            let _ = self.finished.send(jobs);
            answers
        }
    }

    #[tokio::test]
    async fn who_leaves_the_queue_is_left_out_and_a_batch_that_has_begun_is_finished() {
        let ((begun, mut has_begun), (finished, mut has_finished)) =
            (mpsc::unbounded_channel(), mpsc::unbounded_channel());
        let gate = Arc::new(Semaphore::new(0));
        let lane = Lane::start(Gated { begun, finished, gate: Arc::clone(&gate) });
        let mut callers: Vec<_> = (0..4).map(|job| Box::pin(lane.submit(job))).collect();
        assert!(poll_immediate(&mut callers[0]).await.is_none());
        assert_eq!(has_begun.recv().await, Some(vec![0]));
        for caller in &mut callers[1..] {
            assert!(poll_immediate(caller).await.is_none(), "it waits for the next batch");
        }
        drop(callers.drain(..3));
        gate.add_permits(2);
        callers.remove(0).await.unwrap();
        assert_eq!(has_begun.recv().await, Some(vec![3]));
        assert_eq!((has_finished.recv().await, has_finished.recv().await), (Some(vec![0]), Some(vec![3])));
    }

    /// Answers in which trace it works.
    struct Traced;

    impl Work for Traced {
        type Job = ();
        type Answer = TraceId;

        const NAME: (&'static str, &'static str) = ("test", "traced");

        async fn run(&mut self, jobs: Vec<()>) -> Vec<Result<TraceId, Failure>> {
            jobs.iter().map(|()| Ok(Context::current().trace.id())).collect()
        }
    }

    #[tokio::test]
    async fn a_batch_is_worked_on_in_the_trace_of_its_first_call() {
        let lane = Lane::start(Traced);
        let [left, first, second] = [(); 3].map(|()| Context::root());
        assert!(poll_immediate(left.scope(lane.submit(()))).await.is_none());
        let calls = join_all([first, second].map(|call| call.scope(lane.submit(()))));
        for answer in calls.await {
            assert_eq!(answer.ok(), Some(first.trace.id()));
        }
    }

    #[tokio::test]
    async fn a_panic_ends_its_batch_and_not_the_lane() {
        let (sizes, _seen) = mpsc::unbounded_channel();
        let lane = Lane::start(Doubling(sizes));
        assert!(lane.submit(POISON).await.is_err_and(|failure| failure.is(ErrorReason::Internal)));
        assert_eq!(lane.submit(2).await.ok(), Some(4));
    }
    #[tokio::test(start_paused = true)]
    async fn a_database_that_goes_silent_ends_its_batch_and_not_the_lane() {
        let (sizes, _seen) = mpsc::unbounded_channel();
        let lane = Lane::start(Doubling(sizes));
        let answer = lane.submit(ENDLESS).await;
        assert!(answer.is_err_and(|failure| failure.is(ErrorReason::DatabaseUnavailable)));
        assert_eq!(lane.submit(2).await.ok(), Some(4));
    }
}
