//! Seats, holds and bookings as such. No I/O, and no clock: time is an argument.

pub(crate) mod best_available;
pub(crate) mod booking;
pub(crate) mod hold;
pub(crate) mod layout;
pub(crate) mod sale;
