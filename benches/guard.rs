//! The guard: compares instruction counts from callgrind with the counts in a file.

use std::{
    collections::BTreeMap,
    env, fs,
    path::Path,
    process::{Command, ExitCode},
};

pub struct Guard<'a> {
    pub file: &'a str,
    /// The header of the file.
    pub head: &'a str,
    pub names: Vec<&'a str>,
    /// Counts the instructions of one row.
    pub count: &'a dyn Fn(usize) -> i64,
}

impl Guard<'_> {
    /// Fails if a count exceeds the one in the file by 15 %.
    pub fn check(&self) -> ExitCode {
        let known = fs::read_to_string(self.path()).expect("the file is read");
        let known: BTreeMap<&str, i64> = known
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.rsplit_once(": ").expect("a name and a number"))
            .map(|(name, known)| (name, known.parse().expect("a number")))
            .collect();
        let mut code = ExitCode::SUCCESS;
        for (at, name) in self.names.iter().enumerate() {
            let (known, now) = (known.get(name).copied().unwrap_or(0), (self.count)(at));
            let judgement = match now {
                // Nothing was counted, so the cost is unknown.
                ..=0 => "NOT COUNTED",
                _ if now * 100 > known * 115 => "TOO MANY",
                _ => "fine",
            };
            println!("{name}: {now} instructions, {known} known: {judgement}");
            if judgement != "fine" {
                code = ExitCode::FAILURE;
            }
        }
        code
    }

    pub fn write(&self) -> ExitCode {
        let counted: Vec<i64> = (0..self.names.len()).map(self.count).collect();
        assert!(counted.iter().all(|count| *count > 0), "instructions could not be counted: {counted:?}");
        let lines: String = self.names.iter().zip(counted).map(|(name, count)| format!("{name}: {count}\n")).collect();
        fs::write(self.path(), format!("{}{lines}", self.head)).expect("the file is written");
        ExitCode::SUCCESS
    }

    fn path(&self) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join(self.file)
    }
}

/// Counts the instructions of the function `measured` in this program, run once more with these arguments.
pub fn instructions(args: &[&str]) -> i64 {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=*measured*"])
        .arg(env::current_exe().expect("this program"))
        .args(args)
        .output()
        .expect("valgrind runs");
    let said = String::from_utf8_lossy(&output.stderr);
    let collected = said.lines().find_map(|line| line.split_once("Collected : ")).expect("it says what it collected").1;
    collected.trim().parse().expect("a number")
}
