//! Who calls whom: read from the generated clients that services use, kept as a page, and free of cycles.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use anyhow::Result;

use crate::{
    golden,
    rust_source::Names,
    workspace::{Finding, Package, Workspace},
};

const PAGE: &str = "docs/call-graph.txt";
const CLIENT_SUFFIX: &str = "_service_client";
/// What every process asks the user service for, by itself: the keys that access tokens are signed with.
const KEY_CLIENT: &str = "key_service_client";

/// The neighbour that a client calls whose package can't be told.
const UNKNOWN: &str = "an unknown service";

/// A generated client in the code.
#[derive(Debug, PartialEq, Eq)]
struct Dial {
    place: String,
    /// The service it calls, such as `payment`.
    neighbour: String,
    /// Whether it asks for keys only.
    for_keys: bool,
}

/// Who calls whom: service by service, its neighbours.
#[derive(Debug, Default, PartialEq, Eq)]
struct CallGraph {
    calls: BTreeMap<String, BTreeSet<String>>,
    /// Whether mesh asks the user service for its keys, on behalf of every process.
    all_fetch_keys: bool,
}

/// Writes or checks the page, and finds clients where none may be, and cycles.
pub(crate) fn findings(workspace: &Workspace, check: bool) -> Result<Vec<Finding>> {
    let (graph, mut findings) = read(&workspace.packages);
    findings.extend(graph.cycle().map(|cycle| Finding {
        place: PAGE.to_owned(),
        rule: format!("the calls go round: {cycle}. Let one of them flow by event instead."),
    }));
    findings.extend(golden::update(&workspace.root, PAGE, &graph.page(), "call-graph", check)?);
    Ok(findings)
}

fn read(packages: &[Package]) -> (CallGraph, Vec<Finding>) {
    let mut graph = CallGraph::default();
    let mut findings = Vec::new();
    for package in packages {
        if let Some(service) = package.service() {
            let neighbours = graph.calls.entry(service.to_owned()).or_default();
            for dial in dials(package, &mut findings) {
                neighbours.insert(if dial.for_keys { keys_of(&dial.neighbour) } else { dial.neighbour });
            }
        } else if package.name == "gateway-rest" {
            dials(package, &mut findings);
        } else if package.name == "mesh" {
            for dial in clients_in(package, |_| true) {
                if dial.for_keys {
                    graph.all_fetch_keys = true;
                } else {
                    findings.push(Finding {
                        place: dial.place,
                        rule: format!(
                            "mesh may not call {}: of the services it knows the user's keys only.",
                            dial.neighbour
                        ),
                    });
                }
            }
        }
    }
    (graph, findings)
}

fn keys_of(service: &str) -> String {
    format!("{service} (keys)")
}

/// The clients in the one place of a crate where they may be; those elsewhere are findings.
fn dials(package: &Package, findings: &mut Vec<Finding>) -> Vec<Dial> {
    findings.extend(clients_in(package, |part| part != "clients").into_iter().map(|dial| Finding {
        place: dial.place,
        rule: format!(
            "{} may call {} in clients.rs only, where deadlines and fallbacks are.",
            package.name, dial.neighbour
        ),
    }));
    let (known, unknown): (Vec<_>, Vec<_>) =
        clients_in(package, |part| part == "clients").into_iter().partition(|dial| dial.neighbour != UNKNOWN);
    findings.extend(unknown.into_iter().map(|dial| Finding {
        place: dial.place,
        rule: "whom this client calls can't be told: import it by its path, not by `*`.".to_owned(),
    }));
    known
}

/// The generated clients that a crate uses outside its tests, in those of its parts that are `chosen`. One that came in
/// by `*` has no package in its path; it calls [`UNKNOWN`].
fn clients_in(package: &Package, chosen: impl Fn(&str) -> bool) -> Vec<Dial> {
    let names = Names::of(&package.sources);
    let mut dials = Vec::new();
    for source in package.sources.iter().filter(|source| chosen(source.part())) {
        for mention in source.mentions.iter().filter(|mention| !mention.in_test) {
            let path = names.resolve(mention);
            // boxoffice_proto::payment::v1::payment_service_client::PaymentServiceClient
            let Some(client) = path.iter().position(|name| name.ends_with(CLIENT_SUFFIX)) else { continue };
            let neighbour = client.checked_sub(2).map_or(UNKNOWN, |package| &path[package]).to_owned();
            let place = format!("{}:{}", source.path, mention.line);
            dials.push(Dial { place, neighbour, for_keys: path[client] == KEY_CLIENT });
        }
    }
    // A client's path stands wherever it is used; once a line is enough.
    dials.dedup();
    dials
}

impl CallGraph {
    fn page(&self) -> String {
        let mut page = String::from(
            "# Who calls whom. Everything else between services flows by event.\n\
             # Written by: cargo run -p xtask -- call-graph\n\n\
             gateway -> all\n",
        );
        if self.all_fetch_keys {
            writeln!(page, "all -> {}", keys_of("user")).expect("a String takes all");
        }
        for (service, neighbours) in &self.calls {
            let list = match neighbours.iter().map(String::as_str).collect::<Vec<_>>().join(", ") {
                list if list.is_empty() => "nobody".to_owned(),
                list => list,
            };
            writeln!(page, "{service} -> {list}").expect("a String takes all");
        }
        page
    }

    /// A way of calls that comes back to where it began, if there is one. Asking for keys is a call too.
    fn cycle(&self) -> Option<String> {
        let mut edges: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for (service, neighbours) in &self.calls {
            let services = neighbours.iter().map(|neighbour| neighbour.trim_end_matches(" (keys)"));
            edges.entry(service).or_default().extend(services);
            // The user service reads its keys from its own database.
            if self.all_fetch_keys && service != "user" {
                edges.entry(service).or_default().insert("user");
            }
        }
        edges.keys().find_map(|start| walk(&edges, &mut vec![*start]))
    }
}

/// Goes on from the end of `way` until it meets itself. There are a dozen services: no need to remember dead ends.
fn walk<'a>(edges: &BTreeMap<&'a str, BTreeSet<&'a str>>, way: &mut Vec<&'a str>) -> Option<String> {
    let last = *way.last()?;
    for next in edges.get(last)? {
        if let Some(begin) = way.iter().position(|service| service == next) {
            let circle: Vec<&str> = way[begin..].iter().chain([next]).copied().collect();
            return Some(circle.join(" -> "));
        }
        way.push(next);
        if let Some(found) = walk(edges, way) {
            return Some(found);
        }
        way.pop();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rust_source::SourceFile;

    fn package(name: &str, files: &[(&str, &str)]) -> Package {
        let parse =
            |(within, text): &(&str, &str)| SourceFile::parse(&format!("{name}/src/{within}"), within, text);
        Package {
            name: name.to_owned(),
            manifest: format!("{name}/Cargo.toml"),
            dependencies: Vec::new(),
            sources: files.iter().map(parse).collect(),
            rust_files: Vec::new(),
        }
    }

    const PAYMENT: &str = "use boxoffice_proto::payment::v1::payment_service_client::PaymentServiceClient;";
    const BOOKING: &str = "use boxoffice_proto::booking::v1 as booking;\n\
                           fn f() { booking::hold_service_client::HoldServiceClient::new(c); }";
    const KEYS: &str = "use boxoffice_proto::user::v1::key_service_client::KeyServiceClient;";

    #[test]
    fn the_page_lists_what_each_service_dials() {
        let (graph, findings) = read(&[
            package("mesh", &[("auth.rs", KEYS)]),
            package("gateway-rest", &[("lib.rs", "")]),
            package("svc-booking", &[("clients.rs", PAYMENT)]),
            package("svc-settlement", &[("clients/mod.rs", PAYMENT), ("clients/booking.rs", BOOKING)]),
            package(
                "svc-payment",
                &[(
                    "lib.rs",
                    "#[cfg(test)] mod tests { use boxoffice_proto::booking::v1::x_service_client; }",
                )],
            ),
            package("svc-user", &[]),
            package("boxoffice", &[("main.rs", PAYMENT)]),
        ]);
        assert_eq!(findings, []);
        let expected = "gateway -> all\n\
                        all -> user (keys)\n\
                        booking -> payment\n\
                        payment -> nobody\n\
                        settlement -> booking, payment\n\
                        user -> nobody\n";
        assert!(graph.page().ends_with(expected), "{}", graph.page());
        assert_eq!(graph.cycle(), None);
    }

    #[test]
    fn clients_outside_clients_rs_are_found() {
        for (name, within) in
            [("svc-booking", "checkout.rs"), ("svc-booking", "service.rs"), ("gateway-rest", "lib.rs")]
        {
            let (graph, findings) = read(&[package(name, &[(within, &format!("\n{PAYMENT}"))])]);
            let [finding] = findings.as_slice() else { panic!("{findings:?}") };
            assert_eq!(finding.place, format!("{name}/src/{within}:2"));
            assert!(finding.rule.contains("clients.rs only"), "{finding}");
            assert!(graph.calls.values().all(BTreeSet::is_empty));
        }
    }

    #[test]
    fn two_clients_on_one_line_are_two_neighbours() {
        let both = "use boxoffice_proto::{concert::v1::sale_service_client::S, payment::v1::payment_service_client::P};";
        let (graph, findings) = read(&[package("svc-booking", &[("clients.rs", both)])]);
        assert_eq!(findings, []);
        assert!(graph.page().contains("booking -> concert, payment\n"), "{}", graph.page());
    }

    #[test]
    fn a_client_that_came_in_by_a_star_is_found() {
        let star = "use boxoffice_proto::payment::v1::*; fn f() { payment_service_client::P::new(c); }";
        let (graph, findings) = read(&[package("svc-booking", &[("clients.rs", star)])]);
        let [finding] = findings.as_slice() else { panic!("{findings:?}") };
        assert!(finding.rule.contains("can't be told"), "{finding}");
        assert!(graph.page().contains("booking -> nobody\n"));
    }

    #[test]
    fn mesh_may_ask_for_keys_only() {
        let (_, findings) = read(&[package("mesh", &[("auth.rs", PAYMENT)])]);
        let [finding] = findings.as_slice() else { panic!("{findings:?}") };
        assert!(finding.rule.contains("mesh may not call payment"), "{finding}");
    }

    #[test]
    fn calls_that_go_round_are_found() {
        let (graph, _) = read(&[
            package("svc-booking", &[("clients.rs", PAYMENT)]),
            package("svc-payment", &[("clients.rs", BOOKING)]),
        ]);
        assert_eq!(graph.cycle().as_deref(), Some("booking -> payment -> booking"));

        let (itself, _) = read(&[package("svc-payment", &[("clients.rs", PAYMENT)])]);
        assert_eq!(itself.cycle().as_deref(), Some("payment -> payment"));

        let (through_keys, _) = read(&[
            package("mesh", &[("auth.rs", KEYS)]),
            package("svc-payment", &[]),
            package("svc-user", &[("clients.rs", PAYMENT)]),
        ]);
        assert_eq!(through_keys.cycle().as_deref(), Some("payment -> user -> payment"));
    }
}
