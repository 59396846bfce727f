//! Links from page to page and from a page to the sources: what they lead to must be there.

use std::{fs, path::Path};

use anyhow::{Context, Result};

use crate::workspace::{Finding, collect_files};

/// Every relative link in the Markdown pages below the root that leads nowhere.
pub(crate) fn findings(root: &Path) -> Result<Vec<Finding>> {
    let mut pages = Vec::new();
    collect_files(root, ".md", &mut pages)?;
    pages.sort();
    let mut findings = Vec::new();
    for page in pages {
        let name = page.strip_prefix(root).unwrap_or(&page).display().to_string();
        for (line, target) in links(&read(&page)?) {
            if let Some(what) = missing(&page, target)? {
                findings.push(Finding {
                    place: format!("{name}:{line}"),
                    rule: format!(
                        "the link {target} leads nowhere: there is no {what}. Write where it is now."
                    ),
                });
            }
        }
    }
    Ok(findings)
}

fn read(page: &Path) -> Result<String> {
    fs::read_to_string(page).with_context(|| format!("reading {}", page.display()))
}

/// The lines of a page outside of its code, with their numbers.
fn prose(page: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut is_code = false;
    (1..).zip(page.lines()).filter(move |(_, line)| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    })
}

/// Where a page's relative links lead, each with its line.
fn links(page: &str) -> Vec<(usize, &str)> {
    let mut links = Vec::new();
    for (number, line) in prose(page) {
        let targets = line.split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0));
        links.extend(targets.filter(|target| !target.contains("://")).map(|target| (number, target)));
    }
    links
}

/// What is missing for a link to lead somewhere: a file, or the heading of a page. None: nothing.
fn missing(page: &Path, target: &str) -> Result<Option<String>> {
    let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
    let path = if file.is_empty() { page.to_owned() } else { page.with_file_name("").join(file) };
    if !path.exists() {
        return Ok(Some(format!("file {file}")));
    }
    if anchor.is_empty()
        || prose(&read(&path)?).any(|(_, line)| anchor_of(line).is_some_and(|own| own == anchor))
    {
        return Ok(None);
    }
    Ok(Some(format!("heading #{anchor}")))
}

/// How a link names a line that is a heading.
fn anchor_of(line: &str) -> Option<String> {
    let heading = line.strip_prefix('#')?.trim_start_matches('#').trim().to_lowercase();
    let kept = heading.chars().filter(|letter| letter.is_alphanumeric() || " -_".contains(*letter));
    Some(kept.map(|letter| if letter == ' ' { '-' } else { letter }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_that_lead_nowhere_are_found_with_their_line() {
        let root = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str| fs::write(root.path().join(name), text).expect("our directory");
        fs::create_dir(root.path().join("docs")).expect("our directory");
        write("docs/there.md", "# There\n\n## What it's for, and how\n");
        let good = "[a](docs/there.md) and [b](docs/there.md#what-its-for-and-how), [c](docs),\n\
                    [d](https://nothing.invalid/x.md), [e](#top)\n# Top\n```sh\nx=[f](nowhere.md)\n```\n";
        write("README.md", good);
        assert_eq!(findings(root.path()).expect("readable"), []);
        write("docs/there.md", "[up](../README.md)\n[x](gone.rs), [y](../README.md#bottom)\n");
        let found = findings(root.path()).expect("readable");
        let places: Vec<_> = found.iter().map(|finding| finding.place.as_str()).collect();
        assert_eq!(places, ["README.md:1", "docs/there.md:2", "docs/there.md:2"]);
        for (finding, what) in found.iter().zip(["#what-its-for-and-how", "file gone.rs", "heading #bottom"])
        {
            assert!(finding.rule.contains(what), "{finding}");
        }
    }
}
