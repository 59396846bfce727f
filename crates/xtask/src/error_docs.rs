//! docs/ERRORS.md: every reason that a call may fail for, from the registries in the contracts.

use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};
use boxoffice_proto::policy;
use prost_reflect::EnumDescriptor;

use crate::contracts;

const HEAD: &str = "\
# Errors

Written by `cargo run -p xtask -- errors` from the files `error_reason.proto`; change those.

A call that fails says why by `reason` and `domain`. In gRPC they are in the one `google.rpc.ErrorInfo` of the status;
in REST they are members of the problem+json, beside `status`, `detail`, `metadata`, `errors` and `traceId`. Tell
failures apart by these two: `detail` is English for developers and may change. Where a meaning names metadata, gRPC
has it in `ErrorInfo.metadata`, REST in `metadata`.
";

/// The page.
pub(crate) fn page() -> Result<String> {
    let pool = contracts::pool()?;
    let mut registries: Vec<EnumDescriptor> =
        pool.all_enums().filter(|registry| registry.name() == "ErrorReason").collect();
    registries.sort_by(|one, other| one.full_name().cmp(other.full_name()));
    let mut page = HEAD.to_owned();
    for registry in &registries {
        page.push_str(&section(registry)?);
    }
    Ok(page)
}

fn section(registry: &EnumDescriptor) -> Result<String> {
    let file = registry.parent_file();
    let domain = registry.package_name().trim_end_matches(".v1");
    let mut section = format!("\n## {domain}\n\n{}\n\n", contracts::comment(&file, registry.path()));
    section.push_str("| reason | gRPC | HTTP | meaning |\n|---|---|---|---|\n");
    // Zero is the value of an enum that was not set; nobody is answered with it.
    for value in registry.values().filter(|value| value.number() != 0) {
        let reason = value.name().trim_start_matches("ERROR_REASON_");
        let info =
            policy::reason(domain, reason).with_context(|| format!("{} has no policy", value.full_name()))?;
        let meaning = contracts::comment(&file, value.path());
        ensure!(!meaning.is_empty(), "{} needs a comment: what it means", value.full_name());
        let (code, status) = (code_name(info.code)?, info.http_status());
        writeln!(section, "| `{reason}` | {code} | {status} | {} |", meaning.replace('|', "\\|"))?;
    }
    Ok(section)
}

/// The name of a gRPC status code, as `google.rpc.Code` spells it.
fn code_name(code: i32) -> Result<&'static str> {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    let index = usize::try_from(code).ok();
    index
        .and_then(|index| NAMES.get(index))
        .copied()
        .with_context(|| format!("gRPC has no status code {code}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_row() {
        let page = page().expect("the contracts are sound");
        for info in policy::REASONS.iter().filter(|info| info.reason != "UNSPECIFIED") {
            let row = format!(
                "| `{}` | {} | {} | ",
                info.reason,
                code_name(info.code).unwrap(),
                info.http_status()
            );
            assert!(page.contains(&row), "{row}");
        }
        assert!(!page.contains("UNSPECIFIED"));
    }

    #[test]
    fn a_row_has_the_status_of_its_code_or_its_own_and_the_comment() {
        let page = page().expect("the contracts are sound");
        for row in [
            "| `SEAT_TAKEN` | FAILED_PRECONDITION | 409 | One or more of the seats are held or sold.",
            "| `ETAG_MISMATCH` | FAILED_PRECONDITION | 412 | The version given is no longer",
        ] {
            assert!(page.contains(row), "{row}");
        }
        assert!(page.contains("\n## boxoffice.booking\n\nWhy the booking service refuses."));
    }

    #[test]
    fn a_code_that_grpc_does_not_have_is_refused() {
        assert_eq!(code_name(16).unwrap(), "UNAUTHENTICATED");
        assert!(code_name(17).is_err());
        assert!(code_name(-1).is_err());
    }
}
