//! Boxoffice in one process, and the sell-out that proves it.

pub mod api;
pub mod demo;
pub mod embedded;
pub mod sellout;
pub mod sweep;
