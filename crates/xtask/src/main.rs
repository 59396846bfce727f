//! Checks that a compiler cannot make: who may know whom, who calls whom, and the pages made from the contracts.

mod call_graph;
mod contracts;
mod error_docs;
mod golden;
mod layers;
mod links;
mod rpc_list;
mod rust_source;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use crate::workspace::Workspace;

/// Checks that a compiler cannot make, and the pages made from the contracts.
#[derive(Parser)]
#[command(name = "xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Checks which crate and which module may know which.
    Layers,
    /// Checks that the relative links of the pages lead somewhere.
    Links,
    /// Writes docs/call-graph.txt: which service calls which.
    CallGraph(Page),
    /// Writes docs/ERRORS.md: every reason a call may fail for.
    Errors(Page),
    /// Writes docs/rpcs.txt: every method with its policy and its REST path.
    Reflection(Page),
}

#[derive(Args)]
struct Page {
    /// Writes nothing, and fails if the page would change.
    #[arg(long)]
    check: bool,
}

fn main() -> Result<ExitCode> {
    let task = Arguments::parse().task;
    let workspace = Workspace::find()?;
    let findings = match task {
        Task::Layers => layers::findings(&workspace),
        Task::Links => links::findings(&workspace.root)?,
        Task::CallGraph(page) => call_graph::findings(&workspace, page.check)?,
        Task::Errors(page) => {
            golden::update(&workspace.root, "docs/ERRORS.md", &error_docs::page()?, "errors", page.check)?
        }
        Task::Reflection(page) => {
            golden::update(&workspace.root, "docs/rpcs.txt", &rpc_list::page()?, "reflection", page.check)?
        }
    };
    if findings.is_empty() {
        println!("Nothing found.");
        return Ok(ExitCode::SUCCESS);
    }
    for finding in &findings {
        eprintln!("{finding}");
    }
    eprintln!("\nFindings: {}. The rules, and why, are in CONTRIBUTING.md.", findings.len());
    Ok(ExitCode::FAILURE)
}
