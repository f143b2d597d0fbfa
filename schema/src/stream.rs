//! Subscriptions as they run: one answer for each thing that happens, as long as whoever asked is still signed in.

use std::{
    future::{poll_fn, ready},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use async_graphql::Response;
use futures_util::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};
use tokio::sync::Notify;
use tokio::time::{Interval, MissedTickBehavior, interval_at};

use crate::{
    ctx::Request,
    error::{Code, Error},
    execute::Answer,
    limit::{Standing, Verdict},
    live::Handler,
    load::{Gather, Waiting},
    shape::Shape,
};

/// How often it is looked whether a subscriber is still signed in.
const LOOK: Duration = Duration::from_secs(1);

/// Has all subscribers looked at when somebody was signed out, so that their streams end at once; what is not announced,
/// and what other hands do to the database, is found by the looks.
pub(crate) fn watch_sign_outs(signed_out: Arc<Notify>) -> Handler {
    Handler {
        name: "sign-outs",
        handle: Arc::new(move |event| {
            if event.kind == "user.tokens_revoked" {
                signed_out.notify_waiters();
            }
            Box::pin(ready(Ok(())))
        }),
    }
}

/// A subscription that has begun. Nothing of it is kept for who does not ask for the next answer.
pub struct Answers {
    answers: BoxStream<'static, Answer>,
    standings: Vec<Standing>,
}

impl Answers {
    /// How the client stands with what was asked for.
    pub fn standings(&self) -> &[Standing] {
        &self.standings
    }
}

impl Stream for Answers {
    type Item = Answer;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Answer>> {
        self.answers.poll_next_unpin(context)
    }
}

/// A subscription under way.
pub(crate) struct Live {
    pub(crate) responses: BoxStream<'static, Response>,
    pub(crate) request: Arc<Request>,
    pub(crate) waiting: Arc<Waiting>,
    pub(crate) shape: Arc<Shape>,
}

impl Live {
    /// Starts it: what its arguments say is looked at before anything is answered.
    ///
    /// # Errors
    /// A request error: nothing was started.
    pub(crate) async fn start(mut self, mut verdict: Verdict) -> Result<Answers, Answer> {
        let (responses, progress) = (&mut self.responses, &self.request.progress);
        let first = poll_fn(|context| match responses.poll_next_unpin(context) {
            Poll::Pending if progress.is_started() => Poll::Ready(None),
            Poll::Ready(first) => Poll::Ready(Some(first)),
            Poll::Pending => Poll::Pending,
        });
        let services = Arc::clone(&self.request.services);
        let first = Gather::new(&self.waiting, first);
        let first = match tokio::time::timeout(services.limits.timeout, first).await {
            Err(_) => Err(Error::timeout().into()),
            Ok(None) => Ok(None),
            Ok(Some(None)) => Err(Error::internal().into()),
            Ok(Some(Some(response))) => {
                let answer = self.answer(response);
                if self.request.progress.is_started() {
                    Ok(Some(answer))
                } else {
                    Err(answer.without_data())
                }
            }
        };
        let first = match first {
            Ok(first) => first,
            Err(answer) => {
                if answer.code() == Some(Code::ValidationFailed) {
                    services.limiter.give_back(&mut verdict).await;
                }
                return Err(answer.with_standings(verdict.standings));
            }
        };
        // All look at the same moments, so that few statements serve them all.
        let passed = services.began.elapsed().as_secs();
        let next = services.began + Duration::from_secs(passed) + LOOK;
        let mut looks = interval_at(next.into(), LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let rest = stream::unfold(Some((self, looks)), |state| async {
            let (mut live, mut looks) = state?;
            let (answer, goes_on) = live.next(&mut looks).await?;
            Some((answer, goes_on.then_some((live, looks))))
        });
        // The first answer tells how the client stands since it asked.
        let mut untold = Some(verdict.standings.clone());
        let answers = stream::iter(first).chain(rest);
        let answers = answers.map(move |answer| match untold.take() {
            Some(standings) => answer.with_standings(standings),
            None => answer,
        });
        Ok(Answers {
            answers: answers.boxed(),
            standings: verdict.standings,
        })
    }

    /// The next answer, and whether there may be another.
    async fn next(&mut self, looks: &mut Interval) -> Option<(Answer, bool)> {
        let signed_out = Arc::clone(&self.request.services.signed_out);
        loop {
            let response = Gather::new(&self.waiting, self.responses.next());
            tokio::select! {
                response = response => {
                    let answer = self.answer(response?);
                    return Some(if self.request.progress.has_failed() {
                        (answer.without_data(), false)
                    } else {
                        (answer, true)
                    });
                }
                _ = looks.tick() => {}
                () = signed_out.notified() => {}
            }
            while let Err(error) = self.request.still_signed_in().await {
                if !error.is_passing() {
                    return Some((error.into(), false));
                }
                // Nobody is told anything as long as it is not known whether they may be.
                looks.tick().await;
            }
        }
    }

    fn answer(&self, response: Response) -> Answer {
        let request_id = &self.request.client.request_id;
        let answer = Answer::of(response, Arc::clone(&self.shape), request_id);
        answer.at(self.request.progress.take_cursor())
    }
}
