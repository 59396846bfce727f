//! Answers of services that anyone may keep: many who ask the same at once are one question to the service, and for a
//! tenth of the time for which clients may keep the answer nobody asks again.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use boxoffice_proto::policy::Method;
use bytes::Bytes;
use moka::{Expiry, future::Cache};

use crate::{problem::Problem, rendering::Version};

/// The most bytes of answers that are kept.
const CAPACITY: u64 = 64 * 1024 * 1024;
/// The part of the time for which clients may keep an answer.
const SHARE: u32 = 10;

/// What was asked: the method's gRPC path, and the message.
type Question = (&'static str, Bytes);

#[derive(Debug, Clone)]
struct Answer {
    version: Version,
    bytes: Bytes,
    lifetime: Duration,
}

/// The answers of late.
pub(crate) struct Answers(Cache<Question, Answer>);

/// Each answer has a lifetime of its own.
struct Lifetime;

impl Expiry<Question, Answer> for Lifetime {
    fn expire_after_create(&self, _: &Question, answer: &Answer, _: Instant) -> Option<Duration> {
        Some(answer.lifetime)
    }
}

impl Answers {
    pub(crate) fn new() -> Self {
        let cache = Cache::builder()
            .weigher(|(_, question): &Question, answer: &Answer| {
                u32::try_from(question.len() + answer.bytes.len()).unwrap_or(u32::MAX)
            })
            .max_capacity(CAPACITY)
            .expire_after(Lifetime)
            .build();
        Self(cache)
    }

    /// The answer to a question, and its version; `ask` is done if nobody has lately. A problem is told to all who wait
    /// for it, and not kept.
    pub(crate) async fn find(
        &self,
        method: &'static Method,
        question: Bytes,
        max_age: Duration,
        ask: impl Future<Output = Result<(Version, Bytes), Problem>>,
    ) -> Result<(Version, Bytes), Problem> {
        let lifetime = max_age / SHARE;
        let ask = async { ask.await.map(|(version, bytes)| Answer { version, bytes, lifetime }) };
        match self.0.try_get_with((method.path, question), ask).await {
            Ok(answer) => Ok((answer.version, answer.bytes)),
            Err(problem) => Err(Problem::clone(&problem)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use boxoffice_proto::{common::v1::ErrorReason, policy};
    use futures_util::future::join_all;
    use mesh_test::wait_until;

    use super::*;
    use crate::descriptors::routes;

    const LONG: Duration = Duration::from_secs(3600);

    /// A service that counts how often it is asked.
    struct Service {
        answers: Answers,
        asked: AtomicUsize,
        is_down: bool,
    }

    impl Service {
        fn new(is_down: bool) -> Self {
            Self { answers: Answers::new(), asked: AtomicUsize::new(0), is_down }
        }

        async fn ask(&self, question: &'static [u8], max_age: Duration) -> Result<Bytes, Problem> {
            let method = policy::method("/boxoffice.booking.v1.SeatService/GetSeats").unwrap();
            let output = routes().unwrap().pop().unwrap().output;
            let ask = async {
                self.asked.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
                if self.is_down {
                    return Err(Problem::new(ErrorReason::TransportBroken, "down"));
                }
                Ok((Version::of(&output, question), Bytes::from_static(question)))
            };
            self.answers.find(method, question.into(), max_age, ask).await.map(|(_, bytes)| bytes)
        }

        fn asked(&self) -> usize {
            self.asked.load(Ordering::Relaxed)
        }
    }

    #[tokio::test]
    async fn many_who_ask_the_same_are_one_question() {
        let service = Service::new(false);
        let answers = join_all((0..100).map(|_| service.ask(b"one", LONG))).await;
        assert!(answers.into_iter().all(|answer| answer == Ok(Bytes::from_static(b"one"))));
        assert_eq!(service.asked(), 1);
        assert_eq!(service.ask(b"two", LONG).await, Ok(Bytes::from_static(b"two")));
        assert_eq!(service.asked(), 2);
    }

    #[tokio::test]
    async fn a_problem_is_told_to_all_who_wait_and_not_kept() {
        let service = Service::new(true);
        let answers = join_all((0..100).map(|_| service.ask(b"one", LONG))).await;
        assert!(answers.iter().all(Result::is_err));
        assert_eq!(service.asked(), 1);
        assert!(service.ask(b"one", LONG).await.is_err());
        assert_eq!(service.asked(), 2);
    }

    #[tokio::test]
    async fn an_answer_is_asked_for_again_after_its_time() {
        let service = Service::new(false);
        wait_until("another question", Duration::from_secs(20), async || {
            service.ask(b"one", Duration::from_millis(50)).await.unwrap();
            if service.asked() > 1 { Ok(()) } else { Err("asked once".to_owned()) }
        })
        .await;
    }
}
