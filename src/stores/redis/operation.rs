//! Operations: commands that are sent to Redis together, and answered together.

use std::sync::atomic::Ordering::Relaxed;

use redis::{Cmd, Pipeline, Value};

use super::{
    failure::Failure,
    scripts::{Script, ScriptCall},
    source::Channel,
};

/// One request to the server, or several that are sent and answered together.
pub(super) enum Operation<'a> {
    One(Cmd),
    Many(Pipeline),
    ByHash(&'a Script, &'a ScriptCall<'a>),
    ByText(&'a Script, &'a ScriptCall<'a>),
}

impl Operation<'_> {
    /// Notes that the answer was lost, so the operation may have been applied. A script is told.
    pub(super) fn was_lost(&self) {
        if let Self::ByHash(_, call) | Self::ByText(_, call) = self {
            call.again.store(true, Relaxed);
        }
    }

    /// Sends the operation once, and returns the answer or the list of answers. If one of them is an error, the operation fails.
    pub(super) async fn send(&self, channel: &mut Channel) -> Result<Value, Failure> {
        let answer = match self {
            Self::One(command) => channel.send(command).await?,
            Self::ByHash(script, call) => channel.send(&script.by_hash(call)).await?,
            Self::ByText(script, call) => channel.send(&script.by_text(call)).await?,
            Self::Many(pipeline) => {
                let answers = channel.send_all(pipeline).await?;
                if answers.len() != pipeline.len() {
                    return Err(Failure::garbage());
                }
                for answer in &answers {
                    refused(answer)?;
                }
                return Ok(Value::Array(answers));
            }
        };
        refused(&answer)?;
        Ok(answer)
    }
}

/// A connection may report an error of the server as a value.
fn refused(answer: &Value) -> Result<(), Failure> {
    match answer {
        Value::ServerError(error) => Err(error.into()),
        _ => Ok(()),
    }
}
