//! The Lua scripts, and the commands that call them.

use std::{
    borrow::Cow,
    sync::{
        LazyLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use redis::Cmd;

/// A Lua script. Redis runs it atomically.
///
/// All scripts use only commands of Redis 6.2. In a Cluster each uses exactly one Redis key. Elsewhere [`CREATE`] may use two,
/// and [`BATCH`] several. Scripts are idempotent: a second run with the same version or name gives the same answer, or says
/// that it cannot know.
pub(super) struct Script {
    pub(super) text: &'static str,
    hash: String,
}

impl Script {
    fn new(text: &'static str) -> Self {
        Self { text, hash: redis::Script::new(text).get_hash().to_owned() }
    }

    /// Calls the script by its hash, which a server knows once it has seen the text.
    pub(super) fn by_hash(&self, call: &ScriptCall<'_>) -> Cmd {
        call.command("EVALSHA", &self.hash)
    }

    /// Calls the script by its text. `SCRIPT LOAD` would wait for every node of a Cluster.
    pub(super) fn by_text(&self, call: &ScriptCall<'_>) -> Cmd {
        call.command("EVAL", self.text)
    }
}

/// The keys and the arguments of a script.
pub(super) struct ScriptCall<'a> {
    pub(super) keys: &'a [&'a str],
    pub(super) args: &'a [Cow<'a, [u8]>],
    /// The age of the request, and when it had that age. It grows until the script is sent.
    pub(super) age: Option<(Duration, Instant)>,
    /// Whether the script was sent before, and may have run because its answer was lost.
    pub(super) again: &'a AtomicBool,
}

impl ScriptCall<'_> {
    fn command(&self, name: &str, script: &str) -> Cmd {
        // The keys and arguments, with the name, the script, the count of keys, the age, and `again`.
        let (words, keys) = (self.args.len() + self.keys.len() + 5, self.keys.iter().map(|key| key.len()));
        let bytes = keys.chain(self.args.iter().map(|arg| arg.len())).sum::<usize>() + script.len() + 40;
        let mut command = Cmd::with_capacity(words, bytes);
        command.arg(name).arg(script).arg(self.keys.len()).arg(self.keys);
        for arg in self.args {
            command.arg(&**arg);
        }
        if let Some((age, then)) = self.age {
            command.arg(age.saturating_add(then.elapsed()).as_micros().min(YEAR).to_string());
        }
        if self.again.load(Relaxed) {
            command.arg("again");
        }
        command
    }
}

/// An age in microseconds that is far too old, and exact as a Lua number.
const YEAR: u128 = 365 * 86_400_000_000;

macro_rules! script {
    ($($file:literal),*) => {
        LazyLock::new(|| Script::new(concat!($(include_str!($file)),*)))
    };
}

pub(super) static CREATE: LazyLock<Script> = script!("time.lua", "new.lua", "record.lua", "create.lua");
pub(super) static UPDATE: LazyLock<Script> = script!("time.lua", "write.lua", "record.lua", "update.lua");
pub(super) static BATCH: LazyLock<Script> = script!("batch.lua");
pub(super) static TOUCH: LazyLock<Script> = script!("time.lua", "record.lua", "touch.lua");
pub(super) static DELETE: LazyLock<Script> = script!("time.lua", "record.lua", "delete.lua");
pub(super) static CLEAR: LazyLock<Script> = script!("time.lua", "record.lua", "clear.lua");
pub(super) static LOOK: LazyLock<Script> = script!("look.lua");
pub(super) static PAGE: LazyLock<Script> = script!("page.lua");
pub(super) static SCAN: LazyLock<Script> = script!("scan.lua");

pub(super) fn all() -> [&'static Script; 9] {
    [&CREATE, &UPDATE, &BATCH, &TOUCH, &DELETE, &CLEAR, &LOOK, &PAGE, &SCAN]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_older_each_time_that_its_script_is_sent() {
        let (again, age) = (AtomicBool::new(false), Duration::from_secs(7));
        let then = Instant::now().checked_sub(Duration::from_secs(2)).unwrap_or_else(Instant::now);
        let args = [Cow::from(&b"x"[..])];
        let call = |age| ScriptCall { keys: &["k"], args: &args, age, again: &again };
        let last = |call: ScriptCall<'_>| {
            let command = CREATE.by_hash(&call);
            let last = command.args_iter().last();
            let Some(redis::Arg::Simple(last)) = last else { panic!("a command has a last argument") };
            String::from_utf8(last.to_vec()).unwrap()
        };
        let ages = [0, 1].map(|_| last(call(Some((age, then)))).parse::<u64>().unwrap());
        assert!(7_000_000 <= ages[0] && ages[0] <= ages[1]);
        // One that is absurd is a number that Lua can tell from others.
        assert_eq!(last(call(Some((Duration::MAX, then)))), YEAR.to_string());
        assert_eq!(last(call(None)), "x");
        again.store(true, Relaxed);
        assert_eq!(last(call(Some((age, then)))), "again");
    }
}
