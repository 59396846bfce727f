//! Points at which a test may kill the process: `BOXOFFICE_CRASH_AT=booking.charge.after`. Debug builds only.

/// Ends the process at once, as `kill -9` does, if a test asked for it here.
pub fn point(name: &str) {
    #[cfg(debug_assertions)]
    if std::env::var("BOXOFFICE_CRASH_AT").is_ok_and(|at| at == name) {
        eprintln!("crashing at {name}, as asked");
        std::process::abort();
    }
    #[cfg(not(debug_assertions))]
    let _ = name;
}
