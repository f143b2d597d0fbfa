//! Running subscriptions: one answer per event, as long as the caller is signed in.

use std::{
    collections::VecDeque,
    future::{pending, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use async_graphql::Response;
use futures_util::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};
use tokio::time::{Interval, MissedTickBehavior, interval_at};

use crate::{
    db::{DispatchWhenIdle, PendingBatches},
    error::{Code, Error},
    events::Watch,
    operation::Plan,
    rate_limit::{Decision, QuotaStatus},
    request::Request,
    response::Answer,
    subscribe::burst::{split, weight},
};

/// How often the session of a subscription is checked. A session that is ended on this instance ends its streams
/// immediately; the check finds sessions that another instance or another program has ended.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// A started subscription. Buffers at most one burst if the client does not read.
pub struct Answers {
    stream: BoxStream<'static, Answer>,
    quotas: Vec<QuotaStatus>,
    watch: Option<Watch>,
}

impl Answers {
    /// The session of the subscription. After it has ended, no event that was already taken from the stream may be
    /// sent; the stream then returns the reason.
    pub fn watch(&self) -> Option<Watch> {
        self.watch.clone()
    }

    /// The quota status of the requested fields.
    pub fn quotas(&self) -> &[QuotaStatus] {
        &self.quotas
    }
}

impl Stream for Answers {
    type Item = Answer;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Answer>> {
        self.stream.poll_next_unpin(context)
    }
}

/// A running subscription.
pub(crate) struct Live {
    pub(crate) responses: BoxStream<'static, Response>,
    pub(crate) request: Arc<Request>,
    pub(crate) pending: Arc<PendingBatches>,
    pub(crate) plan: Arc<Plan>,
    /// The session of the subscription.
    pub(crate) watch: Option<Watch>,
    /// Answers that have not been requested yet.
    pub(crate) ready: VecDeque<Answer>,
}

impl Live {
    /// Starts the subscription. Its arguments are checked before the first answer.
    ///
    /// # Errors
    /// A request error: nothing was started.
    pub(crate) async fn start(mut self, mut decision: Decision) -> Result<Answers, Answer> {
        let (responses, progress) = (&mut self.responses, &self.request.progress);
        let first = poll_fn(|context| match responses.poll_next_unpin(context) {
            Poll::Pending if progress.is_started() => Poll::Ready(None),
            Poll::Ready(first) => Poll::Ready(Some(first)),
            Poll::Pending => Poll::Pending,
        });
        let services = Arc::clone(&self.request.services);
        let first = DispatchWhenIdle::new(&self.pending, first);
        let first = match tokio::time::timeout(services.limits.timeout, first).await {
            Err(_) => Err(Error::timeout().into()),
            Ok(None) => Ok(()),
            Ok(Some(None)) => Err(Error::internal().into()),
            Ok(Some(Some(response))) => {
                self.buffer(response);
                if self.request.progress.is_started() {
                    Ok(())
                } else {
                    let refusal = self.ready.pop_front();
                    Err(refusal.map_or_else(|| Error::internal().into(), Answer::without_data))
                }
            }
        };
        if let Err(answer) = first {
            if answer.code() == Some(Code::ValidationFailed) {
                services.limiter.refund(&mut decision).await;
            }
            return Err(answer.with_quotas(decision.quotas));
        }
        // All subscriptions check at the same times, so that few statements serve them all.
        let passed = services.began.elapsed().as_secs();
        let next = services.began + Duration::from_secs(passed) + CHECK_INTERVAL;
        let mut checks = interval_at(next.into(), CHECK_INTERVAL);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let watch = self.watch.clone();
        let answers = stream::unfold(Some((self, checks)), |state| async {
            let (mut live, mut checks) = state?;
            let (answer, continues) = live.next(&mut checks).await?;
            Some((answer, continues.then_some((live, checks))))
        });
        // The first answer contains the quota status of the start.
        let mut first_quotas = Some(decision.quotas.clone());
        let answers = answers.map(move |answer| match first_quotas.take() {
            Some(quotas) => answer.with_quotas(quotas),
            None => answer,
        });
        Ok(Answers {
            stream: answers.boxed(),
            quotas: decision.quotas,
            watch,
        })
    }

    /// The next answer, and whether there may be another one.
    async fn next(&mut self, checks: &mut Interval) -> Option<(Answer, bool)> {
        let watch = self.watch.clone();
        let ended = async {
            match &watch {
                Some(watch) => watch.ended().await,
                None => pending().await,
            }
        };
        let mut ended = pin!(ended);
        loop {
            tokio::select! {
                biased;
                () = &mut ended => return Some((Error::token_revoked().into(), false)),
                _ = checks.tick() => {}
                answer = self.answer() => {
                    let answer = answer?;
                    if answer.cursor().is_some() {
                        self.request.services.bus.count_delivered();
                    }
                    return Some((answer, !self.request.progress.has_failed()));
                }
            }
            while let Err(error) = self.request.still_signed_in().await {
                if !error.is_transient() {
                    return Some((error.into(), false));
                }
                // Nothing is sent until the session has been checked.
                tokio::select! {
                    () = &mut ended => return Some((Error::token_revoked().into(), false)),
                    _ = checks.tick() => {}
                }
            }
        }
    }

    async fn answer(&mut self) -> Option<Answer> {
        if self.ready.is_empty() {
            let response = DispatchWhenIdle::new(&self.pending, self.responses.next()).await?;
            self.buffer(response);
        }
        self.ready.pop_front()
    }

    fn buffer(&mut self, response: Response) {
        let request_id = &self.request.client.request_id;
        let mut cursors = self.request.progress.take_cursors().into_iter();
        let has_failed = self.request.progress.has_failed();
        let responses = split(response);
        let weight = responses.iter().map(|response| weight(&response.data));
        self.request.progress.weighed(responses.len(), weight.sum());
        let answers = responses.into_iter().map(|response| {
            let answer = Answer::of(response, Vec::new(), Arc::clone(&self.plan), request_id);
            if has_failed {
                answer.without_data()
            } else {
                answer.at(cursors.next().flatten())
            }
        });
        self.ready.extend(answers);
    }
}
