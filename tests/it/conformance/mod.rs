//! The exam that every backend takes: ours, and those that must fail it.

mod broken;

mod memory {
    jam_session::conformance_tests!(jam_session::MemoryBackend::default());
}

/// With the machine's clock, which nobody moves: time is waited for.
mod memory_by_the_clock {
    jam_session::conformance_tests!(jam_session::MemorySessions::new());
}

mod json {
    use jam_session::{Clock, JsonSessions, conformance::Subject};

    use crate::folder::Folder;

    jam_session::conformance_tests!({
        let folder = Folder::new();
        let sessions = JsonSessions::builder(folder.file()).clock(Clock::manual()).open().await.unwrap();
        Subject::of(sessions).holding(folder)
    });
}

#[cfg(feature = "redis")]
mod redis {
    use jam_session::{
        RedisBackend,
        conformance::{Shared, Subject},
    };

    use crate::redis::harness::{Place, Topology};

    mod server {
        jam_session::conformance_tests!(super::subject(super::Topology::Server).await);
    }

    mod sentinel {
        jam_session::conformance_tests!(super::subject(super::Topology::Sentinel).await);
    }

    mod cluster {
        jam_session::conformance_tests!(super::subject(super::Topology::Cluster).await);
    }

    /// Two processes that share it, each with connections of its own.
    async fn subject(topology: Topology) -> Option<Subject<Shared<RedisBackend>>> {
        let place = Place::new(topology)?;
        let (one, other) = (place.sessions().await, place.sessions().await);
        Some(Subject::of(one).shared_with(Shared::of(other)))
    }
}
