//! Accounts.

use boxoffice_proto::user::v1::{
    CreateUserRequest, CreateUserResponse, GetMeRequest, GetMeResponse, User as ProtoUser,
    user_service_server::UserService,
};
use mesh::{
    Failure, auth,
    field::{Fields, timestamp},
    id::UserId,
};
use tonic::{Request, Response, Status};

use super::{read_email, read_password, write_organizer};
use crate::{
    Shared,
    email::EmailAddress,
    password::Password,
    store::{
        account::{self, NewAccount},
        organizer,
    },
};

#[tonic::async_trait]
impl UserService for Shared {
    async fn create_user(
        &self,
        request: Request<CreateUserRequest>,
    ) -> Result<Response<CreateUserResponse>, Status> {
        let SignUp { email, password, display_name } = read_sign_up(request.get_ref())?;
        // Also for an e-mail that has an account: nobody learns which have one from how long it takes.
        let password_hash = self.passwords.hash(password).await?;
        let (id, create_time) = (UserId::new(), self.clock.now());
        let new = NewAccount { id, email, password_hash, display_name, create_time };
        account::create(self.database.writer(), new).await?;
        Ok(Response::new(CreateUserResponse { verification_required: false }))
    }

    async fn get_me(&self, request: Request<GetMeRequest>) -> Result<Response<GetMeResponse>, Status> {
        let caller = auth::user(&request)?;
        let account = account::find_own(self.database.reader(), caller.id).await?;
        let organizers = organizer::list_own(self.database.reader(), caller.id).await?;
        let user = ProtoUser {
            user_id: caller.id.to_string(),
            email: account.email,
            display_name: account.display_name,
            organizers: organizers.iter().map(write_organizer).collect(),
            create_time: Some(timestamp(account.create_time)),
        };
        Ok(Response::new(GetMeResponse { user: Some(user) }))
    }
}

struct SignUp {
    email: EmailAddress,
    password: Password,
    display_name: String,
}

fn read_sign_up(message: &CreateUserRequest) -> Result<SignUp, Failure> {
    let mut fields = Fields::new();
    let email = read_email(&mut fields, &message.email);
    let password = read_password(&mut fields, Password::choose(&message.password, email.as_ref()));
    let display_name = fields.text("display_name", &message.display_name, 1..=100);
    let (email, password) = fields.finish_with(email.zip(password))?;
    Ok(SignUp { email, password, display_name })
}
