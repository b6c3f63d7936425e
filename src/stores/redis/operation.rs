//! Operations: what is sent to Redis at once, and answered together.

use std::sync::atomic::Ordering::Relaxed;

use redis::{Cmd, Pipeline, RedisResult, Value};

use super::{
    failure::Failure,
    scripts::{Script, ScriptCall},
    source::Connection,
};

/// One request to the server, or several that are sent and answered together.
pub(super) enum Operation<'a> {
    One(Cmd),
    Many(Pipeline),
    ByHash(&'a Script, &'a ScriptCall<'a>),
    ByText(&'a Script, &'a ScriptCall<'a>),
}

impl Operation<'_> {
    /// Notes that the operation may have been applied although its answer was lost. A script is told.
    pub(super) fn was_lost(&self) {
        if let Self::ByHash(_, call) | Self::ByText(_, call) = self {
            call.again.store(true, Relaxed);
        }
    }

    /// Sends it once, and returns its answers. If one of them is an error, all of it failed.
    pub(super) async fn send(&self, connection: &mut dyn Connection) -> Result<Vec<Value>, Failure> {
        let one = |answer| vec![answer];
        let answers: RedisResult<Vec<Value>> = match self {
            Self::One(command) => connection.req_packed_command(command).await.map(one),
            Self::Many(pipeline) => connection.req_packed_commands(pipeline, 0, pipeline.len()).await,
            Self::ByHash(script, call) => connection.req_packed_command(&script.by_hash(call)).await.map(one),
            Self::ByText(script, call) => connection.req_packed_command(&script.by_text(call)).await.map(one),
        };
        let answers = answers?;
        let expected = match self {
            Self::Many(pipeline) => pipeline.len(),
            _ => 1,
        };
        if answers.len() != expected {
            return Err(Failure::garbage());
        }
        // `ConnectionLike` may also report a server error as a value.
        for answer in &answers {
            if let Value::ServerError(error) = answer {
                return Err(error.into());
            }
        }
        Ok(answers)
    }
}
