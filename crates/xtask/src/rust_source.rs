//! Which paths a Rust file mentions. Enough of the language for that: comments and texts are skipped, `use` trees are
//! spread out, and names are followed through imports and re-exports, so that an alias hides nothing.

use std::collections::HashMap;

/// A source file of a crate.
#[derive(Debug)]
pub(crate) struct SourceFile {
    /// Where it is, relative to the workspace.
    pub(crate) path: String,
    /// Where it is below `src`: `store/entity.rs`.
    pub(crate) within: String,
    /// What it mentions, in the order of the file.
    pub(crate) mentions: Vec<Mention>,
    /// The names that its `use`s bring in.
    imports: Vec<Import>,
}

/// A path in the code, such as `tonic::Status`, or the keyword `async`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mention {
    /// The path; `self` and `super` are resolved to begin with `crate`.
    pub(crate) path: Vec<String>,
    /// The line it begins on.
    pub(crate) line: usize,
    /// Whether only tests see it.
    pub(crate) in_test: bool,
    /// The module it is in, beginning with `crate`.
    module: Vec<String>,
}

/// That a name of a module stands for another path.
#[derive(Debug)]
struct Import {
    name: Vec<String>,
    target: Vec<String>,
}

impl SourceFile {
    /// Reads a file. `path` is relative to the workspace, `within` to `src`.
    pub(crate) fn parse(path: &str, within: &str, text: &str) -> Self {
        let is_test = within.split('/').any(|part| part == "tests" || part == "tests.rs");
        let mut reader = Reader {
            tokens: tokens(text),
            at: 0,
            scopes: Vec::new(),
            file_module: file_module(within),
            is_test,
            mentions: Vec::new(),
            imports: Vec::new(),
        };
        reader.read();
        let Reader { mentions, imports, .. } = reader;
        Self { path: path.to_owned(), within: within.to_owned(), mentions, imports }
    }

    /// The part of the crate it belongs to: `store` for `store.rs` and for `store/entity/seat.rs`.
    pub(crate) fn part(&self) -> &str {
        let first = self.within.split('/').next().unwrap_or_default();
        first.strip_suffix(".rs").unwrap_or(first)
    }
}

/// What the names of a whole crate stand for.
pub(crate) struct Names<'a>(HashMap<&'a [String], &'a [String]>);

impl<'a> Names<'a> {
    /// Collects the imports of all files of one crate.
    pub(crate) fn of(sources: &'a [SourceFile]) -> Self {
        let imports = sources.iter().flat_map(|source| &source.imports);
        Self(imports.map(|import| (import.name.as_slice(), import.target.as_slice())).collect())
    }

    /// The path that a mention means in the end: through `use`, `as`, and re-exports of other modules.
    pub(crate) fn resolve(&self, mention: &Mention) -> Vec<String> {
        let mut path = mention.path.clone();
        if path.first().is_some_and(|first| first != "crate") {
            // A bare name may be an import of the module that it stands in.
            let mut local = mention.module.clone();
            local.push(path[0].clone());
            if self.0.contains_key(local.as_slice()) {
                path = local.into_iter().chain(path.into_iter().skip(1)).collect();
            }
        }
        // Imports of imports end after a few steps; the limit is for two that name each other.
        for _ in 0..16 {
            let Some((length, target)) =
                (1..=path.len()).find_map(|length| Some((length, *self.0.get(&path[..length])?)))
            else {
                break;
            };
            path = target.iter().chain(&path[length..]).cloned().collect();
        }
        path
    }
}

/// The module that a file is: `["crate", "store", "entity"]` for `store/entity.rs` and for `store/entity/mod.rs`.
fn file_module(within: &str) -> Vec<String> {
    let mut module = vec!["crate".to_owned()];
    module.extend(within.trim_end_matches(".rs").split('/').map(str::to_owned));
    if matches!(module.last().map(String::as_str), Some("mod" | "lib" | "main")) {
        module.pop();
    }
    module
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a str),
    /// `::`
    Separator,
    Mark(char),
}

/// Cuts a file into words and marks, each with its line. Comments, texts, numbers and lifetimes are left out.
fn tokens(text: &str) -> Vec<(Token<'_>, usize)> {
    let mut tokens = Vec::new();
    let mut rest = text;
    let mut line = 1;
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment_length(rest)
        } else if let Some(length) = literal_length(rest) {
            length
        } else if first.is_alphabetic() || first == '_' {
            let word = &rest[..word_length(rest)];
            // r#type is the name `type`.
            if word == "r" && rest[1..].starts_with('#') {
                2
            } else {
                tokens.push((Token::Word(word), line));
                word.len()
            }
        } else if first.is_ascii_digit() {
            word_length(rest)
        } else if rest.starts_with("::") {
            tokens.push((Token::Separator, line));
            2
        } else {
            if !first.is_whitespace() {
                tokens.push((Token::Mark(first), line));
            }
            first.len_utf8()
        };
        line += rest[..length].matches('\n').count();
        rest = &rest[length..];
    }
    tokens
}

fn word_length(text: &str) -> usize {
    text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len())
}

/// The length of a `/* … */` at the beginning; they nest.
fn block_comment_length(text: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        if rest.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with("*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += rest.chars().next().map_or(1, char::len_utf8);
        }
    }
    text.len()
}

/// The length of a text, a character or a lifetime at the beginning, if there is one.
fn literal_length(text: &str) -> Option<usize> {
    if let Some(after) = text.strip_prefix('\'') {
        let first = after.chars().next()?;
        let is_character = first == '\\' || after[first.len_utf8()..].starts_with('\'');
        return Some(if is_character { 1 + quoted_length(after, '\'') } else { 1 + word_length(after) });
    }
    let prefix = ["br", "cr", "b", "c", "r", ""].into_iter().find(|prefix| {
        let after = text.strip_prefix(prefix);
        after.is_some_and(|after| after.trim_start_matches('#').starts_with('"') || after.starts_with("'\\"))
    })?;
    let after = &text[prefix.len()..];
    if !prefix.ends_with('r') {
        let quote = after.chars().next().filter(|first| *first != '#')?;
        return Some(prefix.len() + 1 + quoted_length(&after[1..], quote));
    }
    // A raw text: nothing in it is an escape, and it ends with as many # as it began with.
    let hashes = after.find('"')?;
    let end = format!("\"{}", &after[..hashes]);
    let body = &after[hashes + 1..];
    let length = body.find(&end).map_or(body.len(), |at| at + end.len());
    Some(prefix.len() + hashes + 1 + length)
}

/// The length of what follows an opening quote, the closing one included.
fn quoted_length(text: &str, quote: char) -> usize {
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        if character == '\\' {
            characters.next();
        } else if character == quote {
            return at + 1;
        }
    }
    text.len()
}

/// A pair of braces around the place that is read.
struct Scope {
    /// The name of the module, if it is one.
    module: Option<String>,
    is_test: bool,
}

struct Reader<'a> {
    tokens: Vec<(Token<'a>, usize)>,
    at: usize,
    scopes: Vec<Scope>,
    file_module: Vec<String>,
    is_test: bool,
    mentions: Vec<Mention>,
    imports: Vec<Import>,
}

impl<'a> Reader<'a> {
    fn read(&mut self) {
        let mut next_item_is_test = false;
        while let Some((token, line)) = self.tokens.get(self.at).copied() {
            match token {
                Token::Mark('#') if self.is_test_attribute() => {
                    next_item_is_test = true;
                    self.at += 1;
                }
                Token::Mark('{') => {
                    self.scopes.push(Scope { module: None, is_test: next_item_is_test });
                    next_item_is_test = false;
                    self.at += 1;
                }
                Token::Mark('}') => {
                    self.scopes.pop();
                    next_item_is_test = false;
                    self.at += 1;
                }
                Token::Mark(';') => {
                    next_item_is_test = false;
                    self.at += 1;
                }
                Token::Word("mod") => {
                    self.read_module(next_item_is_test);
                    next_item_is_test = false;
                }
                Token::Word("use") => {
                    self.at += 1;
                    let in_test = next_item_is_test || self.in_test();
                    self.read_use_tree(&[], in_test);
                }
                Token::Word(word @ ("async" | "await")) => {
                    self.mention(vec![word.to_owned()], line, next_item_is_test);
                    self.at += 1;
                }
                Token::Word(_) => {
                    let path = self.read_path();
                    if path.len() > 1 {
                        self.mention(self.absolute(path), line, next_item_is_test);
                    }
                }
                _ => self.at += 1,
            }
        }
    }

    fn word_at(&self, at: usize) -> Option<&'a str> {
        match self.tokens.get(at) {
            Some((Token::Word(word), _)) => Some(word),
            _ => None,
        }
    }

    fn is_mark(&self, at: usize, mark: char) -> bool {
        matches!(self.tokens.get(at), Some((Token::Mark(found), _)) if *found == mark)
    }

    fn is_separator(&self, at: usize) -> bool {
        matches!(self.tokens.get(at), Some((Token::Separator, _)))
    }

    fn line(&self) -> usize {
        self.tokens.get(self.at).map_or(0, |(_, line)| *line)
    }

    /// Whether `#[cfg(test)]` stands here.
    fn is_test_attribute(&self) -> bool {
        self.is_mark(self.at + 1, '[')
            && self.word_at(self.at + 2) == Some("cfg")
            && self.is_mark(self.at + 3, '(')
            && self.word_at(self.at + 4) == Some("test")
            && self.is_mark(self.at + 5, ')')
    }

    /// `mod name {` opens a module; `mod name;` is another file.
    fn read_module(&mut self, is_test: bool) {
        let name = self.word_at(self.at + 1);
        self.at += 1;
        if let (Some(name), true) = (name, self.is_mark(self.at + 1, '{')) {
            self.scopes.push(Scope { module: Some(name.to_owned()), is_test });
            self.at += 2;
        }
    }

    /// `a::b::c`, as long as it goes.
    fn read_path(&mut self) -> Vec<String> {
        let mut path = Vec::new();
        while let Some(word) = self.word_at(self.at) {
            path.push(word.to_owned());
            self.at += 1;
            if !(self.is_separator(self.at) && self.word_at(self.at + 1).is_some()) {
                break;
            }
            self.at += 1;
        }
        path
    }

    /// `a::{b, c as d, e::*}`: one mention and one import for each.
    fn read_use_tree(&mut self, prefix: &[String], in_test: bool) {
        if self.is_separator(self.at) {
            self.at += 1;
        }
        let line = self.line();
        let mut path = prefix.to_vec();
        path.extend(self.read_path());
        if self.is_separator(self.at) {
            self.at += 1;
        }
        if self.is_mark(self.at, '{') {
            self.at += 1;
            while self.at < self.tokens.len() && !self.is_mark(self.at, '}') {
                if self.is_mark(self.at, ',') {
                    self.at += 1;
                    continue;
                }
                self.read_use_tree(&path, in_test);
            }
            self.at += 1;
            return;
        }
        if path.is_empty() && !self.is_mark(self.at, '*') {
            // Not an import: `impl Trait + use<'a>`.
            self.at += 1;
            return;
        }
        if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
            path.pop();
        }
        let target = self.absolute(path);
        self.mention(target.clone(), line, in_test);
        if self.is_mark(self.at, '*') {
            self.at += 1;
            return;
        }
        let mut name = target.last().cloned();
        if self.word_at(self.at) == Some("as") {
            name = self.word_at(self.at + 1).map(str::to_owned);
            self.at += 2;
        }
        // Whatever else stands here is no Rust; go on, or a broken file would be read for ever.
        if !self.is_mark(self.at, ',') && !self.is_mark(self.at, '}') && !self.is_mark(self.at, ';') {
            self.at += 1;
        }
        if let Some(name) = name {
            let mut full = self.module();
            full.push(name);
            if full != target {
                self.imports.push(Import { name: full, target });
            }
        }
    }

    fn module(&self) -> Vec<String> {
        let inline = self.scopes.iter().filter_map(|scope| scope.module.clone());
        self.file_module.iter().cloned().chain(inline).collect()
    }

    fn in_test(&self) -> bool {
        self.is_test || self.scopes.iter().any(|scope| scope.is_test)
    }

    /// The path with `self` and `super` replaced by what they stand for here.
    fn absolute(&self, path: Vec<String>) -> Vec<String> {
        if !matches!(path.first().map(String::as_str), Some("self" | "super")) {
            return path;
        }
        let mut absolute = self.module();
        let mut rest = path.into_iter().peekable();
        while let Some(step) = rest.next_if(|step| step == "self" || step == "super") {
            if step == "super" {
                absolute.pop();
            }
        }
        absolute.extend(rest);
        absolute
    }

    fn mention(&mut self, path: Vec<String>, line: usize, is_test: bool) {
        let in_test = is_test || self.in_test();
        let module = self.module();
        self.mentions.push(Mention { path, line, in_test, module });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(within: &str, text: &str) -> SourceFile {
        SourceFile::parse(&format!("svc-x/src/{within}"), within, text)
    }

    /// What the last of the files mentions, resolved, with lines.
    fn mentions(files: &[(&str, &str)]) -> Vec<(usize, String)> {
        let sources: Vec<SourceFile> = files.iter().map(|(within, text)| parse(within, text)).collect();
        let names = Names::of(&sources);
        let last = sources.last().expect("a file");
        last.mentions.iter().map(|mention| (mention.line, names.resolve(mention).join("::"))).collect()
    }

    #[test]
    fn comments_texts_characters_and_lifetimes_mention_nothing() {
        let text = r####"
            //! tonic::Status in a comment
            /* tokio::spawn /* nested::comment */ still::comment */
            const A: &str = "tonic::Status \" tonic::Code";
            const B: &str = r#"sea_orm::Value " tonic::Code"#;
            const C: &[u8] = b"tokio::net";
            const D: (char, char, u8) = ('"', '\'', b'\'');
            fn f<'a>(x: &'a str) -> &'a str { x }
            const E: f64 = 1.5e3;
            real::path!();
        "####;
        assert_eq!(mentions(&[("a.rs", text)]), [(10, "real::path".to_owned())]);
    }

    #[test]
    fn use_trees_are_spread_out_over_their_lines() {
        let text = "use a::{\n    b::{self, c as d},\n    e::*,\n};\npub use ::f::g;\n";
        let expected = [(2, "a::b"), (2, "a::b::c"), (3, "a::e"), (5, "f::g")];
        assert_eq!(mentions(&[("x.rs", text)]), expected.map(|(line, path)| (line, path.to_owned())));
    }

    #[test]
    fn names_are_followed_through_imports_aliases_and_reexports() {
        let lib = (
            "lib.rs",
            "pub use boxoffice_proto as contracts; pub mod wire { pub use tonic::Status as Answer; }",
        );
        let domain = (
            "domain.rs",
            "use chrono::Utc as T; fn now() { T::now(); crate::wire::Answer::ok(); crate::contracts::booking::v1::X; }",
        );
        let paths: Vec<String> = mentions(&[lib, domain]).into_iter().map(|(_, path)| path).collect();
        assert_eq!(
            paths,
            ["chrono::Utc", "chrono::Utc::now", "tonic::Status::ok", "boxoffice_proto::booking::v1::X"]
        );
    }

    #[test]
    fn imports_that_name_each_other_end() {
        let files = [("a.rs", "pub use crate::b::X;"), ("b.rs", "pub use crate::a::X; fn f() { X::y(); }")];
        assert_eq!(mentions(&files).len(), 2);
    }

    #[test]
    fn super_and_self_are_resolved_by_the_file_and_inline_modules() {
        let text =
            "use super::store; mod inner { use super::super::service::Call; fn f() { self::g::h(); } }";
        let paths: Vec<String> =
            mentions(&[("domain/seat.rs", text)]).into_iter().map(|(_, path)| path).collect();
        assert_eq!(
            paths,
            ["crate::domain::store", "crate::domain::service::Call", "crate::domain::seat::inner::g::h"]
        );
        let paths = mentions(&[("domain.rs", "use super::store;")]);
        assert_eq!(paths, [(1, "crate::store".to_owned())]);
        assert_eq!(mentions(&[("domain/mod.rs", "use super::store;")]), paths);
    }

    #[test]
    fn code_that_only_tests_see_is_marked() {
        let text = "fn f() { a::b(); }\n#[cfg(test)]\nmod tests {\n    use c::d;\n    fn g() { e::f(); }\n}\n\
                    fn h() { g::h(); }\n#[cfg(test)]\nuse i::j;\nuse k::l;\n\
                    #[cfg(test)]\n#[allow(x)]\nfn m() { let y = 1; m::n(); }\nfn o() { o::p(); }";
        let marks: Vec<(String, bool)> =
            parse("x.rs", text).mentions.iter().map(|m| (m.path.join("::"), m.in_test)).collect();
        let expected = [
            ("a::b", false),
            ("c::d", true),
            ("e::f", true),
            ("g::h", false),
            ("i::j", true),
            ("k::l", false),
            ("m::n", true),
            ("o::p", false),
        ];
        assert_eq!(marks, expected.map(|(path, in_test)| (path.to_owned(), in_test)));
        assert!(parse("checkout/tests.rs", "use a::b;").mentions[0].in_test);
    }

    #[test]
    fn async_code_is_a_mention() {
        let words: Vec<String> =
            mentions(&[("x.rs", "async fn f() { g().await }")]).into_iter().map(|m| m.1).collect();
        assert_eq!(words, ["async", "await"]);
    }

    #[test]
    fn a_broken_file_is_read_to_its_end() {
        for text in [
            "use a::{b",
            "use a b c",
            "\"never closed",
            "mod",
            "use",
            "}}}",
            "'",
            "r#\"open",
            "/* open",
            "use<'a>",
        ] {
            parse("x.rs", text);
        }
    }

    #[test]
    fn the_part_of_a_file_is_its_first_directory_or_name() {
        assert_eq!(parse("store.rs", "").part(), "store");
        assert_eq!(parse("store/entity/seat.rs", "").part(), "store");
    }
}
