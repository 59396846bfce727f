//! Who may know whom: crates by their manifests, the parts of a service by the paths in their code.

use crate::{
    rust_source::{Names, SourceFile},
    workspace::{Finding, Package, Workspace},
};

/// Every breach of the layer rules in the workspace.
pub(crate) fn findings(workspace: &Workspace) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in &workspace.packages {
        findings.extend(crate_rules(package));
        findings.extend(file_name_rules(package));
        if package.service().is_some() {
            findings.extend(service_rules(&package.sources));
        }
    }
    findings
}

/// Which members a member may depend on. `None`: any.
fn allowed_dependencies(package: &str) -> Result<Option<&'static [&'static str]>, String> {
    match package {
        "boxoffice" | "xtask" => Ok(None),
        "boxoffice-proto" => Ok(Some(&[])),
        "mesh" => Ok(Some(&["boxoffice-proto"])),
        "mesh-test" | "gateway-rest" => Ok(Some(&["boxoffice-proto", "mesh"])),
        service if service.starts_with("svc-") => Ok(Some(&["boxoffice-proto", "mesh"])),
        _ => Err(format!(
            "no rule says whom the crate {package} may depend on; give it one in crates/xtask/src/layers.rs"
        )),
    }
}

fn crate_rules(package: &Package) -> Vec<Finding> {
    let finding = |rule| Finding { place: package.manifest.clone(), rule };
    let allowed = match allowed_dependencies(&package.name) {
        Ok(None) => return Vec::new(),
        Ok(Some(allowed)) => allowed,
        Err(missing) => return vec![finding(missing)],
    };
    let mut findings = Vec::new();
    for dependency in &package.dependencies {
        let name = dependency.name.as_str();
        // Tests of any crate may use mesh-test; mesh-test itself has no use for that.
        if allowed.contains(&name) || (name == "mesh-test" && dependency.for_tests) {
            continue;
        }
        let list = if allowed.is_empty() { "none".to_owned() } else { allowed.join(" and ") };
        findings.push(finding(format!(
            "{} may not depend on {name}: of our crates it may know {list} (and mesh-test in its tests). Services \
             reach each other by gRPC, and what several need belongs to mesh.",
            package.name
        )));
    }
    findings
}

const NAMELESS: [&str; 8] = ["utils", "util", "common", "helpers", "helper", "manager", "managers", "misc"];

fn file_name_rules(package: &Package) -> Vec<Finding> {
    let nameless = |file: &&String| {
        file.split('/').any(|part| NAMELESS.contains(&part.strip_suffix(".rs").unwrap_or(part)))
    };
    let finding = |file: &String| Finding {
        place: file.clone(),
        rule: format!(
            "a file or directory may not be called {}: name it after what is in it.",
            NAMELESS.join(", ")
        ),
    };
    package.rust_files.iter().filter(nameless).map(finding).collect()
}

/// Paths that a part of a service may not mention, and why.
struct Ban {
    /// The part, as the first directory or file name below `src`.
    part: &'static str,
    paths: &'static [&'static [&'static str]],
    why: &'static str,
}

const BANS: &[Ban] = &[
    Ban {
        part: "domain",
        paths: &[
            &["tonic"],
            &["sea_orm"],
            &["sqlx"],
            &["tokio"],
            &["boxoffice_proto"],
            &["async"],
            &["await"],
            &["mesh", "client"],
            &["mesh", "context"],
            &["mesh", "database"],
            &["mesh", "failure"],
            &["mesh", "Failure"],
            &["mesh", "lane"],
            &["mesh", "server"],
        ],
        why: "the domain is plain structs and named errors; it knows no transport, database or runtime",
    },
    Ban {
        part: "domain",
        paths: &[&["mesh", "clock"]],
        why: "the domain reads no clock: time is an argument",
    },
    Ban {
        part: "domain",
        paths: &[
            &["crate", "store"],
            &["crate", "service"],
            &["crate", "checkout"],
            &["crate", "clients"],
            &["crate", "worker"],
        ],
        why: "the domain is the lowest layer of a service; those that may use it are above it",
    },
    Ban {
        part: "store",
        paths: &[&["crate", "service"], &["crate", "checkout"], &["crate", "clients"], &["crate", "worker"]],
        why: "the store knows the domain only; those that may use it are above it",
    },
];

/// The ends of paths that read a clock, whatever they were imported from.
const CLOCK_READS: [[&str; 2]; 4] =
    [["Utc", "now"], ["Local", "now"], ["SystemTime", "now"], ["Instant", "now"]];

/// The parts of a service that may see generated types.
const EDGES: [&str; 5] = ["service", "clients", "error", "lib", "main"];

fn service_rules(sources: &[SourceFile]) -> Vec<Finding> {
    let names = Names::of(sources);
    let mut findings = Vec::new();
    for source in sources {
        for mention in &source.mentions {
            let path = names.resolve(mention);
            if let Some(why) = breach(source.part(), &path, mention.in_test) {
                let place = format!("{}:{}", source.path, mention.line);
                let rule = format!("{} may not mention {}: {why}.", source.within, path.join("::"));
                findings.push(Finding { place, rule });
            }
        }
    }
    // A `use` and what it brings in are often on one line; once is enough.
    findings.dedup();
    findings
}

/// Why a part of a service may not mention a path.
fn breach(part: &str, path: &[String], in_test: bool) -> Option<&'static str> {
    let begins_with =
        |banned: &&[&str]| path.len() >= banned.len() && banned.iter().zip(path).all(|(a, b)| a == b);
    if let Some(ban) = BANS.iter().find(|ban| ban.part == part && ban.paths.iter().any(begins_with)) {
        return Some(ban.why);
    }
    if (part == "domain" || part == "store") && path == ["crate"] {
        return Some("what comes in by `crate::*` can't be told; import it by name");
    }
    if part == "domain" && CLOCK_READS.iter().any(|read| path.windows(2).any(|pair| pair == read)) {
        return Some("the domain reads no clock: time is an argument");
    }
    // Tests may: fakes of neighbours implement the generated traits.
    if path[0] == "boxoffice_proto" && !EDGES.contains(&part) && !in_test {
        return Some(
            "generated types stop at service, clients and error; below them the domain's own types are used",
        );
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Dependency;

    fn package(name: &str, dependencies: &[(&str, bool)]) -> Package {
        Package {
            name: name.to_owned(),
            manifest: format!("{name}/Cargo.toml"),
            dependencies: dependencies
                .iter()
                .map(|(name, for_tests)| Dependency { name: (*name).to_owned(), for_tests: *for_tests })
                .collect(),
            sources: Vec::new(),
            rust_files: Vec::new(),
        }
    }

    /// The places and rules that a service with these files breaks.
    fn service(files: &[(&str, &str)]) -> Vec<String> {
        let parse =
            |(within, text): &(&str, &str)| SourceFile::parse(&format!("svc-x/src/{within}"), within, text);
        let sources: Vec<SourceFile> = files.iter().map(parse).collect();
        service_rules(&sources).iter().map(Finding::to_string).collect()
    }

    #[test]
    fn crates_may_depend_on_the_layers_below() {
        for (name, dependencies) in [
            ("boxoffice-proto", &[][..]),
            ("mesh", &[("boxoffice-proto", false), ("mesh-test", true)]),
            ("svc-booking", &[("mesh", false), ("boxoffice-proto", false), ("mesh-test", true)]),
            ("gateway-rest", &[("mesh", false), ("boxoffice-proto", false)]),
            ("boxoffice", &[("svc-booking", false), ("gateway-rest", false), ("mesh", false)]),
            ("xtask", &[("boxoffice-proto", false)]),
        ] {
            assert_eq!(crate_rules(&package(name, dependencies)), [], "{name}");
        }
    }

    #[test]
    fn crates_may_not_depend_on_others() {
        for (name, dependency, for_tests) in [
            ("boxoffice-proto", "mesh", false),
            ("mesh", "svc-user", false),
            ("mesh", "mesh-test", false),
            ("svc-booking", "svc-payment", false),
            ("svc-booking", "svc-payment", true),
            ("svc-booking", "mesh-test", false),
            ("svc-booking", "boxoffice", true),
            ("gateway-rest", "svc-user", false),
            ("mesh-test", "svc-user", false),
        ] {
            let findings = crate_rules(&package(name, &[(dependency, for_tests)]));
            let [finding] = findings.as_slice() else { panic!("{name} -> {dependency}: {findings:?}") };
            assert_eq!(finding.place, format!("{name}/Cargo.toml"));
            assert!(
                finding.rule.starts_with(&format!("{name} may not depend on {dependency}:")),
                "{finding}"
            );
        }
    }

    #[test]
    fn a_crate_without_a_rule_is_found() {
        assert_eq!(crate_rules(&package("newcomer", &[])).len(), 1);
    }

    #[test]
    fn files_are_named_after_what_is_in_them() {
        let mut bad = package("svc-x", &[]);
        let files =
            ["svc-x/src/store.rs", "svc-x/src/utils.rs", "svc-x/tests/common/mod.rs", "svc-x/src/manager.rs"];
        bad.rust_files = files.map(str::to_owned).to_vec();
        let places: Vec<String> = file_name_rules(&bad).into_iter().map(|finding| finding.place).collect();
        assert_eq!(places, files[1..]);
    }

    #[test]
    fn a_service_in_layers_breaks_no_rule() {
        let broken = service(&[
            ("lib.rs", "mod domain; use boxoffice_proto::booking::v1::X; async fn serve() {}"),
            ("service.rs", "use crate::{domain, store, checkout}; use boxoffice_proto::booking::v1::Hold;"),
            ("service/encode.rs", "use boxoffice_proto::booking::v1::Hold; use tonic::Status;"),
            (
                "domain/seat.rs",
                "use chrono::{DateTime, Utc}; use mesh::id::HoldId; fn f(now: DateTime<Utc>) {}",
            ),
            ("store.rs", "use crate::domain; use sea_orm::Value; async fn f() { tokio::spawn(g()); }"),
            ("clients.rs", "use boxoffice_proto::payment::v1::payment_service_client::PaymentServiceClient;"),
            ("checkout.rs", "#[cfg(test)] mod tests { use boxoffice_proto::payment::v1::Charge; }"),
        ]);
        assert_eq!(broken, [""; 0]);
    }

    #[test]
    fn the_domain_may_not_know_what_is_above_it() {
        for code in [
            "use tonic::Status;",
            "fn f() -> tonic::Status { g() }",
            "use sea_orm::prelude::*;",
            "use {std::fmt, tokio::time};",
            "use boxoffice_proto::booking::v1::Hold;",
            "async fn f() {}",
            "use chrono::Utc; fn f() { Utc::now(); }",
            "use std::time; fn f() { time::SystemTime::now(); }",
            "use std::time::Instant as I; fn f() { I::now(); }",
            "use mesh::clock::Clock;",
            "use mesh::Failure;",
            "use crate::store::Store;",
            "use crate::{domain, service};",
            "use crate::*;",
            "use super::super::*;",
            "use super::super::checkout;",
            "fn f() { crate::clients::charge(); }",
            "use crate::worker;",
            "use crate::Database;",
            "use crate::error::Answer;",
        ] {
            let broken = service(&[
                ("lib.rs", "pub use crate::store::Database;"),
                ("error.rs", "pub use tonic::Status as Answer;"),
                ("domain/seat.rs", &format!("\n{code}")),
            ]);
            assert_eq!(broken.len(), 1, "{code}: {broken:?}");
            assert!(
                broken[0].starts_with("svc-x/src/domain/seat.rs:2: domain/seat.rs may not mention "),
                "{broken:?}"
            );
        }
        assert_eq!(service(&[("domain.rs", "use tonic::Status;")]).len(), 1);
    }

    #[test]
    fn the_store_may_not_know_what_is_above_it() {
        for code in [
            "use crate::service::Service;",
            "use crate::{checkout::Saga, domain};",
            "use crate::clients;",
            "fn f() { crate::worker::sweep(); }",
            "use boxoffice_proto::booking::v1::Hold;",
        ] {
            for within in ["store.rs", "store/entity.rs"] {
                let broken = service(&[(within, code)]);
                assert_eq!(broken.len(), 1, "{code}: {broken:?}");
            }
        }
    }

    #[test]
    fn generated_types_stop_at_the_edges() {
        for within in ["checkout.rs", "worker.rs", "store.rs", "checkout/step.rs"] {
            let broken = service(&[(within, "\n\nuse boxoffice_proto::payment::v1::Charge;")]);
            assert_eq!(broken.len(), 1, "{within}");
            assert!(broken[0].contains(":3: ") && broken[0].contains("generated types stop"), "{broken:?}");
        }
        let hidden =
            [("lib.rs", "use boxoffice_proto as wire;"), ("worker.rs", "use crate::wire::payment::v1::X;")];
        assert_eq!(service(&hidden).len(), 1);
    }
}
