//! The booking service as a process of its own.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    mesh::process::run("svc-booking", svc_booking::MIGRATIONS, svc_booking::serve).await
}
