//! Timeouts: waiting for a future, with a limit.

use std::{
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    task::unconstrained,
    time::{Sleep, sleep},
};

/// Waits for `work` for no longer than `limit` says, and returns `None` if that was too short.
///
/// A future that is already ready needs no clock, and a store in this process mostly is. The limit begins when the work is
/// first found to take time.
pub(crate) fn within<F: Future, L: FnOnce() -> Duration + Unpin>(limit: L, work: Pin<&mut F>) -> Within<'_, F, L> {
    Within { work, limit: Some(limit), alarm: None }
}

/// The future of [`within`]. It is small, because it is a part of every future that waits for a backend.
pub(crate) struct Within<'a, F, L> {
    work: Pin<&'a mut F>,
    limit: Option<L>,
    alarm: Option<Pin<Box<Sleep>>>,
}

impl<F: Future, L: FnOnce() -> Duration + Unpin> Future for Within<'_, F, L> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(output) = self.work.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        if let Some(limit) = self.limit.take() {
            self.alarm = Some(Box::pin(sleep(limit())));
        }
        match &mut self.alarm {
            // The timer is polled even if the work has used up the task's cooperative budget.
            Some(alarm) => pin!(unconstrained(alarm.as_mut())).poll(cx).map(|()| None),
            None => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::{pending, ready},
        task::Waker,
    };

    use super::*;

    #[test]
    fn what_is_ready_needs_no_clock() {
        // There is no runtime here: a timer would panic.
        let mut work = pin!(ready(1));
        let mut wait = pin!(within(|| unreachable!(), work.as_mut()));
        assert_eq!(wait.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(Some(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn what_never_is_ends_with_the_limit() {
        let limit = Duration::from_secs(1);
        let began = tokio::time::Instant::now();
        assert_eq!(within(|| limit, pin!(pending::<()>())).await, None);
        assert!(began.elapsed() >= limit);
        // Work that never lets go of its turn is limited, too.
        let busy = async {
            loop {
                tokio::task::consume_budget().await;
                tokio::time::advance(Duration::from_millis(1)).await;
            }
        };
        assert_eq!(within(|| limit, pin!(busy)).await, None::<()>);
    }
}
