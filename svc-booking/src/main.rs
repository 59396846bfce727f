//! The booking service as a process of its own.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    mesh::process::run("svc-booking", svc_booking::MIGRATIONS, svc_booking::serve).await
}
