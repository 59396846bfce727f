//! Organisers.

use boxoffice_proto::user::v1::{
    CreateOrganizerRequest, CreateOrganizerResponse, organizer_service_server::OrganizerService,
};
use mesh::{
    Failure, auth,
    field::{Fields, timestamp},
    id::OrganizerId,
    idempotency::{self, Once, RequestKey},
};
use tonic::{Request, Response, Status};

use super::write_organizer;
use crate::{
    Shared,
    store::organizer::{self, Organizer},
};

const CREATE_ORGANIZER: &str = "/boxoffice.user.v1.OrganizerService/CreateOrganizer";

#[tonic::async_trait]
impl OrganizerService for Shared {
    async fn create_organizer(
        &self,
        request: Request<CreateOrganizerRequest>,
    ) -> Result<Response<CreateOrganizerResponse>, Status> {
        let caller = auth::user(&request)?;
        let mut message = request.into_inner();
        let key =
            RequestKey::take(caller.id, CREATE_ORGANIZER, &mut message, |message| &mut message.request_id)?;
        let organizer = self.read_organizer(&message)?;
        let mut response = match idempotency::begin(&self.database, &self.clock, key).await? {
            Once::Replayed(response) => response,
            Once::Fresh(fresh) => {
                organizer::create(fresh.transaction(), &organizer, caller.id).await?;
                let organizer = Some(write_organizer(&organizer));
                fresh.commit(CreateOrganizerResponse { organizer, ..Default::default() }).await?
            }
        };
        // Added after the commit, so that the token is not stored with the answer; a replay gets a new one.
        let token = self.sessions.access_token(caller.session, caller.id, self.clock.now()).await?;
        response.get_mut().access_token = token.text;
        response.get_mut().expire_time = Some(timestamp(token.expire_time));
        Ok(response)
    }
}

impl Shared {
    fn read_organizer(&self, message: &CreateOrganizerRequest) -> Result<Organizer, Failure> {
        let mut fields = Fields::new();
        let display_name = fields.text("display_name", &message.display_name, 1..=100);
        fields.finish()?;
        Ok(Organizer { id: OrganizerId::new(), display_name, create_time: self.clock.now() })
    }
}
