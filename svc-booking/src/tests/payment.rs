//! A payment service with a real, if little, ledger, that can be told to misbehave.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use boxoffice_proto::payment::v1::{
    ErrorReason, PayRequest, PayResponse, Payment, PaymentState, RefundRequest, RefundResponse, VoidRequest,
    VoidResponse, payment_service_server::PaymentService,
};
use mesh::{
    Failure,
    id::{BookingId, UserId},
};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

/// How the fake treats the calls that come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Does what it is asked, and says so.
    Answers,
    /// Does what it is asked, and fails before it can say so.
    LosesReplies,
    /// Does nothing, and says only that it failed.
    Fails,
    /// Does nothing, and says that the request makes no sense.
    Misunderstands,
    /// Does nothing and says nothing, until its manner is another.
    Hangs,
    /// Does what it is asked and says nothing, until its manner is another.
    HangsAfterwards,
}

/// The payment service's fake. Clones are the same one.
#[derive(Clone)]
pub(crate) struct FakePayment {
    ledger: Arc<Mutex<Ledger>>,
    manner: Arc<watch::Sender<Manner>>,
}

#[derive(Default)]
struct Ledger {
    wallets: HashMap<String, i64>,
    payments: HashMap<String, Charged>,
    /// Amounts by refund.
    refunds: HashMap<String, i64>,
    calls: HashMap<&'static str, u32>,
}

/// What was charged for a booking, and given back.
#[derive(Default)]
struct Charged {
    user_id: String,
    amount: i64,
    refunded: i64,
    is_voided: bool,
}

impl FakePayment {
    pub(crate) fn new() -> Self {
        Self { ledger: Arc::default(), manner: Arc::new(watch::Sender::new(Manner::Answers)) }
    }

    pub(crate) fn set_manner(&self, manner: Manner) {
        self.manner.send_replace(manner);
    }

    pub(crate) fn top_up(&self, fan: UserId, amount: i64) {
        *self.lock().wallets.entry(fan.to_string()).or_default() += amount;
    }

    pub(crate) fn balance(&self, fan: UserId) -> i64 {
        self.lock().wallets.get(&fan.to_string()).copied().unwrap_or_default()
    }

    /// Whether a booking's money was taken; it may have been given back since.
    pub(crate) fn has_charged(&self, booking: BookingId) -> bool {
        self.lock().payments.get(&booking.to_string()).is_some_and(|charged| charged.amount > 0)
    }

    /// How often it was asked to `pay`, to `void` or to `refund`.
    pub(crate) fn calls(&self, method: &str) -> u32 {
        self.lock().calls.get(method).copied().unwrap_or_default()
    }

    /// How many refunds were made.
    pub(crate) fn refunds(&self) -> usize {
        self.lock().refunds.len()
    }

    fn lock(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does something to the ledger, in the manner that was set.
    async fn act(
        &self,
        method: &'static str,
        act: impl FnOnce(&mut Ledger) -> Result<Payment, Failure>,
    ) -> Result<Payment, Status> {
        *self.lock().calls.entry(method).or_default() += 1;
        self.pass(Manner::Hangs).await;
        match *self.manner.borrow() {
            Manner::Fails => return Err(Failure::internal("failing before it is done, as asked").into()),
            Manner::Misunderstands => return Err(Failure::fields(Vec::new()).into()),
            _ => {}
        }
        let outcome = act(&mut self.lock());
        self.pass(Manner::HangsAfterwards).await;
        if *self.manner.borrow() == Manner::LosesReplies {
            return Err(Failure::internal("failing after it is done, as asked").into());
        }
        Ok(outcome?)
    }

    /// Waits while the manner is this one.
    async fn pass(&self, manner: Manner) {
        let mut manners = self.manner.subscribe();
        let _ = manners.wait_for(|now| *now != manner).await;
    }
}

impl Ledger {
    fn pay(&mut self, booking_id: &str, user_id: String, amount: i64) -> Result<Payment, Failure> {
        match self.payments.get(booking_id) {
            Some(charged) if charged.is_voided => {
                return Err(Failure::new(ErrorReason::PaymentVoided, "it was voided"));
            }
            Some(charged) if charged.user_id != user_id || charged.amount != amount => {
                return Err(Failure::new(ErrorReason::PaymentConflict, "it was paid on other terms"));
            }
            Some(_) => return Ok(self.payment(booking_id)),
            None => {}
        }
        let balance = self.wallets.entry(user_id.clone()).or_default();
        if *balance < amount {
            return Err(Failure::new(ErrorReason::InsufficientBalance, "the wallet has less"));
        }
        *balance -= amount;
        let charged = Charged { user_id, amount, ..Charged::default() };
        self.payments.insert(booking_id.to_owned(), charged);
        Ok(self.payment(booking_id))
    }

    fn void(&mut self, booking_id: &str) -> Payment {
        let charged = self.payments.entry(booking_id.to_owned()).or_default();
        charged.is_voided = true;
        let rest = charged.amount - charged.refunded;
        charged.refunded = charged.amount;
        *self.wallets.entry(charged.user_id.clone()).or_default() += rest;
        self.payment(booking_id)
    }

    fn refund(&mut self, booking_id: &str, refund_id: String, amount: i64) -> Result<Payment, Failure> {
        if self.refunds.contains_key(&refund_id) {
            return Ok(self.payment(booking_id));
        }
        let absent = || Failure::new(ErrorReason::PaymentNotFound, "there is no such payment");
        let charged = self.payments.get_mut(booking_id).ok_or_else(absent)?;
        if charged.refunded + amount > charged.amount {
            return Err(Failure::new(ErrorReason::RefundExceedsPayment, "more than was taken"));
        }
        charged.refunded += amount;
        *self.wallets.entry(charged.user_id.clone()).or_default() += amount;
        self.refunds.insert(refund_id, amount);
        Ok(self.payment(booking_id))
    }

    fn payment(&self, booking_id: &str) -> Payment {
        let charged = &self.payments[booking_id];
        let state = if charged.is_voided { PaymentState::Voided } else { PaymentState::Captured };
        Payment { booking_id: booking_id.to_owned(), state: state.into(), amount: None, refunded: None }
    }
}

#[tonic::async_trait]
impl PaymentService for FakePayment {
    async fn pay(&self, request: Request<PayRequest>) -> Result<Response<PayResponse>, Status> {
        let PayRequest { booking_id, user_id, amount, .. } = request.into_inner();
        let amount = amount.expect("an amount").minor_units;
        let payment = self.act("pay", |ledger| ledger.pay(&booking_id, user_id, amount)).await?;
        Ok(Response::new(PayResponse { payment: Some(payment) }))
    }

    async fn void(&self, request: Request<VoidRequest>) -> Result<Response<VoidResponse>, Status> {
        let booking_id = request.into_inner().booking_id;
        let payment = self.act("void", |ledger| Ok(ledger.void(&booking_id))).await?;
        Ok(Response::new(VoidResponse { payment: Some(payment) }))
    }

    async fn refund(&self, request: Request<RefundRequest>) -> Result<Response<RefundResponse>, Status> {
        let RefundRequest { booking_id, refund_id, amount } = request.into_inner();
        let amount = amount.expect("an amount").minor_units;
        let payment = self.act("refund", |ledger| ledger.refund(&booking_id, refund_id, amount)).await?;
        Ok(Response::new(RefundResponse { payment: Some(payment) }))
    }
}
