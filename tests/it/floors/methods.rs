//! The methods of a type that are spread over several files, and who calls them.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::Delimiter::{Brace, Parenthesis};

use super::paths::Token::{self, Colons, Group, Sign, Word};

/// An `impl` block at the top level of a file.
struct Block<'a> {
    file: &'a str,
    /// The name of the type, without its path and its parameters.
    of: String,
    of_a_trait: bool,
    body: Vec<Token>,
}

/// Returns from which file to which one a type calls its own methods, in files given by their names and tokens.
///
/// Methods of a trait are not followed, because a trait may be implemented above its type.
pub fn arrows<'a>(files: impl Iterator<Item = (&'a str, Vec<Token>)>) -> BTreeSet<(&'a str, &'a str)> {
    let blocks: Vec<Block> = files.flat_map(|(file, tokens)| blocks(file, tokens)).collect();
    let mut homes: BTreeMap<(&str, &str), BTreeSet<&str>> = BTreeMap::new();
    for block in blocks.iter().filter(|block| !block.of_a_trait) {
        for pair in block.body.windows(2) {
            if let [Word(word), Word(name)] = pair
                && word == "fn"
            {
                homes.entry((&block.of, name)).or_default().insert(block.file);
            }
        }
    }
    let mut arrows = BTreeSet::new();
    for block in &blocks {
        let mut called = BTreeSet::new();
        find_calls(&block.body, &mut called);
        for homes in called.iter().filter_map(|name| homes.get(&(&block.of, name))) {
            if !homes.contains(block.file) {
                arrows.extend(homes.iter().map(|to| (block.file, *to)));
            }
        }
    }
    arrows
}

fn blocks(file: &str, tokens: Vec<Token>) -> Vec<Block<'_>> {
    let (mut blocks, mut head) = (Vec::new(), None);
    for token in tokens {
        match (token, &mut head) {
            (Word(word), None) if word == "impl" => head = Some(Vec::new()),
            (Group(Brace, body), Some(tokens)) => {
                let (of, of_a_trait) = type_of(tokens);
                blocks.push(Block { file, of, of_a_trait, body });
                head = None;
            }
            (token, Some(tokens)) => tokens.push(token),
            (_, None) => {}
        }
    }
    blocks
}

/// The type that the head of an `impl` names, and whether it is the `impl` of a trait.
fn type_of(head: &[Token]) -> (String, bool) {
    let (mut depth, mut of, mut of_a_trait) = (0, "", false);
    for (at, token) in head.iter().enumerate() {
        match token {
            Sign('<') => depth += 1,
            // Not that of `->`.
            Sign('>') if !matches!(head[..at], [.., Sign('-')]) => depth -= 1,
            Word(word) if depth == 0 && word == "where" => break,
            Word(word) if depth == 0 && word == "for" => of_a_trait = true,
            // The last segment of a path.
            Word(word) if depth == 0 => of = word,
            _ => {}
        }
    }
    (of.to_owned(), of_a_trait)
}

/// Finds `self.method(…)`, `self.method::<…>(…)` and `Self::method`, however deep.
fn find_calls<'a>(tokens: &'a [Token], called: &mut BTreeSet<&'a str>) {
    for at in 0..tokens.len() {
        match &tokens[at..] {
            [Word(own), Sign('.'), Word(name), Group(Parenthesis, _) | Colons, ..] if own == "self" => {
                called.insert(name);
            }
            [Word(own), Colons, Word(name), ..] if own == "Self" => {
                called.insert(name);
            }
            _ => {}
        }
        if let Group(_, inner) = &tokens[at] {
            find_calls(inner, called);
        }
    }
}
