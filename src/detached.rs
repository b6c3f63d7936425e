//! A future that runs to completion even if it is dropped.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use tokio::runtime::Handle;

use crate::log;

/// A future that continues in a new task if it is dropped before completion.
///
/// If it panics, it is not polled again. If there is no runtime, it is dropped, and a warning is logged.
pub(crate) struct Detached<T: Send + 'static> {
    work: Option<Pin<Box<dyn Future<Output = T> + Send>>>,
    /// Takes the output if the future was dropped.
    report: fn(T),
}

impl<T: Send + 'static> Detached<T> {
    pub(crate) fn new(work: impl Future<Output = T> + Send + 'static, report: fn(T)) -> Self {
        Self { work: Some(Box::pin(work)), report }
    }
}

impl<T: Send + 'static> Future for Detached<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        // After completion it stays pending forever, as any future may.
        let Some(mut work) = self.work.take() else { return Poll::Pending };
        let output = work.as_mut().poll(cx);
        if output.is_pending() {
            self.work = Some(work);
        }
        output
    }
}

impl<T: Send + 'static> Drop for Detached<T> {
    fn drop(&mut self) {
        let Some(work) = self.work.take() else { return };
        match Handle::try_current() {
            Ok(runtime) => {
                let report = self.report;
                runtime.spawn(async move { report(work.await) });
            }
            Err(_) => log::warn!("the changes of a cancelled request were not written: the tokio runtime has ended"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        panic::{AssertUnwindSafe, catch_unwind},
        pin::pin,
        sync::Mutex,
        task::Waker,
    };

    use tokio::sync::{mpsc, oneshot};

    use super::*;

    fn poll<T: Send + 'static>(work: &mut Pin<&mut Detached<T>>) -> Poll<T> {
        work.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    }

    #[tokio::test]
    async fn it_gives_the_output_to_whom_waits() {
        static REPORTED: Mutex<Vec<u8>> = Mutex::new(Vec::new());
        let output = Detached::new(async { 7 }, |output| REPORTED.lock().unwrap().push(output)).await;
        assert_eq!(output, 7);
        assert!(REPORTED.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn dropped_before_or_in_the_middle_it_runs_to_its_end_in_a_task() {
        for polls in 0..2 {
            let (go, wait) = oneshot::channel::<()>();
            let (done, mut output) = mpsc::unbounded_channel();
            {
                let work = async move {
                    let _ = wait.await;
                    done
                };
                let mut work = pin!(Detached::new(work, |done: mpsc::UnboundedSender<()>| {
                    let _ = done.send(());
                }));
                for _ in 0..polls {
                    assert!(poll(&mut work).is_pending());
                }
            }
            go.send(()).unwrap();
            assert!(output.recv().await.is_some());
        }
    }

    #[tokio::test]
    async fn what_has_panicked_is_not_run_again() {
        let runs = std::sync::Arc::new(Mutex::new(0));
        let work = {
            let runs = std::sync::Arc::clone(&runs);
            async move {
                *runs.lock().unwrap() += 1;
                panic!("a closure of the application")
            }
        };
        let mut work = pin!(Detached::new(work, |()| {}));
        assert!(catch_unwind(AssertUnwindSafe(|| poll(&mut work))).is_err());
        assert!(poll(&mut work).is_pending());
        assert_eq!(*runs.lock().unwrap(), 1);
    }

    #[test]
    fn without_a_runtime_it_is_dropped() {
        let (sender, receiver) = oneshot::channel::<()>();
        drop(Detached::new(async move { drop(sender) }, |()| {}));
        assert!(receiver.blocking_recv().is_err());
    }
}
