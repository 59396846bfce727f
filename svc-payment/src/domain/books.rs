//! What paying, voiding, refunding and topping up do. [`Books`] hold what a batch of commands is about; the commands are
//! carried out one after the other in memory, each wholly or not at all; [`Books::changes`] is what is to be written.

use std::collections::BTreeMap;

use mesh::id::{BookingId, ConcertId, RefundId, UserId};
use thiserror::Error;

use super::ledger::{Account, Movement, Transaction};

/// What a top-up may fill a wallet up to, in minor units. Refunds may exceed it: they are the fan's own money.
pub(crate) const WALLET_LIMIT: i64 = 1_000_000_000;

/// What is charged for a booking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Charge {
    /// Who pays.
    pub(crate) fan: UserId,
    /// The concert whose organiser is owed the money.
    pub(crate) concert: ConcertId,
    /// In minor units.
    pub(crate) amount: i64,
}

/// A booking's payment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Payment {
    pub(crate) booking: BookingId,
    pub(crate) state: PaymentState,
    /// What was charged. None: it was voided before.
    pub(crate) charge: Option<Charge>,
    /// What was given back, in minor units.
    pub(crate) refunded: i64,
}

/// Where a payment stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PaymentState {
    /// The money was taken.
    Captured,
    /// It will never be taken; what had been taken was given back.
    Voided,
}

/// Money given back at the booking service's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refund {
    pub(crate) id: RefundId,
    pub(crate) booking: BookingId,
    /// In minor units, more than zero.
    pub(crate) amount: i64,
}

/// What may be asked about a booking's payment. Asked twice, each does the same as once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Command {
    /// Take the price out of the fan's wallet.
    Pay(BookingId, Charge),
    /// See to it that the booking is never charged; give back what was.
    Void(BookingId),
    /// Give back a part, or all.
    Refund(Refund),
}

/// Why a command is refused. Nothing has happened then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub(crate) enum Refusal {
    #[error("the wallet has less than the amount")]
    InsufficientBalance,
    #[error("the payment was voided")]
    Voided,
    #[error("there is no such payment")]
    NotFound,
    #[error("{refundable} minor units are left to be given back, not more")]
    RefundExceedsPayment { refundable: i64 },
    #[error("a wallet can't be topped up to more than {WALLET_LIMIT} minor units")]
    WalletLimitExceeded,
    #[error("the same key was used before for something else")]
    Conflict,
    #[error("an amount of {0} minor units makes no sense here")]
    AmountInvalid(i64),
    #[error("the wallet's balance would be more than can be counted")]
    BalanceOverflow,
}

impl Command {
    /// The booking it is about.
    pub(crate) fn booking(&self) -> BookingId {
        match self {
            Self::Pay(booking, _) | Self::Void(booking) => *booking,
            Self::Refund(refund) => refund.booking,
        }
    }

    /// Whose wallet it takes money from.
    pub(crate) fn payer(&self) -> Option<UserId> {
        match self {
            Self::Pay(_, charge) => Some(charge.fan),
            Self::Void(_) | Self::Refund(_) => None,
        }
    }

    /// The refund it is about.
    pub(crate) fn refund_id(&self) -> Option<RefundId> {
        match self {
            Self::Refund(refund) => Some(refund.id),
            Self::Pay(..) | Self::Void(_) => None,
        }
    }
}

impl Payment {
    /// What was charged, in minor units.
    pub(crate) fn amount(&self) -> i64 {
        self.charge.map_or(0, |charge| charge.amount)
    }

    /// Who paid. None: it was voided before anyone did.
    pub(crate) fn payer(&self) -> Option<UserId> {
        self.charge.map(|charge| charge.fan)
    }

    /// What can still be given back, in minor units.
    pub(crate) fn refundable(&self) -> i64 {
        self.amount() - self.refunded
    }

    /// The answer to a charge for a booking that has a payment already.
    fn repeat(self, charge: Charge) -> Result<Self, Refusal> {
        match self.state {
            PaymentState::Voided => Err(Refusal::Voided),
            PaymentState::Captured if self.charge != Some(charge) => Err(Refusal::Conflict),
            PaymentState::Captured => Ok(self),
        }
    }
}

/// The payments, refunds and wallets that a batch of commands is about.
#[derive(Debug, Default)]
pub(crate) struct Books {
    payments: BTreeMap<BookingId, Line<Payment>>,
    refunds: BTreeMap<RefundId, Line<Refund>>,
    wallets: BTreeMap<UserId, Line<i64>>,
    transactions: Vec<Transaction>,
}

/// A line in the books: as it is stored, and as it stands after the commands so far. None: there is none.
#[derive(Debug)]
struct Line<T> {
    stored: Option<T>,
    current: Option<T>,
}

/// What is to be written, each list sorted by key.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    pub(crate) new_payments: Vec<Payment>,
    /// Payments whose state or refunded amount changed.
    pub(crate) changed_payments: Vec<Payment>,
    pub(crate) new_refunds: Vec<Refund>,
    /// What is to be added to each fan's wallet, in minor units; never zero.
    pub(crate) wallet_changes: Vec<(UserId, i64)>,
    pub(crate) transactions: Vec<Transaction>,
}

impl Books {
    /// Books with what is stored of it. A wallet that is not given has nothing in it.
    pub(crate) fn open(
        payments: impl IntoIterator<Item = Payment>,
        refunds: impl IntoIterator<Item = Refund>,
        wallets: impl IntoIterator<Item = (UserId, i64)>,
    ) -> Self {
        Self {
            payments: payments.into_iter().map(|payment| (payment.booking, Line::stored(payment))).collect(),
            refunds: refunds.into_iter().map(|refund| (refund.id, Line::stored(refund))).collect(),
            wallets: wallets.into_iter().map(|(fan, balance)| (fan, Line::stored(balance))).collect(),
            transactions: Vec::new(),
        }
    }

    /// Carries a command out, and answers with the payment as it stands then.
    ///
    /// # Errors
    /// If it is refused: nothing has changed then.
    pub(crate) fn carry_out(&mut self, command: Command) -> Result<Payment, Refusal> {
        match command {
            Command::Pay(booking, charge) => self.pay(booking, charge),
            Command::Void(booking) => self.void(booking),
            Command::Refund(refund) => self.refund(refund),
        }
    }

    fn pay(&mut self, booking: BookingId, charge: Charge) -> Result<Payment, Refusal> {
        if let Some(payment) = current(&self.payments, booking) {
            return payment.repeat(charge);
        }
        let (fan, organizer) = (Account::Wallet(charge.fan), Account::ConcertPayable(charge.concert));
        self.transfer(Movement::Payment, Some(booking), fan, organizer, charge.amount)?;
        let payment = Payment { booking, state: PaymentState::Captured, charge: Some(charge), refunded: 0 };
        set(&mut self.payments, booking, payment);
        Ok(payment)
    }

    fn void(&mut self, booking: BookingId) -> Result<Payment, Refusal> {
        let payment = match current(&self.payments, booking) {
            None => Payment { booking, state: PaymentState::Voided, charge: None, refunded: 0 },
            Some(payment) => {
                let payment = self.give_back(payment, payment.refundable())?;
                Payment { state: PaymentState::Voided, ..payment }
            }
        };
        set(&mut self.payments, booking, payment);
        Ok(payment)
    }

    fn refund(&mut self, refund: Refund) -> Result<Payment, Refusal> {
        let payment = current(&self.payments, refund.booking).ok_or(Refusal::NotFound)?;
        match current(&self.refunds, refund.id) {
            Some(earlier) if earlier == refund => return Ok(payment),
            Some(_) => return Err(Refusal::Conflict),
            None => {}
        }
        if refund.amount < 1 {
            return Err(Refusal::AmountInvalid(refund.amount));
        }
        if refund.amount > payment.refundable() {
            return Err(Refusal::RefundExceedsPayment { refundable: payment.refundable() });
        }
        let payment = self.give_back(payment, refund.amount)?;
        set(&mut self.payments, refund.booking, payment);
        set(&mut self.refunds, refund.id, refund);
        Ok(payment)
    }

    /// Puts money of a provider into a fan's wallet.
    ///
    /// # Errors
    /// If the wallet would hold more than one may: nothing has changed then.
    pub(crate) fn top_up(&mut self, fan: UserId, amount: i64) -> Result<(), Refusal> {
        if amount < 1 {
            return Err(Refusal::AmountInvalid(amount));
        }
        let room = WALLET_LIMIT.saturating_sub(self.balance(fan));
        if amount > room {
            return Err(Refusal::WalletLimitExceeded);
        }
        self.transfer(Movement::TopUp, None, Account::ProviderClearing, Account::Wallet(fan), amount)
    }

    /// The payment after some of it, no more than is left, was given back.
    fn give_back(&mut self, payment: Payment, amount: i64) -> Result<Payment, Refusal> {
        let Some(charge) = payment.charge else { return Ok(payment) };
        let (organizer, fan) = (Account::ConcertPayable(charge.concert), Account::Wallet(charge.fan));
        self.transfer(Movement::Refund, Some(payment.booking), organizer, fan, amount)?;
        Ok(Payment { refunded: payment.refunded + amount, ..payment })
    }

    /// Moves money, if there is any to move.
    fn transfer(
        &mut self,
        movement: Movement,
        booking: Option<BookingId>,
        from: Account,
        to: Account,
        amount: i64,
    ) -> Result<(), Refusal> {
        if amount == 0 {
            return Ok(());
        }
        if amount < 0 {
            return Err(Refusal::AmountInvalid(amount));
        }
        // Both sides are worked out before either is set: a refused command leaves no trace.
        let debited = match from {
            Account::Wallet(fan) => {
                let rest = self.balance(fan) - amount;
                if rest < 0 {
                    return Err(Refusal::InsufficientBalance);
                }
                Some((fan, rest))
            }
            Account::ProviderClearing | Account::ConcertPayable(_) => None,
        };
        let credited = match to {
            Account::Wallet(fan) => {
                Some((fan, self.balance(fan).checked_add(amount).ok_or(Refusal::BalanceOverflow)?))
            }
            Account::ProviderClearing | Account::ConcertPayable(_) => None,
        };
        for (fan, balance) in debited.into_iter().chain(credited) {
            set(&mut self.wallets, fan, balance);
        }
        self.transactions.push(Transaction { movement, booking, from, to, amount });
        Ok(())
    }

    fn balance(&self, fan: UserId) -> i64 {
        current(&self.wallets, fan).unwrap_or(0)
    }

    /// What is to be written.
    pub(crate) fn changes(self) -> Changes {
        let mut changes = Changes { transactions: self.transactions, ..Changes::default() };
        for line in self.payments.into_values() {
            match (line.stored, line.current) {
                (None, Some(payment)) => changes.new_payments.push(payment),
                (Some(stored), Some(payment)) if stored != payment => changes.changed_payments.push(payment),
                _ => {}
            }
        }
        for line in self.refunds.into_values() {
            if let (None, Some(refund)) = (line.stored, line.current) {
                changes.new_refunds.push(refund);
            }
        }
        for (fan, line) in self.wallets {
            let change = line.current.unwrap_or(0) - line.stored.unwrap_or(0);
            if change != 0 {
                changes.wallet_changes.push((fan, change));
            }
        }
        changes
    }
}

impl<T: Copy> Line<T> {
    fn stored(value: T) -> Self {
        Self { stored: Some(value), current: Some(value) }
    }
}

fn current<K: Ord, T: Copy>(lines: &BTreeMap<K, Line<T>>, key: K) -> Option<T> {
    lines.get(&key)?.current
}

fn set<K: Ord, T>(lines: &mut BTreeMap<K, Line<T>>, key: K, value: T) {
    lines.entry(key).or_insert(Line { stored: None, current: None }).current = Some(value);
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    /// What is stored, and every transaction so far.
    #[derive(Debug, Default, Clone, PartialEq)]
    struct Shelf {
        payments: BTreeMap<BookingId, Payment>,
        refunds: BTreeMap<RefundId, Refund>,
        wallets: BTreeMap<UserId, i64>,
        transactions: Vec<Transaction>,
    }

    /// What is asked: a command, or a top-up.
    #[derive(Debug, Clone, Copy)]
    enum Step {
        Command(Command),
        TopUp(UserId, i64),
    }

    impl Shelf {
        /// Takes the steps on one opening of the books, and puts away what became of them.
        fn take(&mut self, steps: &[Step]) -> Vec<Result<Option<Payment>, Refusal>> {
            let wallets = self.wallets.iter().map(|(fan, balance)| (*fan, *balance));
            let payments = self.payments.values().copied();
            let mut books = Books::open(payments, self.refunds.values().copied(), wallets);
            let answers = steps.iter().map(|step| match *step {
                Step::Command(command) => books.carry_out(command).map(Some),
                Step::TopUp(fan, amount) => books.top_up(fan, amount).map(|()| None),
            });
            let answers = answers.collect();
            self.put_away(books.changes());
            answers
        }

        fn put_away(&mut self, changes: Changes) {
            for payment in changes.new_payments {
                assert_eq!(self.payments.insert(payment.booking, payment), None, "it was stored before");
            }
            for payment in changes.changed_payments {
                let before = self.payments.insert(payment.booking, payment).expect("it was not stored");
                assert_ne!(before, payment, "it did not change");
            }
            for refund in changes.new_refunds {
                assert_eq!(self.refunds.insert(refund.id, refund), None, "it was stored before");
            }
            for (fan, change) in changes.wallet_changes {
                assert_ne!(change, 0);
                *self.wallets.entry(fan).or_default() += change;
            }
            self.transactions.extend(changes.transactions);
        }

        /// The sum of the entries of an account.
        fn sum(&self, account: Account) -> i64 {
            let entries = self.transactions.iter().flat_map(Transaction::entries);
            entries.filter(|entry| entry.account == account).map(|entry| entry.amount).sum()
        }

        fn assert_adds_up(&self) {
            for transaction in &self.transactions {
                assert!(transaction.amount > 0, "{transaction:?}");
                assert_eq!(transaction.entries().map(|entry| entry.amount).iter().sum::<i64>(), 0);
            }
            for (fan, balance) in &self.wallets {
                assert!(*balance >= 0, "{fan} has {balance}");
                assert_eq!(*balance, self.sum(Account::Wallet(*fan)));
            }
            let mut payable = HashMap::<ConcertId, i64>::new();
            for payment in self.payments.values() {
                assert!((0..=payment.amount()).contains(&payment.refunded), "{payment:?}");
                if payment.state == PaymentState::Voided {
                    assert_eq!(payment.refundable(), 0);
                }
                if let Some(charge) = payment.charge {
                    *payable.entry(charge.concert).or_default() += payment.refundable();
                }
            }
            for (concert, amount) in payable {
                assert_eq!(amount, self.sum(Account::ConcertPayable(concert)));
            }
            // Whatever providers owe us, fans or organisers have.
            let organizers: i64 = self.payments.values().map(Payment::refundable).sum();
            let fans: i64 = self.wallets.values().sum();
            assert_eq!(fans + organizers, -self.sum(Account::ProviderClearing));
        }
    }

    /// Few of each, so that steps meet.
    fn nth<T: mesh::id::Id>(number: u8) -> T {
        T::from_uuid(uuid::Uuid::from_u128(number.into()))
    }

    fn step() -> impl Strategy<Value = Step> {
        let amount = prop_oneof![6 => 0..=400i64, 1 => Just(-1i64), 1 => Just(i64::MAX)];
        let charge = (0..3u8, 0..2u8, amount.clone()).prop_map(|(fan, concert, amount)| Charge {
            fan: nth(fan),
            concert: nth(concert),
            amount,
        });
        let booking = || (0..6u8).prop_map(nth::<BookingId>);
        prop_oneof![
            4 => (booking(), charge).prop_map(|(booking, charge)| Step::Command(Command::Pay(booking, charge))),
            1 => booking().prop_map(|booking| Step::Command(Command::Void(booking))),
            3 => (0..8u8, booking(), amount.clone()).prop_map(|(id, booking, amount)| {
                Step::Command(Command::Refund(Refund { id: nth(id), booking, amount }))
            }),
            3 => (0..3u8, prop_oneof![amount, Just(WALLET_LIMIT)])
                .prop_map(|(fan, amount)| Step::TopUp(nth(fan), amount)),
        ]
    }

    proptest! {
        #[test]
        fn whatever_is_asked_the_books_add_up(steps in vec(step(), 1..60)) {
            let mut shelf = Shelf::default();
            for step in steps {
                let before = shelf.clone();
                if let [Err(refusal)] = shelf.take(&[step])[..] {
                    prop_assert_eq!(&shelf, &before, "{} left a trace", refusal);
                }
                shelf.assert_adds_up();
            }
        }

        #[test]
        fn a_batch_does_what_its_steps_do_one_by_one(steps in vec(step(), 1..60), size in 1..20usize) {
            let (mut batched, mut single) = (Shelf::default(), Shelf::default());
            for batch in steps.chunks(size) {
                let one_by_one: Vec<_> = batch.iter().flat_map(|step| single.take(&[*step])).collect();
                prop_assert_eq!(batched.take(batch), one_by_one);
            }
            prop_assert_eq!(batched, single);
        }

        #[test]
        fn a_command_done_twice_is_done_once(steps in vec(step(), 1..40), last in step()) {
            let Step::Command(_) = last else { return Ok(()) };
            let mut shelf = Shelf::default();
            shelf.take(&steps);
            let answer = shelf.take(&[last]);
            let once = shelf.clone();
            prop_assert_eq!(shelf.take(&[last]), answer);
            prop_assert_eq!(shelf, once);
        }
    }

    /// A fan with so much to spend, and one charge of theirs.
    fn fan_with(balance: i64, amount: i64) -> (Books, UserId, Charge) {
        let fan = UserId::new();
        (Books::open([], [], [(fan, balance)]), fan, Charge { fan, concert: ConcertId::new(), amount })
    }

    #[test]
    fn a_charge_is_refused_for_what_is_wrong_with_it() {
        let (mut books, _, charge) = fan_with(1_000, 600);
        let booking = BookingId::new();
        assert_eq!(books.pay(booking, Charge { amount: -1, ..charge }), Err(Refusal::AmountInvalid(-1)));
        assert_eq!(books.pay(booking, Charge { amount: 1_001, ..charge }), Err(Refusal::InsufficientBalance));
        books.pay(booking, charge).unwrap();
        assert_eq!(books.pay(booking, Charge { amount: 599, ..charge }), Err(Refusal::Conflict));
        assert_eq!(books.pay(BookingId::new(), charge), Err(Refusal::InsufficientBalance));
        books.void(booking).unwrap();
        assert_eq!(books.pay(booking, charge), Err(Refusal::Voided));
    }

    #[test]
    fn a_refund_is_refused_for_what_is_wrong_with_it() {
        let (mut books, _, charge) = fan_with(1_000, 600);
        let refund = Refund { id: RefundId::new(), booking: BookingId::new(), amount: 500 };
        assert_eq!(books.refund(refund), Err(Refusal::NotFound));
        books.pay(refund.booking, charge).unwrap();
        assert_eq!(books.refund(Refund { amount: 0, ..refund }), Err(Refusal::AmountInvalid(0)));
        assert_eq!(books.refund(refund).unwrap().refunded, 500);
        assert_eq!(books.refund(Refund { amount: 1, ..refund }), Err(Refusal::Conflict));
        let another = Refund { id: RefundId::new(), amount: 101, ..refund };
        assert_eq!(books.refund(another), Err(Refusal::RefundExceedsPayment { refundable: 100 }));
    }

    #[test]
    fn amounts_never_overflow() {
        let (mut books, fan, charge) = fan_with(i64::MAX, i64::MAX);
        let booking = BookingId::new();
        assert_eq!(books.top_up(fan, i64::MAX), Err(Refusal::WalletLimitExceeded));
        books.pay(booking, charge).unwrap();
        books.top_up(fan, 1).unwrap();
        assert_eq!(books.void(booking), Err(Refusal::BalanceOverflow));
        assert_eq!(books.balance(fan), 1, "a refused command leaves no trace");
    }
}
