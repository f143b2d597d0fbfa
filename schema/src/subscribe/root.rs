//! What happens, live: events as they are committed, and what they are about as it is then.

use crate::events::FeedFilter;
use std::sync::Arc;

use async_graphql::{Context, ID, Interface, SimpleObject, Subscription};
use futures_util::{Stream, TryStreamExt, future::try_join_all, stream};
use gathering_entity::{agent, circle, conversation, event, message, task};
use sea_orm::{ColumnTrait, EntityTrait, QueryFilter, QueryOrder, QuerySelect, QueryTrait};
use uuid::Uuid;

use crate::{
    agent::Agent,
    conversation::{Conversation, messages::Message},
    db::{PageQuery, Rule},
    error::Error,
    event::{Event, EventFilter, EventType, Events, EventsMissed, Payload},
    events::SHARING,
    id::Kind,
    request::{Request, RequestExt},
    subscribe::{Burst, Feed, Item, Told},
    task::Task,
};

/// Most agents of one subscription.
const MAX_AGENTS: usize = 100;

/// A change of a conversation that somebody follows.
#[derive(Interface)]
#[graphql(field(
    name = "conversation",
    ty = "&Conversation",
    desc = "The conversation as it is now."
))]
pub(crate) enum ConversationUpdate {
    /// A message.
    Message(MessageAdded),
    /// A turn.
    Turn(TurnCompleted),
    /// The end.
    End(ConversationEnded),
}

/// A message was added.
#[derive(SimpleObject)]
pub(crate) struct MessageAdded {
    /// The conversation as it is now.
    conversation: Conversation,
    /// The message.
    message: Message,
}

/// An agent has taken its turn.
#[derive(SimpleObject)]
pub(crate) struct TurnCompleted {
    /// The conversation as it is now.
    conversation: Conversation,
    /// The number of the turn, from 1.
    turn: i32,
    /// Who is to speak next; null when nobody is, or the viewer may not read them.
    next_speaker: Option<Agent>,
}

/// The conversation has ended.
#[derive(SimpleObject)]
pub(crate) struct ConversationEnded {
    /// The conversation as it is now.
    conversation: Conversation,
    /// Why: `completed`, `max_turns`, `marker`, `cancelled` or `failed`.
    reason: Option<String>,
}

/// What happens, live. Each field is started once and then answers for each thing that happens, in the order in which it
/// was committed, at least once.
#[derive(Default)]
pub(crate) struct Subscription;

/// What happens, live. Each field is started once and then answers for each thing that happens, in the order in which it
/// was committed, at least once.
#[Subscription]
impl Subscription {
    /// What happens in what the signed-in user may read. With `after` it goes on behind an event without a gap, as long as
    /// that is kept; else the first is `EventsMissed`.
    async fn events(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Narrows what is sent.")] filter: Option<EventFilter>,
        #[graphql(desc = "The `cursor` of the last event that was received.")] after: Option<
            String,
        >,
    ) -> Result<impl Stream<Item = Result<Burst<Event>, Error>> + use<>, Error> {
        let wanted = EventFilter::wanted(filter)?;
        let feed = follow(ctx.shared(), wanted, after).await?;
        Ok(ending(ctx.shared(), events(feed, None)))
    }

    /// What happens in a circle. It ends when the circle is deleted, or no longer shared with the signed-in user.
    async fn circle_events(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The circle.")] circle_id: ID,
        #[graphql(desc = "Only events of these types; an empty list matches nothing.")]
        types: Option<Vec<EventType>>,
        #[graphql(desc = "The `cursor` of the last event that was received.")] after: Option<
            String,
        >,
    ) -> Result<impl Stream<Item = Result<Burst<Event>, Error>> + use<>, Error> {
        let request = ctx.shared();
        request.viewer()?;
        let id = Kind::Circle.parse(&circle_id, "circleId")?;
        let types: Option<Vec<String>> =
            types.map(|types| crate::db::distinct(types.into_iter().map(EventType::dotted)));
        // What ends it is heard whether or not it is told.
        let sharing = SHARING.map(str::to_owned);
        let wanted = FeedFilter {
            types: types
                .clone()
                .map(|types| [types, sharing.to_vec()].concat()),
            circle: Some(id),
            ..FeedFilter::default()
        };
        let feed = follow(Arc::clone(&request), wanted, after).await?;
        // What changes from now on is in the feed.
        readable_circle(&request, id).await?;
        Ok(ending(request, events(feed, Some((id, types)))))
    }

    /// Tasks as they are after each of their changes: those of a circle, those of an agent, or those of an agent in a
    /// circle; `BAD_USER_INPUT` without either. Several changes of one task at once may be told as one. A task that is
    /// gone is not told.
    async fn task_updated(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "Only tasks of this circle.")] circle_id: Option<ID>,
        #[graphql(desc = "Only tasks that this agent has, or had before the change.")]
        assignee_id: Option<ID>,
    ) -> Result<impl Stream<Item = Result<Burst<Task>, Error>> + use<>, Error> {
        let request = ctx.shared();
        request.viewer()?;
        if circle_id.is_none() && assignee_id.is_none() {
            let message = "Give `circleId`, `assigneeId`, or both.";
            return Err(Error::bad_input(message).field("circleId"));
        }
        let circle = match &circle_id {
            Some(id) => {
                let id = Kind::Circle.parse(id, "circleId")?;
                readable_circle(&request, id).await?;
                Some(id)
            }
            None => None,
        };
        let assignee = match &assignee_id {
            Some(id) => Some(readable_agent(&request, id, "assigneeId").await?),
            None => None,
        };
        let wanted = FeedFilter {
            types: Some(EventType::all_of("task")),
            circle,
            ..FeedFilter::default()
        };
        let feed = follow(Arc::clone(&request), wanted, None).await?;
        let told = stream::try_unfold(feed, move |mut feed| {
            let request = Arc::clone(&request);
            async move {
                loop {
                    let changes = Changes::next(&mut feed).await?;
                    let rule = &request.viewer()?.rules().task;
                    let tasks = changes.iter().map(async |change| {
                        let task = request.readable_later::<task::Entity>(rule, change.subject);
                        let concerns = |task: &Arc<task::Model>| {
                            assignee.is_none_or(|agent| {
                                task.assignee_id == Some(agent)
                                    || change.rows.iter().any(|row| mentions(row, agent))
                            })
                        };
                        let task = task.await?.filter(concerns);
                        Ok::<_, Error>(task.map(|task| (Task(task), change.cursor(&request))))
                    });
                    let told = try_join_all(tasks).await?;
                    if let Some(burst) = Burst::new(&request, told) {
                        return Ok(Some((burst, feed)));
                    }
                }
            }
        });
        Ok(ending(ctx.shared(), told))
    }

    /// Agents as they are when they turn idle, busy or offline. Several changes of one agent at once may be told as one.
    async fn agent_status_changed(
        &self,
        ctx: &Context<'_>,
        #[graphql(
            desc = "At most 100 agents that the signed-in user may read; without it, the user's own."
        )]
        agent_ids: Option<Vec<ID>>,
    ) -> Result<impl Stream<Item = Result<Burst<Agent>, Error>> + use<>, Error> {
        let request = ctx.shared();
        let viewer = request.viewer()?.id();
        let agents = match &agent_ids {
            Some(ids) if ids.len() > MAX_AGENTS => {
                let message = format!("`agentIds` must have at most {MAX_AGENTS} entries.");
                return Err(Error::bad_input(message).field("agentIds"));
            }
            Some(ids) => {
                let agents = ids
                    .iter()
                    .map(|id| readable_agent(&request, id, "agentIds"));
                Some(try_join_all(agents).await?)
            }
            None => None,
        };
        let wanted = FeedFilter {
            types: Some(vec![EventType::AgentStatusChanged.dotted()]),
            ..FeedFilter::default()
        };
        let feed = follow(Arc::clone(&request), wanted, None).await?;
        // Whoever may read an agent may know what it does, whatever circle it does it in.
        let feed = feed.unguarded();
        let told = stream::try_unfold(feed, move |mut feed| {
            let (request, agents) = (Arc::clone(&request), agents.clone());
            async move {
                loop {
                    let mut changes = Changes::next(&mut feed).await?;
                    changes.retain(|change| match &agents {
                        Some(agents) => agents.contains(&change.subject),
                        None => change.rows.iter().any(|row| row.owner_id == Some(viewer)),
                    });
                    let rule = &request.viewer()?.rules().agent;
                    let agents = changes.iter().map(async |change| {
                        let agent = request.readable_later::<agent::Entity>(rule, change.subject);
                        let agent = agent.await?;
                        Ok::<_, Error>(agent.map(|agent| (Agent(agent), change.cursor(&request))))
                    });
                    let told = try_join_all(agents).await?;
                    if let Some(burst) = Burst::new(&request, told) {
                        return Ok(Some((burst, feed)));
                    }
                }
            }
        });
        Ok(ending(ctx.shared(), told))
    }

    /// A conversation as it goes on: its messages, its turns and its end. It ends with the first of them that the signed-in
    /// user may no longer read. With `afterSeq` it begins with the messages behind that number.
    async fn conversation_updates(
        &self,
        ctx: &Context<'_>,
        #[graphql(desc = "The conversation.")] conversation_id: ID,
        #[graphql(desc = "The `seq` of the last message that was received; 0 for all messages.")]
        after_seq: Option<i32>,
    ) -> Result<impl Stream<Item = Result<Burst<ConversationUpdate>, Error>> + use<>, Error> {
        let request = ctx.shared();
        request.viewer()?;
        let id = Kind::Conversation.parse(&conversation_id, "conversationId")?;
        let row = readable_conversation(&request, id).await?;
        row.ok_or_else(|| Error::not_found("conversationId"))?;
        if after_seq.is_some_and(|seq| seq < 0) {
            return Err(Error::bad_input("`afterSeq` must not be negative.").field("afterSeq"));
        }
        let types = [
            EventType::MessageAdded,
            EventType::ConversationTurnCompleted,
            EventType::ConversationEnded,
        ];
        let wanted = FeedFilter {
            // Not the circle's alone: a conversation outlives its circle.
            types: Some(types.map(EventType::dotted).to_vec()),
            ..FeedFilter::default()
        };
        // Who comes back to a cursor has had what was there before.
        let is_behind = after_seq.is_some() && request.progress.after.is_none();
        let follower = Follower {
            // First the feed, then the messages: what is added in between is in both, and told once.
            feed: follow(Arc::clone(&request), wanted, None)
                .await?
                .unguarded(),
            request,
            id,
            is_behind,
            told: after_seq.unwrap_or_default(),
        };
        let told = stream::try_unfold(follower, async |mut follower| {
            let burst = follower.next().await?;
            Ok(burst.map(|burst| (burst, follower)))
        });
        Ok(ending(ctx.shared(), told))
    }
}

/// What of a conversation is told at once.
type Updates = Vec<Option<Told<ConversationUpdate>>>;

/// Somebody who follows a conversation.
struct Follower {
    request: Arc<Request>,
    id: Uuid,
    feed: Feed,
    /// Whether messages that were there before are still to be told.
    is_behind: bool,
    /// The number of the last message that was told.
    told: i32,
}

impl Follower {
    /// What is next; `None` when the viewer may no longer read the conversation.
    async fn next(&mut self) -> Result<Option<Burst<ConversationUpdate>>, Error> {
        self.request.progress.started();
        loop {
            let told = if self.is_behind {
                self.earlier().await?
            } else {
                self.changes().await?
            };
            let Some(told) = told else {
                return Ok(None);
            };
            let burst = Burst::new(&self.request, told);
            if burst.is_some() {
                return Ok(burst);
            }
        }
    }

    /// The next of the messages that were there before.
    async fn earlier(&mut self) -> Result<Option<Updates>, Error> {
        let select = message::Entity::find()
            .filter(message::Column::Seq.gt(self.told))
            .order_by_asc(message::Column::Seq)
            .limit(self.request.progress.burst() as u64)
            .into_query();
        let parent = message::Column::ConversationId.as_column_ref();
        let pages = PageQuery::<message::Model>::new("messages", select, Some(parent));
        let messages = self.request.load(pages, self.id).await?;
        match messages.last() {
            Some(last) => self.told = last.seq,
            None => self.is_behind = false,
        }
        let conversation = readable_conversation(&self.request, self.id).await?;
        Ok(conversation.map(|conversation| {
            let added = |message| added(Arc::clone(&conversation), Arc::clone(message));
            let told = messages.iter().map(|message| Some((added(message), None)));
            told.collect()
        }))
    }

    /// What has changed since.
    async fn changes(&mut self) -> Result<Option<Updates>, Error> {
        let mut rows = rows(&mut self.feed).await?;
        rows.retain(|row| {
            if row.kind != EventType::MessageAdded.dotted() {
                return row.subject_id == self.id;
            }
            let seq = row.number("seq").filter(|seq| *seq > self.told);
            let is_new = seq.is_some() && row.uuid("conversationId") == Some(self.id);
            if is_new {
                self.told = seq.unwrap_or(self.told);
            }
            is_new
        });
        if rows.is_empty() {
            return Ok(Some(Vec::new()));
        }
        let Some(conversation) = readable_conversation(&self.request, self.id).await? else {
            return Ok(None);
        };
        let told = rows.iter().map(|row| self.change(&conversation, row));
        try_join_all(told).await.map(Some)
    }

    async fn change(
        &self,
        conversation: &Arc<conversation::Model>,
        row: &event::Model,
    ) -> Result<Option<Told<ConversationUpdate>>, Error> {
        let conversation = Arc::clone(conversation);
        let update = if row.kind == EventType::MessageAdded.dotted() {
            let everybody = Rule::default();
            let message = self
                .request
                .readable_later::<message::Entity>(&everybody, row.subject_id);
            message.await?.map(|message| added(conversation, message))
        } else if row.kind == EventType::ConversationEnded.dotted() {
            Some(ConversationUpdate::End(ConversationEnded {
                conversation: Conversation(conversation),
                reason: row.text("reason").map(str::to_owned),
            }))
        } else {
            let next = match row.uuid("nextSpeakerId") {
                Some(id) => {
                    let rule = &self.request.viewer()?.rules().agent;
                    self.request
                        .readable_later::<agent::Entity>(rule, id)
                        .await?
                }
                None => None,
            };
            Some(ConversationUpdate::Turn(TurnCompleted {
                conversation: Conversation(conversation),
                turn: row.number("turn").unwrap_or_default(),
                next_speaker: next.map(Agent),
            }))
        };
        let cursor = Events::cursor(self.request.services.epoch, row);
        Ok(update.map(|update| (update, Some(cursor))))
    }
}

fn added(
    conversation: Arc<conversation::Model>,
    message: Arc<message::Model>,
) -> ConversationUpdate {
    ConversationUpdate::Message(MessageAdded {
        conversation: Conversation(conversation),
        message: Message(message),
    })
}

/// A feed from now on, or from where the client says that it was.
async fn follow(
    request: Arc<Request>,
    wanted: FeedFilter,
    after: Option<String>,
) -> Result<Feed, Error> {
    request.viewer()?;
    // What a client says when it comes back is newer than what it said when it first came.
    let after = match request.progress.after.as_ref().or(after.as_ref()) {
        Some(cursor) => Some(Events::position(request.services.epoch, cursor)?),
        None => None,
    };
    Feed::open(request, wanted, after).await
}

/// A feed as a stream of events that ends with its first error. That of a circle tells of these types, and ends when the
/// viewer may no longer read the circle.
fn events(
    feed: Feed,
    circle: Option<(Uuid, Option<Vec<String>>)>,
) -> impl Stream<Item = Result<Burst<Event>, Error>> {
    stream::try_unfold(Some((feed, circle)), async |state| {
        let Some((mut feed, circle)) = state else {
            return Ok(None);
        };
        loop {
            let items = feed.next().await?;
            let (request, now) = (feed.request(), feed.request().now());
            let goes_on = match &circle {
                Some((id, _)) if items.iter().any(Item::changes_sharing) => {
                    let rule = &request.viewer()?.rules().circle;
                    let circle = request.readable_later::<circle::Entity>(rule, *id);
                    circle.await?.is_some()
                }
                _ => true,
            };
            let types = circle.as_ref().and_then(|(_, types)| types.as_ref());
            let is_wanted =
                |row: &event::Model| types.is_none_or(|types| types.contains(&row.kind));
            let epoch = request.services.epoch;
            let told = items.into_iter().map(|item| match item {
                Item::Event(row) if is_wanted(&row) => {
                    Some((Event::of(&row)?, Some(Events::cursor(epoch, &row))))
                }
                Item::Event(_) => None,
                Item::Missed(oldest) => {
                    let missed = EventsMissed::new(oldest, now);
                    let cursor = missed.before(epoch);
                    Some((Event::Missed(missed), Some(cursor)))
                }
            });
            match Burst::new(request, told) {
                Some(burst) => return Ok(Some((burst, goes_on.then_some((feed, circle))))),
                None if goes_on => {}
                None => return Ok(None),
            }
        }
    })
}

/// Has a stream that ends with an error say so, so that nobody takes it for one that is complete.
fn ending<T>(
    request: Arc<Request>,
    stream: impl Stream<Item = Result<T, Error>>,
) -> impl Stream<Item = Result<T, Error>> {
    stream.inspect_err(move |_| request.progress.failed())
}

/// The next events of a feed whose subscriber is told how things are, and not what has happened to them.
async fn rows(feed: &mut Feed) -> Result<Vec<Arc<event::Model>>, Error> {
    let items = feed.next().await?.into_iter();
    let rows = items.map(|item| match item {
        Item::Event(row) => Ok(row),
        Item::Missed(_) => Err(Error::bad_input(
            "Some of what you have missed is no longer kept. Read how things are, and subscribe anew.",
        )
        .field("after")),
    });
    rows.collect()
}

/// Changes of one thing that are told as one.
struct Changes {
    subject: Uuid,
    rows: Vec<Arc<event::Model>>,
}

impl Changes {
    /// The next of a feed, in the order of the first of each.
    async fn next(feed: &mut Feed) -> Result<Vec<Self>, Error> {
        let mut all: Vec<Self> = Vec::new();
        for row in rows(feed).await? {
            let subject = row.subject_id;
            match all.iter_mut().find(|changes| changes.subject == subject) {
                Some(changes) => changes.rows.push(row),
                None => all.push(Self {
                    subject,
                    rows: vec![row],
                }),
            }
        }
        Ok(all)
    }

    /// The cursor behind which all that is told later can be had again.
    fn cursor(&self, request: &Request) -> Option<String> {
        let first = self.rows.first()?;
        Some(Events::cursor(request.services.epoch, first))
    }
}

/// Whether an event says that a task went to an agent, or away from it.
fn mentions(row: &event::Model, agent: Uuid) -> bool {
    row.agent_id == Some(agent)
        || row.uuid("assigneeId") == Some(agent)
        || row.uuid("fromAssigneeId") == Some(agent)
}

async fn readable_circle(request: &Request, id: Uuid) -> Result<(), Error> {
    let rule = &request.viewer()?.rules().circle;
    let row = request.readable::<circle::Entity>(rule, id).await?;
    row.map(|_| ()).ok_or_else(|| Error::not_found("circleId"))
}

async fn readable_agent(request: &Request, id: &ID, field: &str) -> Result<Uuid, Error> {
    let id = Kind::Agent.parse(id, field)?;
    let rule = &request.viewer()?.rules().agent;
    let row = request.readable::<agent::Entity>(rule, id).await?;
    row.map(|row| row.id).ok_or_else(|| Error::not_found(field))
}

async fn readable_conversation(
    request: &Request,
    id: Uuid,
) -> Result<Option<Arc<conversation::Model>>, Error> {
    let rule = &request.viewer()?.rules().conversation;
    request
        .readable_later::<conversation::Entity>(rule, id)
        .await
}
