//! The table of log messages in the docs, compared with the messages in the source.

use std::{collections::BTreeSet, fs, path::Path};

/// Level, message and names of fields.
type Line = (String, String, Vec<String>);

#[test]
fn p24_the_table_in_the_docs_has_every_line_of_the_log_and_no_other() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources = Vec::new();
    read(&root, &mut sources);
    let emitted: BTreeSet<Line> = sources.iter().flat_map(|source| lines_of(source)).collect();
    assert!(emitted.len() > 40, "the lines of the log were not found: {emitted:?}");
    let documented = table(&fs::read_to_string(root.join("events.rs")).unwrap());
    let not_documented: Vec<_> = emitted.difference(&documented).collect();
    let not_emitted: Vec<_> = documented.difference(&emitted).collect();
    assert!(not_documented.is_empty() && not_emitted.is_empty(), "{not_documented:#?}\n{not_emitted:#?}");
}

#[test]
fn p24_every_line_has_the_target_of_the_crate() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources = Vec::new();
    read(&root, &mut sources);
    let direct = |source: &&String| {
        ["debug", "info", "warn", "error", "trace"].iter().any(|level| source.contains(&format!("tracing::{level}!")))
    };
    assert!(!sources.iter().any(|source| direct(&source)), "a line without `target`");
}

fn read(folder: &Path, sources: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read(&path, sources);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            sources.push(fs::read_to_string(path).unwrap());
        }
    }
}

/// The rows of the table.
fn table(docs: &str) -> BTreeSet<Line> {
    let rows = docs.lines().filter_map(|line| line.strip_prefix("//! | "));
    let rows = rows.map(|row| row.split('|').map(str::trim).collect::<Vec<_>>());
    let rows = rows.filter(|cells| ["DEBUG", "INFO", "WARN", "ERROR"].contains(&cells[0]));
    rows.map(|cells| {
        let mut fields: Vec<String> = cells[2].split('`').skip(1).step_by(2).map(str::to_owned).collect();
        fields.sort();
        (cells[0].to_owned(), cells[1].to_owned(), fields)
    })
    .collect()
}

/// The lines that a source file emits.
fn lines_of(source: &str) -> Vec<Line> {
    let mut lines = Vec::new();
    for level in ["debug", "info", "warn", "error"] {
        for (at, name) in source.match_indices(&format!("log::{level}!(")) {
            let arguments = arguments(&source[at + name.len()..]);
            let (message, fields) = arguments.split_last().unwrap();
            let message = message.trim_matches('"').to_owned();
            if message == "{what}" {
                continue;
            }
            let mut fields: Vec<String> = fields.iter().map(|field| name_of(field)).collect();
            fields.sort();
            lines.push((level.to_uppercase(), message, fields));
        }
    }
    // Those that clients can repeat.
    for (at, call) in source.match_indices("log::limited!(") {
        let arguments = arguments(&source[at + call.len()..]);
        let [level, _, fields, message] = &arguments[..] else { panic!("{arguments:?}") };
        lines.push((level.to_uppercase(), message.trim_matches('"').to_owned(), limited_fields(fields)));
    }
    // Those of an error, whose level depends on its kind.
    for (call, level) in [(".log(", "WARN"), (".log_answer(", "ERROR")] {
        for (at, _) in source.match_indices(call) {
            let message = arguments(&source[at + call.len()..])[0].trim_matches('"').to_owned();
            lines.push(("DEBUG".to_owned(), message.clone(), vec!["error".to_owned()]));
            lines.push((level.to_owned(), message, vec!["error".to_owned(), "repeats".to_owned()]));
        }
    }
    lines
}

/// The names of the fields in parentheses, and of the one that the macro adds.
fn limited_fields(fields: &str) -> Vec<String> {
    let fields = fields.strip_prefix('(').and_then(|fields| fields.strip_suffix(')')).unwrap();
    let mut names: Vec<String> = arguments(fields).iter().map(|field| name_of(field)).collect();
    names.push("repeats".to_owned());
    names.sort();
    names
}

fn name_of(field: &str) -> String {
    field.split('=').next().unwrap().trim().trim_start_matches(['%', '?']).to_owned()
}

/// The arguments of a call, up to the parenthesis that ends it.
fn arguments(source: &str) -> Vec<String> {
    let (mut arguments, mut depth, mut quoted) = (vec![String::new()], 0, false);
    for c in source.chars() {
        match c {
            '"' => quoted = !quoted,
            _ if quoted => {}
            '(' | '[' | '{' => depth += 1,
            ')' if depth == 0 => break,
            ')' | ']' | '}' => depth -= 1,
            ',' if depth == 0 => {
                arguments.push(String::new());
                continue;
            }
            _ => {}
        }
        arguments.last_mut().unwrap().push(c);
    }
    let arguments = arguments.iter().map(|argument| argument.trim().to_owned());
    arguments.filter(|argument| !argument.is_empty()).collect()
}
