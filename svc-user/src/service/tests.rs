//! What can't be seen from outside: that the password is hashed whether or not the e-mail has an account.

use std::sync::Arc;

use boxoffice_proto::{
    policy::Reason,
    user::v1::{
        CreateSessionRequest, CreateUserRequest, ErrorReason, session_service_server::SessionService,
        user_service_server::UserService,
    },
};
use chrono::TimeDelta;
use mesh::{clock::Clock, config::Secret, failure::error_info, id::UserId};
use tonic::{Request, Status};

use crate::{
    Shared,
    email::EmailAddress,
    keyring::Keyring,
    password::PasswordHasher,
    session::Sessions,
    store::account::{self, NewAccount},
    test_database::TestDatabase,
};

/// A service that has no room for a single password: whoever would have one hashed is refused.
async fn without_room(test: &TestDatabase) -> Shared {
    let (database, clock, secret) = (test.database.clone(), Clock::system(), Secret::random());
    let opened = Keyring::open(database.clone(), clock.clone(), &secret, TimeDelta::days(30)).await;
    let (keyring, passwords) = (Arc::new(opened.unwrap()), PasswordHasher::new(0, 0));
    let sessions =
        Sessions::new(database.clone(), clock.clone(), Arc::clone(&keyring), passwords.clone(), &secret);
    Shared { database, clock, keyring, sessions: Arc::new(sessions), passwords }
}

async fn make_account(shared: &Shared, email: &str) {
    let new = NewAccount {
        id: UserId::new(),
        email: EmailAddress::parse(email).unwrap(),
        password_hash: "never looked at".to_owned(),
        display_name: "Fan".to_owned(),
        create_time: shared.clock.now(),
    };
    account::create(shared.database.writer(), new).await.unwrap();
}

fn is_queue_full(status: &Status) -> bool {
    error_info(status).is_some_and(|info| info.reason == ErrorReason::PasswordQueueFull.info().reason)
}

#[tokio::test]
async fn every_sign_up_and_login_has_its_password_hashed() {
    let test = TestDatabase::sqlite().await;
    let shared = without_room(&test).await;
    make_account(&shared, "known@example.com").await;
    for email in ["known@example.com", "unknown@example.com"] {
        let (email, password, display_name) =
            (email.to_owned(), "a good password".to_owned(), "Fan".to_owned());
        let log_in = CreateSessionRequest { email: email.clone(), password: password.clone() };
        let sign_up = CreateUserRequest { email, password, display_name };
        let refused = shared.create_user(Request::new(sign_up)).await.unwrap_err();
        assert!(is_queue_full(&refused), "{refused}");
        // More often than logins may fail: one whose password was never checked has not failed.
        for _ in 0..20 {
            let refused = shared.create_session(Request::new(log_in.clone())).await.unwrap_err();
            assert!(is_queue_full(&refused), "{refused}");
        }
    }
}
