//! Payments of bookings, for the booking service.

use boxoffice_proto::payment::v1::{
    PayRequest, PayResponse, Payment as ProtoPayment, PaymentState as ProtoPaymentState, RefundRequest,
    RefundResponse, VoidRequest, VoidResponse, payment_service_server::PaymentService,
};
use mesh::field::{self, Fields, money};
use tonic::{Request, Response, Status};

use crate::{
    Shared,
    domain::books::{Charge, Command, Payment, PaymentState, Refund},
};

#[tonic::async_trait]
impl PaymentService for Shared {
    async fn pay(&self, request: Request<PayRequest>) -> Result<Response<PayResponse>, Status> {
        let message = request.into_inner();
        let mut fields = Fields::new();
        let booking = fields.id("booking_id", &message.booking_id);
        let fan = fields.id("user_id", &message.user_id);
        let concert = fields.id("concert_id", &message.concert_id);
        let amount = fields.money("amount", message.amount.as_ref(), self.currency, 0..=i64::MAX)?;
        let (booking, (fan, concert)) = fields.finish_with(booking.zip(fan.zip(concert)))?;
        let payment = self.payments.submit(Command::Pay(booking, Charge { fan, concert, amount })).await?;
        Ok(Response::new(PayResponse { payment: Some(self.write_payment(&payment)) }))
    }

    async fn void(&self, request: Request<VoidRequest>) -> Result<Response<VoidResponse>, Status> {
        let booking = field::id("booking_id", &request.get_ref().booking_id)?;
        let payment = self.payments.submit(Command::Void(booking)).await?;
        Ok(Response::new(VoidResponse { payment: Some(self.write_payment(&payment)) }))
    }

    async fn refund(&self, request: Request<RefundRequest>) -> Result<Response<RefundResponse>, Status> {
        let message = request.into_inner();
        let mut fields = Fields::new();
        let booking = fields.id("booking_id", &message.booking_id);
        let id = fields.id("refund_id", &message.refund_id);
        let amount = fields.money("amount", message.amount.as_ref(), self.currency, 1..=i64::MAX)?;
        let (booking, id) = fields.finish_with(booking.zip(id))?;
        let payment = self.payments.submit(Command::Refund(Refund { id, booking, amount })).await?;
        Ok(Response::new(RefundResponse { payment: Some(self.write_payment(&payment)) }))
    }
}

impl Shared {
    fn write_payment(&self, payment: &Payment) -> ProtoPayment {
        ProtoPayment {
            booking_id: payment.booking.to_string(),
            state: write_state(payment.state).into(),
            amount: Some(money(payment.amount(), self.currency)),
            refunded: Some(money(payment.refunded, self.currency)),
        }
    }
}

fn write_state(state: PaymentState) -> ProtoPaymentState {
    match state {
        PaymentState::Captured => ProtoPaymentState::Captured,
        PaymentState::Voided => ProtoPaymentState::Voided,
    }
}
