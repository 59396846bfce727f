//! The keys that tokens are verified with.

use boxoffice_proto::user::v1::{
    ListSigningKeysRequest, ListSigningKeysResponse, SigningKey as ProtoSigningKey,
    key_service_server::KeyService,
};
use tonic::{Request, Response, Status};

use crate::Shared;

#[tonic::async_trait]
impl KeyService for Shared {
    /// Answered from memory: every service asks every few seconds, also while the database is away.
    async fn list_signing_keys(
        &self,
        _: Request<ListSigningKeysRequest>,
    ) -> Result<Response<ListSigningKeysResponse>, Status> {
        let (keys, revoked) = self.keyring.published();
        Ok(Response::new(ListSigningKeysResponse {
            keys: keys.into_iter().map(|key| ProtoSigningKey { kid: key.kid, x: key.x }).collect(),
            revoked_session_ids: revoked.iter().map(ToString::to_string).collect(),
        }))
    }
}
