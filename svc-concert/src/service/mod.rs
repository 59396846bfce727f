//! The gRPC adapters: decode and check, one store call, encode.

mod concerts;
mod sales;
mod venues;

use mesh::{
    auth::{self, Caller, User},
    id::OrganizerId,
};
use tonic::Request;

use crate::error::Error;

/// Refuses an organiser that the caller does not act for.
fn check_membership(user: &User, organizer: OrganizerId) -> Result<(), Error> {
    if user.organizers.contains(&organizer) { Ok(()) } else { Err(Error::OrganizerNotFound) }
}

/// The organisers that the caller of a public method acts for.
fn organizers_of<T>(request: &Request<T>) -> Vec<OrganizerId> {
    match auth::caller(request) {
        Caller::User(user) => user.organizers.clone(),
        Caller::Anonymous | Caller::Service(_) => Vec::new(),
    }
}
