//! Ports for processes that are told where to listen.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, TcpListener},
    sync::{Mutex, PoisonError},
};

use uuid::Uuid;

/// Below those that systems give out themselves: nobody's connection is there by chance while a process is away.
const PORTS: std::ops::Range<u16> = 20_000..30_000;

/// A port of 127.0.0.1 that nobody listens on, and that this process gives out once.
///
/// # Panics
///
/// When all are in use.
pub fn free_port() -> u16 {
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    // Somewhere by chance, so that test programs that run at once don't try the same.
    let start = (Uuid::new_v4().as_u128() % PORTS.len() as u128) as usize;
    let port = PORTS
        .cycle()
        .skip(start)
        .take(PORTS.len())
        .find(|port| !given.contains(port) && TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .expect("a free port on 127.0.0.1");
    given.insert(port);
    port
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_given_once_and_can_be_had() {
        let ports: BTreeSet<u16> = (0..20).map(|_| free_port()).collect();
        assert_eq!(ports.len(), 20);
        for port in ports {
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("nobody listens there");
        }
    }
}
