//! Sessions.

use boxoffice_proto::user::v1::{
    CreateSessionRequest, CreateSessionResponse, DeleteCurrentSessionRequest, DeleteCurrentSessionResponse,
    RefreshSessionRequest, RefreshSessionResponse, session_service_server::SessionService,
};
use mesh::{
    auth,
    field::{Fields, timestamp},
    idempotency::{check_key, replayed},
};
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::{read_email, read_password};
use crate::{Shared, error::Error, password::Password, refresh_token::RefreshToken};

const REFRESH_SESSION: &str = "/boxoffice.user.v1.SessionService/RefreshSession";

#[tonic::async_trait]
impl SessionService for Shared {
    async fn create_session(
        &self,
        request: Request<CreateSessionRequest>,
    ) -> Result<Response<CreateSessionResponse>, Status> {
        let message = request.get_ref();
        let mut fields = Fields::new();
        let email = read_email(&mut fields, &message.email);
        let password = read_password(&mut fields, Password::enter(&message.password));
        let (email, password) = fields.finish_with(email.zip(password))?;
        let pair = self.sessions.log_in(&email, password).await?;
        Ok(Response::new(CreateSessionResponse {
            session_id: pair.session.to_string(),
            access_token: pair.access.text,
            refresh_token: pair.refresh.expose(),
            expire_time: Some(timestamp(pair.access.expire_time)),
            refresh_expire_time: Some(timestamp(pair.refresh_expire_time)),
        }))
    }

    async fn refresh_session(
        &self,
        request: Request<RefreshSessionRequest>,
    ) -> Result<Response<RefreshSessionResponse>, Status> {
        let mut message = request.into_inner();
        check_key(REFRESH_SESSION, &message.request_id)?;
        if message.request_id.is_empty() {
            message.request_id = Uuid::new_v4().to_string();
        }
        let mut fields = Fields::new();
        fields.check(!message.refresh_token.is_empty(), "refresh_token", "REQUIRED", "is required");
        fields.finish()?;
        let token = RefreshToken::parse(&message.refresh_token).ok_or(Error::RefreshTokenInvalid)?;
        let pair = self.sessions.refresh(&token, &message.request_id).await?;
        let response = RefreshSessionResponse {
            session_id: pair.session.to_string(),
            access_token: pair.access.text,
            refresh_token: pair.refresh.expose(),
            expire_time: Some(timestamp(pair.access.expire_time)),
            refresh_expire_time: Some(timestamp(pair.refresh_expire_time)),
        };
        Ok(if pair.is_replay { replayed(response) } else { Response::new(response) })
    }

    async fn delete_current_session(
        &self,
        request: Request<DeleteCurrentSessionRequest>,
    ) -> Result<Response<DeleteCurrentSessionResponse>, Status> {
        let caller = auth::user(&request)?;
        self.sessions.log_out(&caller).await?;
        Ok(Response::new(DeleteCurrentSessionResponse {}))
    }
}
