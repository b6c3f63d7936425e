//! Waiting, but not for ever.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    task::Poll,
    time::Duration,
};

use tokio::{
    task::unconstrained,
    time::{Sleep, sleep},
};

/// Waits for that work, and no longer than `limit` says; `None` if that was too short.
///
/// What is ready at once needs no clock, and a store in this process mostly is. The limit begins when the work is first
/// found to take time.
pub(crate) async fn within<T>(
    limit: impl FnOnce() -> Duration,
    mut work: Pin<&mut impl Future<Output = T>>,
) -> Option<T> {
    let mut limit = Some(limit);
    let mut alarm = pin!(None::<Sleep>);
    poll_fn(|cx| {
        if let Poll::Ready(output) = work.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        if let Some(limit) = limit.take() {
            alarm.set(Some(sleep(limit())));
        }
        match alarm.as_mut().as_pin_mut() {
            // Also when the work has used up what tokio gives a task at a time.
            Some(alarm) => pin!(unconstrained(alarm)).poll(cx).map(|()| None),
            None => Poll::Pending,
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::{
        future::{pending, ready},
        task::{Context, Waker},
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
