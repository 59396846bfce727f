//! Fans' wallets.

use boxoffice_proto::payment::v1::{
    CreateTopUpRequest, CreateTopUpResponse, GetWalletRequest, GetWalletResponse, ListWalletEntriesRequest,
    ListWalletEntriesResponse, PaymentProvider, TopUp as ProtoTopUp, TopUpState, Wallet,
    WalletEntry as ProtoWalletEntry, WalletEntryKind, wallet_service_server::WalletService,
};
use mesh::{
    Failure, auth,
    field::{Fields, money, timestamp},
    id::TopUpId,
    idempotency::{self, Once, RequestKey},
    page::Page,
};
use tonic::{Request, Response, Status};

use crate::{
    Psp, Shared,
    domain::ledger::Movement,
    error::Error,
    store::{self, TopUp, WalletEntry},
};

const CREATE_TOP_UP: &str = "/boxoffice.payment.v1.WalletService/CreateTopUp";
/// What a fan may top up at once, in minor units.
const MAX_TOP_UP: i64 = 100_000_000;

#[tonic::async_trait]
impl WalletService for Shared {
    async fn get_wallet(
        &self,
        request: Request<GetWalletRequest>,
    ) -> Result<Response<GetWalletResponse>, Status> {
        let user = auth::user(&request)?;
        let balance = store::wallet_balance(self.database.reader(), user.id).await?;
        let wallet = Wallet { balance: Some(money(balance, self.currency)) };
        Ok(Response::new(GetWalletResponse { wallet: Some(wallet) }))
    }

    async fn list_wallet_entries(
        &self,
        request: Request<ListWalletEntriesRequest>,
    ) -> Result<Response<ListWalletEntriesResponse>, Status> {
        let user = auth::user(&request)?;
        let message = request.into_inner();
        let page = Page::read(message.page_size, &message.page_token, &[&user.id.to_string()])?;
        let mut entries = store::list_wallet_entries(self.database.reader(), user.id, &page).await?;
        let next_page_token = page.next_token(&mut entries, |entry| entry.id);
        let entries = entries.iter().map(|entry| self.write_entry(entry)).collect();
        Ok(Response::new(ListWalletEntriesResponse { entries, next_page_token }))
    }

    async fn create_top_up(
        &self,
        request: Request<CreateTopUpRequest>,
    ) -> Result<Response<CreateTopUpResponse>, Status> {
        let user = auth::user(&request)?;
        let mut message = request.into_inner();
        let key = RequestKey::take(user.id, CREATE_TOP_UP, &mut message, |message| &mut message.request_id)?;
        let amount = self.read_top_up(&message)?;
        let fresh = match idempotency::begin(&self.database, &self.clock, key).await? {
            Once::Replayed(response) => return Ok(response),
            Once::Fresh(fresh) => fresh,
        };
        let top_up = TopUp { id: TopUpId::new(), fan: user.id, amount, create_time: self.clock.now() };
        store::record_top_up(fresh.transaction(), &top_up).await?;
        let top_up = Some(self.write_top_up(&top_up));
        Ok(fresh.commit(CreateTopUpResponse { top_up }).await?)
    }
}

impl Shared {
    /// The amount of a top-up, in minor units, if the request is one that can be done here.
    fn read_top_up(&self, message: &CreateTopUpRequest) -> Result<i64, Failure> {
        let mut fields = Fields::new();
        let provider = PaymentProvider::try_from(message.provider).ok();
        match provider {
            None => fields.wrong("provider", "UNKNOWN", "is none that we know"),
            Some(PaymentProvider::Unspecified) => fields.wrong("provider", "REQUIRED", "is required"),
            Some(PaymentProvider::Sandbox) => {}
        }
        let amount = fields.money("amount", message.amount.as_ref(), self.currency, 1..=MAX_TOP_UP)?;
        fields.finish()?;
        match self.psp {
            Some(Psp::Sandbox) => Ok(amount),
            None => Err(Error::ProviderUnsupported.into()),
        }
    }

    fn write_entry(&self, entry: &WalletEntry) -> ProtoWalletEntry {
        ProtoWalletEntry {
            entry_id: entry.id.to_string(),
            kind: write_kind(entry.movement).into(),
            amount: Some(money(entry.amount, self.currency)),
            booking_id: entry.booking.map(|booking| booking.to_string()).unwrap_or_default(),
            create_time: Some(timestamp(entry.create_time)),
        }
    }

    fn write_top_up(&self, top_up: &TopUp) -> ProtoTopUp {
        ProtoTopUp {
            top_up_id: top_up.id.to_string(),
            state: TopUpState::Succeeded.into(),
            amount: Some(money(top_up.amount, self.currency)),
            next_action: None,
            create_time: Some(timestamp(top_up.create_time)),
        }
    }
}

/// The last entry of the page before.
fn write_kind(movement: Movement) -> WalletEntryKind {
    match movement {
        Movement::TopUp => WalletEntryKind::TopUp,
        Movement::Payment => WalletEntryKind::Payment,
        Movement::Refund => WalletEntryKind::Refund,
    }
}
