//! docs/rpcs.txt: every method with its policy and its REST path. A change of what a method promises is seen in review.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use boxoffice_proto::policy::{self, Access, IdempotencyKey, Method, Repeat};
use prost_reflect::{DescriptorPool, DynamicMessage, MethodDescriptor};

use crate::contracts;

const HEAD: &str = "\
# Every method: who may call it, how long it may take, whether it may be repeated, its idempotency key, its REST paths.
# Written by: cargo run -p xtask -- reflection
";

/// The page.
pub(crate) fn page() -> Result<String> {
    let pool = contracts::pool()?;
    let mut page = HEAD.to_owned();
    let mut service_before = "";
    for method in policy::METHODS {
        let (service, name) =
            method.path.trim_start_matches('/').split_once('/').context("a path without a method")?;
        if service != service_before {
            writeln!(page, "\n{service}")?;
            service_before = service;
        }
        let descriptor = pool
            .get_service_by_name(service)
            .and_then(|service| service.methods().find(|method| method.name() == name))
            .with_context(|| format!("the descriptors lack {}", method.path))?;
        writeln!(page, "  {name}: {}", line(method, &routes(&pool, &descriptor)?))?;
    }
    Ok(page)
}

fn line(method: &Method, routes: &[String]) -> String {
    let access = match method.access {
        Access::Public => "public",
        Access::User => "user",
        Access::Organizer => "organizer",
        Access::Admin => "admin",
        Access::Internal => "internal",
    };
    let repeat = match method.repeat {
        Repeat::NoSideEffects => "no side effects",
        Repeat::Idempotent => "idempotent",
        Repeat::Unsafe => "never repeated",
    };
    let key = match method.idempotency_key {
        IdempotencyKey::None => "no key",
        IdempotencyKey::Required => "key required",
        IdempotencyKey::Optional => "key optional",
    };
    let stream = if method.streams { ", stream" } else { "" };
    let routes = if routes.is_empty() { "no REST".to_owned() } else { routes.join(", ") };
    format!("{access}, {:?}, {repeat}, {key}{stream}, {routes}", method.deadline)
}

/// The REST paths of a method (`google.api.http`), the additional ones included.
fn routes(pool: &DescriptorPool, method: &MethodDescriptor) -> Result<Vec<String>> {
    let http =
        pool.get_extension_by_name("google.api.http").context("the descriptors lack google.api.http")?;
    let options = method.options();
    if !options.has_extension(&http) {
        return Ok(Vec::new());
    }
    let rule = options.get_extension(&http);
    let rule = rule.as_message().context("google.api.http is no message")?;
    let mut routes = Vec::from_iter(route(rule));
    let additional = rule.get_field_by_name("additional_bindings").context("no additional_bindings")?;
    for binding in additional.as_list().context("additional_bindings is no list")? {
        routes.extend(binding.as_message().and_then(route));
    }
    Ok(routes)
}

/// `POST /v1/bookings`, from one HttpRule.
fn route(rule: &DynamicMessage) -> Option<String> {
    ["get", "put", "post", "delete", "patch"].into_iter().find_map(|verb| {
        let path = rule.get_field_by_name(verb)?;
        let path = path.as_str().filter(|path| !path.is_empty())?;
        Some(format!("{} {path}", verb.to_uppercase()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_has_its_line() {
        let page = page().expect("the contracts are sound");
        let lines = page.lines().filter(|line| line.starts_with("  ")).count();
        assert_eq!(lines, policy::METHODS.len());
    }

    #[test]
    fn a_line_has_the_policy_and_the_route() {
        let page = page().expect("the contracts are sound");
        for line in [
            "\nboxoffice.booking.v1.BookingService\n",
            "  GetBooking: user, 2s, no side effects, no key, GET /v1/bookings/{booking_id}\n",
            "  CreateBooking: user, 10s, idempotent, key required, POST /v1/bookings\n",
            "  WatchSeats: public, 900s, no side effects, no key, stream, GET /v1/concerts/{concert_id}/seats/events\n",
        ] {
            assert!(page.contains(line), "{line}");
        }
    }

    #[test]
    fn an_internal_method_has_no_rest_path() {
        let page = page().expect("the contracts are sound");
        let internal: Vec<&str> = page.lines().filter(|line| line.contains(": internal,")).collect();
        assert!(!internal.is_empty());
        assert!(internal.iter().all(|line| line.ends_with(", no REST")), "{internal:?}");
    }
}
