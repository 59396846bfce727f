//! Why the payment service refuses, and how that is answered.

use boxoffice_proto::payment::v1::ErrorReason;
use mesh::Failure;
use sea_orm::DbErr;
use thiserror::Error;
use tonic::Status;

use crate::domain::books::{Refusal, WALLET_LIMIT};

/// Why the payment service refuses.
#[derive(Debug, Error)]
pub(crate) enum Error {
    #[error("is none that this installation takes money through")]
    ProviderUnsupported,
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Database(#[from] DbErr),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let text = error.to_string();
        match error {
            Error::ProviderUnsupported => Failure::field(ErrorReason::ProviderUnsupported, "provider", text),
            Error::Refused(Refusal::InsufficientBalance) => {
                Failure::new(ErrorReason::InsufficientBalance, text)
            }
            Error::Refused(Refusal::Voided) => Failure::new(ErrorReason::PaymentVoided, text),
            Error::Refused(Refusal::NotFound) => Failure::new(ErrorReason::PaymentNotFound, text),
            Error::Refused(Refusal::RefundExceedsPayment { refundable }) => {
                Failure::new(ErrorReason::RefundExceedsPayment, text)
                    .with("refundable_minor_units", refundable)
            }
            Error::Refused(Refusal::WalletLimitExceeded) => {
                Failure::new(ErrorReason::WalletLimitExceeded, text).with("limit_minor_units", WALLET_LIMIT)
            }
            Error::Refused(Refusal::Conflict) => Failure::new(ErrorReason::PaymentConflict, text),
            // The adapters refuse such amounts, and no wallet comes near what can't be counted.
            Error::Refused(Refusal::AmountInvalid(_) | Refusal::BalanceOverflow) => Failure::internal(error),
            Error::Database(error) => error.into(),
        }
    }
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Failure::from(error).into()
    }
}
