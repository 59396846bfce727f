//! The tables, as rows.

pub(crate) mod concert;
pub(crate) mod venue;
