//! The cashier: what the lane of payments does with a batch of commands. A batch is one transaction, and each caller
//! hears after its commit.

use mesh::{
    Failure,
    clock::Clock,
    crash,
    database::{self, Database, KeptConnection},
    failure::chain,
    lane::Work,
};
use sea_orm::DbErr;

use super::books;
use crate::{
    domain::books::{Command, Payment, Refusal},
    error::Error,
};

/// How often a command is tried that other writers got in the way of.
const TRIES: u32 = 5;

/// Carries out commands about payments.
#[derive(Debug)]
pub(crate) struct Cashier {
    connection: KeptConnection,
    clock: Clock,
}

type Answer = Result<Payment, Refusal>;

impl Cashier {
    pub(crate) fn new(database: Database, clock: Clock) -> Self {
        Self { connection: KeptConnection::new(database), clock }
    }

    /// Carries the commands out, in their order, and commits them together.
    ///
    /// # Errors
    /// A failing database: nothing happened then, or, if the connection broke during the commit, all of it may have.
    async fn carry_out(&mut self, commands: &[Command]) -> Result<Vec<Answer>, DbErr> {
        let transaction = self.connection.begin().await?;
        let written = async {
            let mut books = books::open(&transaction, commands).await?;
            let answers = commands.iter().map(|command| books.carry_out(*command)).collect();
            books::write(&transaction, &books.changes(), self.clock.now()).await?;
            for command in commands {
                match command {
                    Command::Pay(..) => crash::point("payment.pay.before"),
                    Command::Void(_) => crash::point("payment.void.before"),
                    Command::Refund(_) => crash::point("payment.refund.before"),
                }
            }
            Ok(answers)
        };
        let written = written.await;
        let answers = transaction.end(written).await?;
        for command in commands {
            match command {
                Command::Pay(..) => crash::point("payment.pay.after"),
                Command::Void(_) => crash::point("payment.void.after"),
                Command::Refund(_) => crash::point("payment.refund.after"),
            }
        }
        Ok(answers)
    }

    async fn carry_out_alone(&mut self, command: Command) -> Result<Payment, Failure> {
        let mut tries = 1;
        loop {
            match self.carry_out(&[command]).await {
                Ok(answers) => {
                    let answer = answers.into_iter().next();
                    let answer = answer.ok_or_else(|| Failure::internal("a command was not answered"))?;
                    return answer.map_err(|refusal| Error::from(refusal).into());
                }
                Err(error) if is_conflict(&error) && tries < TRIES => tries += 1,
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Work for Cashier {
    type Job = Command;
    type Answer = Payment;

    const NAME: (&'static str, &'static str) = ("payment", "cashier");

    async fn run(&mut self, commands: Vec<Command>) -> Vec<Result<Payment, Failure>> {
        let error = match self.carry_out(&commands).await {
            Ok(answers) => {
                let failure = |refusal| Error::from(refusal).into();
                return answers.into_iter().map(|answer: Answer| answer.map_err(failure)).collect();
            }
            Err(error) => error,
        };
        if !is_conflict(&error) && !database::is_locked(&error) {
            return commands.iter().map(|_| Err(error.clone().into())).collect();
        }
        tracing::debug!(error = chain(&error), batch.size = commands.len(), "a batch is redone one by one");
        // One of them got in another writer's way: redone one by one, it keeps nobody else waiting or failing.
        let mut answers = Vec::with_capacity(commands.len());
        for command in commands {
            answers.push(self.carry_out_alone(command).await);
        }
        answers
    }
}

/// Whether another writer was there first, or a rule of the schema does not hold.
fn is_conflict(error: &DbErr) -> bool {
    // `Custom` is ours: a row was not there any more.
    matches!(error, DbErr::Custom(_)) || database::is_conflict(error)
}
