//! Pages that are generated and committed: written, or compared with what is there.

use std::{fs, io, path::Path};

use anyhow::{Context, Result};

use crate::workspace::Finding;

/// Writes a page, or, to `check`, finds out whether it would change. `task` is the xtask that writes it.
pub(crate) fn update(
    root: &Path,
    page: &str,
    content: &str,
    task: &str,
    check: bool,
) -> Result<Vec<Finding>> {
    let file = root.join(page);
    if !check {
        fs::write(&file, content).with_context(|| format!("writing {page}"))?;
        return Ok(Vec::new());
    }
    let committed = match fs::read_to_string(&file) {
        Ok(committed) => committed,
        Err(why) if why.kind() == io::ErrorKind::NotFound => String::new(),
        Err(why) => return Err(why).with_context(|| format!("reading {page}")),
    };
    Ok(difference(page, &committed, content, task).into_iter().collect())
}

/// The first line in which a page differs from what it should be.
fn difference(page: &str, committed: &str, generated: &str, task: &str) -> Option<Finding> {
    if committed == generated {
        return None;
    }
    let mut committed_lines = committed.lines();
    let mut generated_lines = generated.lines();
    let mut line = 0;
    let (is, should_be) = loop {
        line += 1;
        match (committed_lines.next(), generated_lines.next()) {
            (Some(is), Some(should_be)) if is == should_be => {}
            // All lines agree, so what differs is the newline at the end.
            (None, None) => break ("another end of the file", "a newline"),
            (is, should_be) => break (is.unwrap_or("the end"), should_be.unwrap_or("the end")),
        }
    };
    Some(Finding {
        place: format!("{page}:{line}"),
        rule: format!(
            "the page is out of date: it has\n  {is}\nbut should have\n  {should_be}\n\
             Mend it: cargo run -p xtask -- {task}, and look at the difference before committing it."
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_agrees_is_no_finding() {
        assert_eq!(difference("docs/x.txt", "a\nb\n", "a\nb\n", "x"), None);
    }

    #[test]
    fn a_page_out_of_date_is_found_with_line_and_remedy() {
        for (committed, generated, place) in [
            ("a\nold\n", "a\nnew\n", "docs/x.txt:2"),
            ("a\n", "a\nnew\n", "docs/x.txt:2"),
            ("a\nb\nextra\n", "a\nb\n", "docs/x.txt:3"),
            ("", "a\n", "docs/x.txt:1"),
            ("a", "a\n", "docs/x.txt:2"),
        ] {
            let finding = difference("docs/x.txt", committed, generated, "call-graph").expect("they differ");
            assert_eq!(finding.place, place);
            assert!(finding.rule.contains("cargo run -p xtask -- call-graph"), "{finding}");
        }
    }

    #[test]
    fn checking_writes_nothing_and_updating_ends_the_difference() {
        let root = tempfile::tempdir().expect("a directory");
        let check =
            |check| update(root.path(), "page.txt", "new\n", "x", check).expect("readable and writable");
        assert_eq!(check(true).len(), 1);
        assert!(!root.path().join("page.txt").exists());
        assert_eq!(check(false), []);
        assert_eq!(check(true), []);
    }
}
