//! What a venue and a concert are, and what may become of them. No I/O, and no clock: time is an argument.

pub(crate) mod concert;
pub(crate) mod layout;
