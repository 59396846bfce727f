//! The table of settings in docs/OPERATIONS.md is what the programs say of themselves.

use std::{collections::BTreeMap, fs, path::Path};

use clap::{Command, CommandFactory};
use mesh::process::command;

const BEGIN: &str = "<!-- settings: begin -->\n";
const END: &str = "<!-- settings: end -->\n";

/// A setting, as a program tells of it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Setting {
    variable: String,
    default: String,
    meaning: String,
}

/// The settings that a program reads from its environment.
fn settings(program: Command) -> Vec<Setting> {
    let read = |argument: &clap::Arg| {
        let variable = argument.get_env()?.to_str()?.to_owned();
        let defaults: Vec<_> =
            argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
        let default = match (argument.is_required_set(), defaults.concat()) {
            (true, _) => "must be set".to_owned(),
            (false, default) if default.is_empty() => "none".to_owned(),
            (false, default) => format!("`{default}`"),
        };
        let meaning = argument.get_long_help().or(argument.get_help())?.to_string();
        Some(Setting { variable, default, meaning: meaning.replace(['\n', '|'], " ") })
    };
    program.get_arguments().filter_map(read).collect()
}

/// The table of all settings: each once, with who reads it.
fn table() -> String {
    let programs = [
        ("gateway", gateway_rest::config::Cli::command()),
        ("user", command::<svc_user::Config>("svc-user")),
        ("concert", command::<svc_concert::Config>("svc-concert")),
        ("booking", command::<svc_booking::Config>("svc-booking")),
        ("payment", command::<svc_payment::Config>("svc-payment")),
    ];
    let mut readers: BTreeMap<Setting, Vec<&str>> = BTreeMap::new();
    for (program, command) in programs {
        for setting in settings(command) {
            readers.entry(setting).or_default().push(program);
        }
    }
    let mut table = "| variable | default | read by | what it is |\n|---|---|---|---|\n".to_owned();
    for (Setting { variable, default, meaning }, by) in readers {
        let by = match by.len() {
            5 => "all".to_owned(),
            4 if !by.contains(&"gateway") => "services".to_owned(),
            _ => by.join(", "),
        };
        table += &format!("| `{variable}` | {default} | {by} | {meaning} |\n");
    }
    table
}

#[test]
fn the_table_of_settings_is_what_the_programs_say() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/OPERATIONS.md");
    let text = fs::read_to_string(&page).unwrap();
    let (before, rest) = text.split_once(BEGIN).expect("the beginning of the table");
    let (found, after) = rest.split_once(END).expect("the end of the table");
    let expected = table();
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&page, format!("{before}{BEGIN}{expected}{END}{after}")).unwrap();
        return;
    }
    assert_eq!(
        found, expected,
        "run `UPDATE_GOLDEN=1 cargo test -p boxoffice --test environment` and look at the page's diff"
    );
}
