//! Tells whether the books add up, from what is stored alone. For tests: they end with it.

use mesh::database::{Database, sql};
use sea_orm::ConnectionTrait;

/// What must hold, and a query that counts where it does not.
const RULES: &[(&str, &str)] = &[
    (
        "the entries of a transaction sum to zero",
        "SELECT count(*) AS breaches FROM
         (SELECT transaction_id FROM entry GROUP BY transaction_id HAVING sum(amount) <> 0) AS unbalanced",
    ),
    (
        "a wallet is the sum of its entries",
        "SELECT count(*) AS breaches FROM wallet
         FULL JOIN (SELECT owner, sum(amount) AS total FROM entry WHERE account = 1 GROUP BY owner) AS moved
         ON moved.owner = wallet.fan WHERE coalesce(wallet.balance, 0) <> coalesce(moved.total, 0)",
    ),
    (
        "what is left of a payment is payable for its concert",
        "SELECT count(*) AS breaches FROM payment
         FULL JOIN (SELECT booking, owner, sum(amount) AS total FROM entry WHERE account = 3
                    GROUP BY booking, owner) AS moved
         ON moved.booking = payment.booking AND moved.owner = payment.concert
         WHERE coalesce(payment.amount - payment.refunded, 0) <> coalesce(moved.total, 0)",
    ),
    (
        "a captured payment's refunds are the refunds made",
        "SELECT count(*) AS breaches FROM payment
         FULL JOIN (SELECT booking, sum(amount) AS total FROM refund GROUP BY booking) AS made
         ON made.booking = payment.booking
         WHERE coalesce(made.total, 0) > payment.refunded
         OR (payment.state = 1 AND coalesce(made.total, 0) <> payment.refunded)",
    ),
    (
        "what came from providers is what was topped up",
        "SELECT count(*) AS breaches FROM
         (SELECT fan, sum(amount) AS total FROM top_up GROUP BY fan) AS paid
         FULL JOIN (SELECT owner, sum(amount) AS total FROM entry WHERE account = 1 AND movement = 1
                    GROUP BY owner) AS moved
         ON moved.owner = paid.fan WHERE coalesce(paid.total, 0) <> coalesce(moved.total, 0)",
    ),
];

/// The rules that are broken.
pub(super) async fn broken_rules(database: &Database) -> Vec<&'static str> {
    let mut broken = Vec::new();
    for (rule, query) in RULES {
        let reader = database.reader();
        let row = reader.query_one_raw(sql(reader, *query, [])).await;
        let breaches: i64 = row.unwrap().unwrap().try_get("", "breaches").unwrap();
        if breaches > 0 {
            broken.push(*rule);
        }
    }
    broken
}
