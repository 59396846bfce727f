//! Reading the contracts: the descriptors compiled into `boxoffice-proto`, and the comments they carry.

use anyhow::{Context, Result};
use boxoffice_proto::DESCRIPTORS;
use prost_reflect::{DescriptorPool, FileDescriptor};

/// The descriptors of all contracts.
pub(crate) fn pool() -> Result<DescriptorPool> {
    DescriptorPool::decode(DESCRIPTORS).context("the compiled contracts can't be read")
}

/// The comment above something in a contract, as one line. `path` is its place in the file.
pub(crate) fn comment(file: &FileDescriptor, path: &[i32]) -> String {
    let locations = file.file_descriptor_proto().source_code_info.iter().flat_map(|info| &info.location);
    let above = locations.into_iter().find(|location| location.path == path);
    let text = above.and_then(|location| location.leading_comments.as_deref()).unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
