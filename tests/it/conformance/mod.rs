//! The conformance tests, for our backends and for backends that must fail them.

mod broken;
mod faulty;

mod memory {
    jam_session::conformance_tests!(jam_session::MemoryBackend::default());
}

/// One backend behind two handles, which are both given the clock.
mod memory_in_an_arc {
    use std::sync::Arc;

    use jam_session::{MemoryBackend, conformance::Subject};

    jam_session::conformance_tests!({
        let backend = Arc::new(MemoryBackend::default());
        Subject::new(Arc::clone(&backend)).shared_with(backend)
    });
}

/// With the machine's clock, which nobody moves: time is waited for.
mod memory_by_the_clock {
    jam_session::conformance_tests!(jam_session::MemorySessions::new());
}

/// With a clock that the exam knows nothing of, but is told how to move.
mod memory_by_another_clock {
    use jam_session::{Backend, Clock, MemoryBackend, conformance::Subject};

    jam_session::conformance_tests!({
        let (clock, backend) = (Clock::manual(), MemoryBackend::default());
        backend.set_clock(clock.clone());
        Subject::with_time_passed_by(backend, move |time| {
            clock.advance(time);
            std::future::ready(())
        })
    });
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
    use std::sync::Arc;

    use jam_session::{
        RedisBackend,
        conformance::{Promise, Subject},
    };

    use crate::redis::harness::{Place, Topology, others};

    mod server {
        jam_session::conformance_tests!(super::subject(super::Topology::Server).await);
    }

    mod sentinel {
        jam_session::conformance_tests!(super::subject(super::Topology::Sentinel).await);
    }

    mod cluster {
        jam_session::conformance_tests!(super::subject(super::Topology::Cluster).await);
    }

    /// One test for as many servers as there are to be tried.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn every_other_server_keeps_every_promise() {
        for at in 0..others().len() {
            for promise in Promise::all() {
                let subject = subject(Topology::Other(at)).await.expect("it was started");
                promise.check(&subject).await;
            }
        }
    }

    /// Two processes that share it, each with connections of its own.
    async fn subject(topology: Topology) -> Option<Subject<Arc<RedisBackend>>> {
        let place = Place::new(topology)?;
        let (one, other) = (place.sessions().await, place.sessions().await);
        Some(Subject::of(one).shared_with_sessions(other))
    }
}
