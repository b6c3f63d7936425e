//! The paths in a file's code.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

use self::Token::{Colons, Group, Sign, Word};

/// A module by its names, from the crate's root.
pub type Module = Vec<String>;

/// The module that a file is.
pub fn module(file: &str) -> Module {
    let name = file.strip_suffix(".rs").unwrap_or(file);
    let name = name.strip_suffix("/mod").unwrap_or(name);
    if name == "lib" { Module::new() } else { name.split('/').map(str::to_owned).collect() }
}

/// What a file says about other modules.
#[derive(Default)]
pub struct Parsed {
    pub paths: Vec<AnyPath>,
    /// The names that its `use` declarations bring into its module.
    pub imports: BTreeSet<String>,
}

/// A path in the code, with two segments or more.
pub struct AnyPath {
    /// From the crate's root, or as it is written.
    segments: Vec<String>,
    is_from_root: bool,
    /// The module that it stands in.
    here: Module,
    /// Whether it began with `$crate`.
    pub is_of_a_macro: bool,
    /// Whether it is in the `mod tests` of a file.
    pub is_of_a_test: bool,
}

impl fmt::Display for AnyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", if self.is_from_root { "crate::" } else { "" }, self.segments.join("::"))
    }
}

impl AnyPath {
    fn new(written: &[String], here: &Module, is_of_a_macro: bool) -> Self {
        let (mut segments, mut is_from_root) = (Module::new(), false);
        for segment in written {
            match &**segment {
                "crate" => is_from_root = true,
                "self" if is_from_root || !segments.is_empty() => {}
                "self" => (segments, is_from_root) = (here.clone(), true),
                "super" => {
                    if !is_from_root {
                        (segments, is_from_root) = (here.clone(), true);
                    }
                    segments.pop();
                }
                _ => segments.push(segment.clone()),
            }
        }
        let is_of_a_test = here.last().is_some_and(|module| module == "tests");
        Self { segments, is_from_root, here: here.clone(), is_of_a_macro, is_of_a_test }
    }

    /// The file that it leads to, and the item there; `None` for a path that leads out of the crate.
    pub fn resolve<'a>(&self, files: &BTreeMap<Module, &'a str>) -> Option<(&'a str, Option<&String>)> {
        // Without `crate`, `self` or `super`, it begins with the name of a child module, or of a crate.
        let above = if self.is_from_root { &[][..] } else { &self.here };
        let full: Module = above.iter().chain(&self.segments).cloned().collect();
        if !self.is_from_root && !files.contains_key(&full[..=above.len()]) {
            return None;
        }
        let (length, file) = (0..=full.len()).rev().find_map(|length| Some((length, *files.get(&full[..length])?)))?;
        Some((file, self.segments.get(length.saturating_sub(above.len()))))
    }

    pub fn is_into(&self, name: &str) -> bool {
        !self.is_from_root && self.segments[0] == name
    }
}

impl Parsed {
    pub fn of(source: &str, module: &Module) -> Self {
        let mut parsed = Self::default();
        let tokens: TokenStream = source.parse().unwrap_or_else(|error| panic!("{module:?}: {error}"));
        parsed.walk(&tokens_of(tokens), module, module);
        parsed
    }

    /// Finds the paths in these tokens, which are in the module `here` of a file.
    fn walk(&mut self, tokens: &[Token], here: &Module, file: &Module) {
        let mut i = 0;
        while i < tokens.len() {
            match &tokens[i..] {
                [Word(word), Word(name), Group(Delimiter::Brace, body), ..] if word == "mod" => {
                    self.walk(body, &here.iter().chain([name]).cloned().collect(), file);
                    i += 3;
                }
                // `use<'a>` is none.
                [Word(word), rest @ ..] if word == "use" && !matches!(rest, [Sign('<'), ..]) => {
                    let end = rest.iter().position(|token| matches!(token, Sign(';'))).unwrap_or(rest.len());
                    self.import(&rest[..end], &[], here, file);
                    i += 1 + end;
                }
                // `pub(in crate::…)` tells who may use an item.
                [Word(word), ..] if word == "in" && i == 0 => return,
                [Word(_), Colons, Word(_), ..] => {
                    let is_of_a_macro = i > 0 && matches!(tokens[i - 1], Sign('$'));
                    let mut written = Vec::new();
                    while let [Word(word), Colons, Word(_), ..] = &tokens[i..] {
                        written.push(word.clone());
                        i += 2;
                    }
                    if let Word(word) = &tokens[i] {
                        written.push(word.clone());
                        i += 1;
                    }
                    self.paths.push(AnyPath::new(&written, here, is_of_a_macro));
                }
                [Group(_, inner), ..] => {
                    self.walk(inner, here, file);
                    i += 1;
                }
                _ => i += 1,
            }
        }
    }

    /// Finds the paths of a `use` declaration, or of a group in it.
    fn import(&mut self, tokens: &[Token], prefix: &[String], here: &Module, file: &Module) {
        for branch in tokens.split(|token| matches!(token, Sign(','))) {
            let mut written = prefix.to_vec();
            let mut name = None;
            for (i, token) in branch.iter().enumerate() {
                match token {
                    Word(word) if word == "as" => {
                        name = branch.get(i + 1);
                        break;
                    }
                    Word(word) => {
                        written.push(word.clone());
                        name = Some(token);
                    }
                    Group(_, inner) => {
                        self.import(inner, &written, here, file);
                        name = None;
                    }
                    Sign('*') => name = None,
                    Colons | Sign(_) => {}
                }
            }
            if matches!(branch, [] | [.., Group(..)]) {
                continue;
            }
            let is_of_a_macro = matches!(branch, [Sign('$'), ..]);
            self.paths.push(AnyPath::new(&written, here, is_of_a_macro));
            if let (Some(Word(name)), true) = (name, here == file) {
                let name = if name == "self" { &written[written.len() - 2] } else { name };
                self.imports.insert(name.clone());
            }
        }
    }
}

/// As much of Rust's tokens as paths are made of. There are no comments among them, and docs are literals.
pub enum Token {
    Word(String),
    Colons,
    Sign(char),
    Group(Delimiter, Vec<Token>),
}

/// The tokens of a file or a group.
pub fn tokens_of(stream: TokenStream) -> Vec<Token> {
    let mut tokens = Vec::new();
    for tree in stream {
        match tree {
            TokenTree::Ident(word) => tokens.push(Word(word.to_string())),
            TokenTree::Group(group) => tokens.push(Group(group.delimiter(), tokens_of(group.stream()))),
            TokenTree::Literal(_) => tokens.push(Sign('"')),
            TokenTree::Punct(punct) => match (punct.as_char(), tokens.last_mut()) {
                (':', Some(last @ Sign(':'))) => *last = Colons,
                (char, _) => tokens.push(Sign(char)),
            },
        }
    }
    tokens
}
