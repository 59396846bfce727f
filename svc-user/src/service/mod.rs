//! The gRPC adapters: decode and check, one call below, encode.

mod keys;
mod organizers;
mod sessions;
#[cfg(test)]
mod tests;
mod users;

use boxoffice_proto::user::v1::Organizer as ProtoOrganizer;
use mesh::field::{Fields, timestamp};

use crate::{
    email::EmailAddress,
    password::{Password, PasswordError},
    store::organizer::Organizer,
};

/// The e-mail address in the field `email`, unless that is noted as wrong.
fn read_email(fields: &mut Fields, text: &str) -> Option<EmailAddress> {
    EmailAddress::parse(text).map_err(|error| fields.wrong("email", error.reason(), error.to_string())).ok()
}

/// The password in the field `password`, unless that is noted as wrong. The text itself is never quoted.
fn read_password(fields: &mut Fields, password: Result<Password, PasswordError>) -> Option<Password> {
    password.map_err(|error| fields.wrong("password", error.reason(), error.to_string())).ok()
}

fn write_organizer(organizer: &Organizer) -> ProtoOrganizer {
    ProtoOrganizer {
        organizer_id: organizer.id.to_string(),
        display_name: organizer.display_name.clone(),
        create_time: Some(timestamp(organizer.create_time)),
    }
}
