//! Waiting for what happens in its own time. Tests wait here and nowhere else, so none guesses how long is enough.

use std::{future::Future, panic::Location, time::Duration};

use tokio::time::Instant;

const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// Asks `check` again and again until it answers `Ok`, and returns that answer.
///
/// # Panics
///
/// When `timeout` has passed: with `what` was waited for, where, and the last `Err`.
///
/// ```
/// # use std::{sync::atomic::{AtomicU32, Ordering}, time::Duration};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let asked = AtomicU32::new(0);
/// let answer = mesh_test::wait_until("three questions", Duration::from_secs(5), async || {
///     match asked.fetch_add(1, Ordering::Relaxed) + 1 {
///         3 => Ok("done"),
///         times => Err(format!("asked {times} times")),
///     }
/// })
/// .await;
/// assert_eq!(answer, "done");
/// # }
/// ```
#[track_caller]
pub fn wait_until<T>(
    what: &str,
    timeout: Duration,
    mut check: impl AsyncFnMut() -> Result<T, String>,
) -> impl Future<Output = T> {
    // An async function can't know its caller, so the place is looked up before the future begins.
    let place = Location::caller();
    async move {
        let deadline = Instant::now() + timeout;
        let mut pause = FIRST_PAUSE;
        let mut last_status = None;
        loop {
            // A check that hangs must not outlast the timeout either.
            match tokio::time::timeout_at(deadline, check()).await {
                Ok(Ok(answer)) => return answer,
                Ok(Err(status)) => last_status = Some(status),
                Err(_) => {
                    let before = last_status.as_deref().unwrap_or("none");
                    panic!(
                        "waited {timeout:?} for {what} ({place}): the last check hung; the status before: {before}"
                    );
                }
            }
            if Instant::now() + pause > deadline {
                let status = last_status.unwrap_or_default();
                panic!("waited {timeout:?} for {what} ({place}): {status}");
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(50);

    /// What a task panicked with.
    async fn panic_message(task: impl Future<Output = ()> + Send + 'static) -> String {
        let error = tokio::spawn(task).await.expect_err("the task should have panicked");
        *error.into_panic().downcast::<String>().expect("a formatted message")
    }

    #[tokio::test]
    async fn the_answer_is_returned_once_there_is_one() {
        let mut asked = 0;
        let answer = wait_until("a third question", Duration::from_secs(10), async || {
            asked += 1;
            if asked == 3 { Ok(asked) } else { Err(format!("asked {asked} times")) }
        })
        .await;
        assert_eq!(answer, 3);
    }

    #[tokio::test]
    async fn the_panic_names_what_where_and_the_last_status() {
        let message = panic_message(async {
            wait_until("the moon", SHORT, async || Err::<(), _>("still below the horizon".to_owned())).await;
        })
        .await;
        assert!(message.contains("the moon"), "{message}");
        assert!(message.contains("wait.rs"), "{message}");
        assert!(message.ends_with("still below the horizon"), "{message}");
    }

    #[tokio::test]
    async fn a_check_that_hangs_ends_at_the_timeout() {
        let message = panic_message(async {
            wait_until("an answer", SHORT, async || std::future::pending::<Result<(), String>>().await).await;
        })
        .await;
        assert!(message.contains("an answer") && message.contains("hung"), "{message}");
    }
}
