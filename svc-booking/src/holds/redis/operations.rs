//! Operations on the holds of a concert: those that wait go together, and a script does them one after the other. What a command
//! costs both sides is mostly that it comes alone.

use std::{
    collections::VecDeque,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
};

use fred::{
    error::{Error as FredError, ErrorKind},
    types::{Value, scripts::Script},
};
use mesh::{
    context::Context,
    id::ConcertId,
    redis::{Redis, RedisError},
};
use tokio::sync::oneshot;

use super::{Concerts, keys, place_of};

static OPERATIONS: LazyLock<Script> = super::script!("operations.lua");

/// The most operations of a script, in which Redis serves nobody else: half a millisecond.
const AT_ONCE: usize = 16;
/// The most tasks that take a concert's operations, a script at a time each: while Redis does one's, the other gives its answers
/// and writes the next. The second begins when more wait than a script does, and ends when nobody waits.
const SCRIPTS: usize = 2;

/// What `operations.lua` is to do.
#[derive(Debug)]
pub(super) struct Operation {
    pub(super) name: &'static str,
    pub(super) request_key: Option<String>,
    pub(super) arguments: Vec<Value>,
}

/// Operations of a concert that wait for those before them.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: VecDeque<Job>,
    /// Tasks that take them.
    workers: usize,
}

#[derive(Debug)]
struct Job {
    operation: Operation,
    /// The call that it is for.
    call: Option<Context>,
    /// How far a test has moved the clock when it asked, in milliseconds.
    clock_shift: i64,
    answer: oneshot::Sender<Result<Value, RedisError>>,
}

impl Queue {
    /// Whether nobody waits, and nothing is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.workers == 0
    }

    /// Whether those who wait need one more task that takes them.
    fn needs_worker(&self) -> bool {
        self.workers == 0 || self.workers < SCRIPTS && self.waiting.len() > AT_ONCE
    }
}

/// Has an operation done, with all that wait; what it answers. If the caller stops waiting it is done all the same, unless it
/// still waits.
pub(super) async fn operate(
    redis: &Redis,
    concerts: &Arc<Mutex<Concerts>>,
    concert: ConcertId,
    clock_shift: i64,
    operation: Operation,
) -> Result<Value, RedisError> {
    let (answer, answered) = oneshot::channel();
    {
        let mut concerts_now = lock(concerts);
        let queue = &mut concerts_now.entry(place_of(concert)).or_default().queue;
        queue.waiting.push_back(Job { operation, call: Context::of_call(), clock_shift, answer });
        if queue.needs_worker() {
            queue.workers += 1;
            let worker = Worker { redis: redis.clone(), concerts: Arc::clone(concerts), concert };
            tokio::spawn(worker.work());
        }
    }
    answered.await.unwrap_or(Err(RedisError::NotConnected))
}

/// Works a concert's operations off, until there are none.
struct Worker {
    redis: Redis,
    concerts: Arc<Mutex<Concerts>>,
    concert: ConcertId,
}

impl Worker {
    async fn work(self) {
        loop {
            // Whoever is about to ask does so first; if nobody is, no time passes.
            tokio::task::yield_now().await;
            let Some(jobs) = self.take_waiting() else { return };
            // Whoever stopped waiting before their operation began needs no work. Those in a script are in different traces; what is
            // done for all of them is part of the first one's.
            let (mut clock_shift, mut call) = (None, None);
            let (operations, callers): (Vec<_>, Vec<_>) = jobs
                .into_iter()
                .filter(|job| !job.answer.is_closed())
                .map(|job| {
                    clock_shift = Some(job.clock_shift);
                    call = call.or(job.call);
                    (job.operation, job.answer)
                })
                .unzip();
            let Some(clock_shift) = clock_shift else { continue };
            let call = call.unwrap_or_else(Context::root);
            match call.without_deadline().scope(self.run(operations, clock_shift)).await {
                Ok(answers) => {
                    for (caller, answer) in callers.into_iter().zip(answers) {
                        let _ = caller.send(answer);
                    }
                }
                Err(error) => {
                    for caller in callers {
                        let _ = caller.send(Err(error.clone()));
                    }
                    // They would wait as long. Nothing was sent of theirs.
                    if !is_refusal(&error) {
                        self.forget_waiting();
                    }
                }
            }
        }
    }

    /// Those who wait now, as many as a script does. None: nobody, and this worker's work is done.
    fn take_waiting(&self) -> Option<Vec<Job>> {
        let mut concerts = lock(&self.concerts);
        let queue = &mut concerts.get_mut(&place_of(self.concert))?.queue;
        if queue.waiting.is_empty() {
            queue.workers -= 1;
            return None;
        }
        let count = queue.waiting.len().min(AT_ONCE);
        Some(queue.waiting.drain(..count).collect())
    }

    /// Lets them hear that nothing was done.
    fn forget_waiting(&self) {
        if let Some(known) = lock(&self.concerts).get_mut(&place_of(self.concert)) {
            known.queue.waiting.clear();
        }
    }

    async fn run(
        &self,
        operations: Vec<Operation>,
        clock_shift: i64,
    ) -> Result<Vec<Result<Value, RedisError>>, RedisError> {
        let mut keys = keys(self.concert);
        let mut arguments: Vec<Value> = vec![clock_shift.into()];
        for Operation { name, request_key, arguments: own } in operations {
            let place = request_key.map_or(0, |key| {
                keys.push(key);
                keys.len() as i64
            });
            arguments.extend([name.into(), place.into(), (own.len() as i64).into()]);
            arguments.extend(own);
        }
        let answers: Vec<Value> = self.redis.run(&OPERATIONS, keys, arguments).await?;
        Ok(answers.into_iter().map(read_answer).collect())
    }
}

/// An operation's answer, or why it broke.
fn read_answer(answer: Value) -> Result<Value, RedisError> {
    if let Value::Array(words) = &answer
        && let [mark, why] = words.as_slice()
        && mark.as_bytes() == Some(b"failed")
    {
        let why = why.as_string().unwrap_or_default();
        return Err(FredError::new(ErrorKind::Unknown, why).into());
    }
    Ok(answer)
}

/// Whether Redis answered, and said no.
fn is_refusal(error: &RedisError) -> bool {
    match error {
        RedisError::NotConnected => false,
        RedisError::Failed(error) => {
            !matches!(error.kind(), ErrorKind::Timeout | ErrorKind::IO | ErrorKind::Canceled)
        }
    }
}

impl Drop for Worker {
    /// After a panic, too, the next operation must find somebody who does it.
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(known) = lock(&self.concerts).get_mut(&place_of(self.concert))
        {
            known.queue.workers -= 1;
            if known.queue.is_idle() {
                known.queue.waiting.clear();
            }
        }
    }
}

fn lock(concerts: &Mutex<Concerts>) -> MutexGuard<'_, Concerts> {
    concerts.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use futures_util::future::join_all;
    use mesh::shutdown::Shutdown;

    use super::*;

    const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

    async fn open(server: &mesh_test::Redis) -> (Redis, Arc<Mutex<Concerts>>, ConcertId) {
        let redis = Redis::start(&server.url().parse().unwrap());
        redis.wait(&Shutdown::new()).await;
        (redis, Arc::default(), ConcertId::new())
    }

    fn find(hold: &str) -> Operation {
        Operation { name: "find", request_key: None, arguments: vec![hold.into()] }
    }

    #[tokio::test]
    #[ignore = "needs Redis: scripts/test runs it"]
    async fn those_who_come_at_once_are_one_script() {
        let server = mesh_test::Redis::start().await;
        let (redis, concerts, concert) = open(&server).await;
        let ask = || operate(&redis, &concerts, concert, 0, find("none"));
        // The script is there.
        ask().await.unwrap();
        assert_eq!(server.command("CONFIG RESETSTAT"), "+OK");
        let answers = join_all((0..2 * AT_ONCE).map(|_| ask())).await;
        assert!(answers.iter().all(|answer| matches!(answer, Ok(Value::Null))), "{answers:?}");
        let scripts = server.ask("INFO commandstats");
        assert!(scripts.iter().any(|line| line.starts_with("cmdstat_evalsha:calls=2,")), "{scripts:?}");
        mesh_test::wait_until("the work to be done", PATIENCE, async || {
            let is_idle = lock(&concerts).get(&place_of(concert)).is_some_and(|known| known.queue.is_idle());
            if is_idle { Ok(()) } else { Err("not idle".to_owned()) }
        })
        .await;
    }

    #[tokio::test]
    #[ignore = "needs Redis: scripts/test runs it"]
    async fn who_left_while_waiting_needs_no_work() {
        let server = mesh_test::Redis::start().await;
        let (redis, concerts, concert) = open(&server).await;
        operate(&redis, &concerts, concert, 0, find("none")).await.unwrap();
        assert_eq!(server.command("CONFIG RESETSTAT"), "+OK");
        // It counts up what loads are disturbed by.
        let arguments = ["fan", "hold", "0"].into_iter().map(Value::from).collect();
        let settle = Operation { name: "settle", request_key: None, arguments };
        let left = futures_util::poll!(Box::pin(operate(&redis, &concerts, concert, 0, settle)));
        assert!(left.is_pending());
        operate(&redis, &concerts, concert, 0, find("none")).await.unwrap();
        let commands = server.ask("INFO commandstats");
        assert!(commands.iter().any(|line| line.starts_with("cmdstat_evalsha:calls=1,")), "{commands:?}");
        assert!(!commands.iter().any(|line| line.starts_with("cmdstat_incr:")), "{commands:?}");
    }

    #[tokio::test]
    #[ignore = "needs Redis: scripts/test runs it"]
    async fn what_breaks_one_operation_does_not_break_the_others() {
        let server = mesh_test::Redis::start().await;
        let (redis, concerts, concert) = open(&server).await;
        let [broken, fine] = ["unknown", "find"].map(|name| Operation { name, ..find("none") });
        let (broken, fine) = tokio::join!(
            operate(&redis, &concerts, concert, 0, broken),
            operate(&redis, &concerts, concert, 0, fine),
        );
        assert!(matches!(&broken, Err(RedisError::Failed(_))), "{broken:?}");
        assert!(matches!(fine, Ok(Value::Null)), "{fine:?}");
    }

    #[tokio::test]
    #[ignore = "needs Redis: scripts/test runs it"]
    async fn when_redis_hangs_those_who_wait_hear_it_too_and_later_ones_are_served() {
        let server = mesh_test::Redis::start().await;
        let (redis, concerts, concert) = open(&server).await;
        let ask = || operate(&redis, &concerts, concert, 0, find("none"));
        ask().await.unwrap();
        // Not by `command`, which says good-bye and waits for the answer to that.
        let mut operator = std::net::TcpStream::connect(server.address()).unwrap();
        operator.write_all(b"CLIENT PAUSE 1500 ALL\r\n").unwrap();
        let mut answer = [0; 5];
        operator.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"+OK\r\n");
        let answers = join_all((0..(SCRIPTS + 1) * AT_ONCE).map(|_| ask())).await;
        let nobody_knows = answers.iter().filter(|answer| matches!(answer, Err(RedisError::Failed(_))));
        let nothing_sent = answers.iter().filter(|answer| matches!(answer, Err(RedisError::NotConnected)));
        assert_eq!(nobody_knows.count(), SCRIPTS * AT_ONCE, "{answers:?}");
        assert_eq!(nothing_sent.count(), AT_ONCE, "{answers:?}");
        mesh_test::wait_until("Redis to serve", PATIENCE, async || {
            ask().await.map(drop).map_err(|error| error.to_string())
        })
        .await;
    }
}
