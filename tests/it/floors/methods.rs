//! The methods of a type that are spread over several files, and who calls them.

use std::collections::{BTreeMap, BTreeSet};

use super::without_tests;

/// An `impl` block at the top level of a file.
struct Block<'a> {
    file: &'a str,
    /// The name of the type, without its parameters.
    of: &'a str,
    of_a_trait: bool,
    lines: Vec<&'a str>,
}

/// Returns from which file to which one a type calls its own methods.
///
/// Methods of a trait are not followed, because a trait may be implemented above its type.
pub fn arrows<'a>(sources: &[(&'a str, &'a str)]) -> BTreeSet<(&'a str, &'a str)> {
    let blocks: Vec<Block> = sources.iter().flat_map(|(file, source)| blocks(file, without_tests(source))).collect();
    let mut homes: BTreeMap<(&str, &str), BTreeSet<&str>> = BTreeMap::new();
    for block in blocks.iter().filter(|block| !block.of_a_trait) {
        for name in block.lines.iter().filter_map(|line| defined(line)) {
            homes.entry((block.of, name)).or_default().insert(block.file);
        }
    }
    let mut arrows = BTreeSet::new();
    for block in &blocks {
        for name in block.lines.iter().flat_map(|line| called(line)) {
            match homes.get(&(block.of, name)) {
                Some(homes) if !homes.contains(block.file) => arrows.extend(homes.iter().map(|to| (block.file, *to))),
                _ => {}
            }
        }
    }
    arrows
}

fn blocks<'a>(file: &'a str, code: &'a str) -> Vec<Block<'a>> {
    let mut blocks = Vec::new();
    let mut lines = code.lines();
    while let Some(line) = lines.next() {
        let Some(head) = line.strip_prefix("impl") else { continue };
        let of_a_trait = head.contains(" for ");
        let of = head.rsplit(" for ").next().unwrap_or(head);
        let of = if of_a_trait { of } else { without_parameters(of) }.trim_start();
        let end = of.find(|c: char| !c.is_alphanumeric() && c != ':').unwrap_or(of.len());
        let of = of[..end].rsplit(':').next().unwrap_or_default();
        let lines = match head.ends_with("{}") {
            true => Vec::new(),
            false => lines.by_ref().take_while(|line| *line != "}").collect(),
        };
        blocks.push(Block { file, of, of_a_trait, lines });
    }
    blocks
}

/// What follows the parameters of an `impl`.
fn without_parameters(head: &str) -> &str {
    let mut depth = 0;
    for (at, c) in head.char_indices() {
        match c {
            '<' => depth += 1,
            '>' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return head[at..].strip_prefix('>').unwrap_or(&head[at..]);
        }
    }
    head
}

/// The method that a line of a block defines, if it does.
fn defined(line: &str) -> Option<&str> {
    let line = line.strip_prefix("    ").filter(|line| !line.starts_with([' ', '/', '#']))?;
    let (before, rest) = line.split_once("fn ")?;
    let is_head = before.split_whitespace().all(|word| word.starts_with("pub") || matches!(word, "const" | "async"));
    is_head.then(|| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next()).flatten()
}

/// The methods of its own type that a line calls or passes on.
fn called(line: &str) -> impl Iterator<Item = &str> {
    let line = if line.trim_start().starts_with("//") { "" } else { line };
    // What follows the name of a method: `self.` may also be followed by a field.
    [("self.", &['(', ':'][..]), ("Self::", &['(', ':', ')', ','][..])].into_iter().flat_map(move |(own, next)| {
        line.split(own).skip(1).filter_map(move |rest| {
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_')?;
            rest[end..].starts_with(next).then_some(&rest[..end])
        })
    })
}
