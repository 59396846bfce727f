//! The contracts of Boxoffice: messages, clients, server traits, descriptors, and the policy that the contracts carry.
//!
//! ```
//! use boxoffice_proto::booking::v1::booking_service_client::BookingServiceClient;
//! # let _: Option<BookingServiceClient<()>> = None;
//! ```

pub mod policy;

/// What the generated code of one package looks like from outside.
macro_rules! package {
    ($($name:ident: $text:literal),* $(,)?) => {
        $(
            #[doc = $text]
            pub mod $name {
                /// Version 1.
                #[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated")]
                pub mod v1 {
                    include!(concat!(env!("OUT_DIR"), "/boxoffice.", stringify!($name), ".v1.rs"));
                }
            }
        )*
    };
}

package! {
    common: "What the packages share: money, common error reasons.",
    options: "What a contract says beyond its messages.",
    user: "Accounts, sessions, organisers, keys.",
    concert: "Venues and concerts.",
    booking: "Seats, holds, bookings.",
    payment: "Wallets and payments.",
}

/// Every contract, encoded as a `google.protobuf.FileDescriptorSet`, with comments, our options and `google.api.http`.
pub static DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
