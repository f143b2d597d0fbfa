// Talks to a server with the clients that people use: graphql-ws, graphql-sse and Apollo Client.
//
//     node clients.mjs URL TOKEN
//
// The token is that of a user who may make projects, since that is what the subscriptions wait for.
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import test from 'node:test';
import { ApolloClient, gql, HttpLink, InMemoryCache } from '@apollo/client';
import { CombinedGraphQLErrors } from '@apollo/client/errors';
import { GraphQLWsLink } from '@apollo/client/link/subscriptions';
import * as sse from 'graphql-sse';
import * as overWebSocket from 'graphql-ws';
import WebSocket from 'ws';

const [url, token] = process.argv.slice(2);
if (!token) {
  console.error('usage: node clients.mjs URL TOKEN');
  process.exit(2);
}
const authorization = `Bearer ${token}`;

async function ask(query, variables) {
  const response = await fetch(url, {
    method: 'POST',
    headers: { authorization, 'content-type': 'application/json' },
    body: JSON.stringify({ query, variables }),
  });
  const { data, errors } = await response.json();
  assert.equal(errors, undefined, JSON.stringify(errors));
  return data;
}

const now = async () => (await ask('{ events(first: 1) { nodes { cursor } } }')).events.nodes[0].cursor;

async function makeProject() {
  const create = 'mutation ($input: CreateProjectInput!) { createProject(input: $input) { project { id } } }';
  const { createProject } = await ask(create, { input: { name: `Project ${randomUUID()}` } });
  assert.ok(createProject.project.id);
}

const events = `subscription ($after: String) {
  events(after: $after, filter: { types: [PROJECT_CREATED] }) { type cursor }
}`;

// A subscription, as each client has it, of which the first event is waited for while it happens.
async function sees(begin) {
  const after = await now();
  const seen = begin(after);
  await makeProject();
  const { data, errors } = await seen;
  assert.equal(errors, undefined, JSON.stringify(errors));
  assert.equal(data.events.type, 'PROJECT_CREATED');
}

async function first(iterator) {
  const { value } = await iterator.next();
  await iterator.return();
  return value;
}

const webSocket = (authorization, options) =>
  overWebSocket.createClient({
    url: url.replace('http', 'ws'),
    webSocketImpl: WebSocket,
    connectionParams: { authorization },
    retryAttempts: 0,
    ...options,
  });

test('graphql-ws asks, changes and subscribes', async () => {
  const client = webSocket(authorization);
  const answer = await first(client.iterate({ query: '{ viewer { name } }' }));
  assert.ok(answer.data.viewer.name);
  await sees((after) => first(client.iterate({ query: events, variables: { after } })));
  await client.dispose();
});

test('graphql-ws shows what is wrong with an operation, and goes on', async () => {
  const client = webSocket(authorization);
  await assert.rejects(first(client.iterate({ query: 'subscription { nonsense }' })), (errors) => {
    assert.equal(errors[0].extensions.code, 'GRAPHQL_VALIDATION_FAILED');
    return true;
  });
  const answer = await first(client.iterate({ query: '{ __typename }' }));
  assert.deepEqual(answer.data, { __typename: 'Query' });
  await client.dispose();
});

test('graphql-ws is told why it is not let in', async () => {
  const client = webSocket('Bearer nonsense');
  await assert.rejects(first(client.iterate({ query: '{ __typename }' })), ({ code, reason }) => {
    assert.equal(code, 4403);
    assert.match(reason, /not valid/);
    return true;
  });
});

test('graphql-ws has its pings answered', async () => {
  const answered = Promise.withResolvers?.() ?? {};
  answered.promise ??= new Promise((resolve) => Object.assign(answered, { resolve }));
  const client = webSocket(authorization, {
    keepAlive: 20,
    lazy: false,
    on: { pong: (received) => received && answered.resolve() },
  });
  await answered.promise;
  await client.dispose();
});

const serverSentEvents = (authorization) =>
  sse.createClient({ url, headers: { authorization }, retryAttempts: 0 });

test('graphql-sse asks and subscribes', async () => {
  const client = serverSentEvents(authorization);
  const answer = await first(client.iterate({ query: '{ viewer { name } }' }));
  assert.ok(answer.data.viewer.name);
  await sees((after) => first(client.iterate({ query: events, variables: { after } })));
  client.dispose();
});

test('graphql-sse shows what is wrong', async () => {
  const client = serverSentEvents(authorization);
  const answer = await first(client.iterate({ query: 'subscription { nonsense }' }));
  assert.equal(answer.errors[0].extensions.code, 'GRAPHQL_VALIDATION_FAILED');
  client.dispose();
  const stranger = serverSentEvents('Bearer nonsense');
  const { response } = await first(stranger.iterate({ query: events })).catch((error) => error);
  assert.equal(response.status, 401);
  const { errors } = await response.json();
  assert.equal(errors[0].extensions.code, 'UNAUTHENTICATED');
});

const apollo = (link) => new ApolloClient({ cache: new InMemoryCache(), link });

function firstOf(client, query, variables) {
  const watched = client.subscribe({ query: gql(query), variables });
  return new Promise((resolve, reject) => {
    const subscription = watched.subscribe({
      next({ data, error }) {
        if (error) reject(error);
        else resolve({ data });
        queueMicrotask(() => subscription.unsubscribe());
      },
      error: reject,
      complete: () => reject(new Error('nothing came')),
    });
  });
}

test('Apollo Client subscribes over HTTP', async () => {
  const client = apollo(new HttpLink({ uri: url, headers: { authorization } }));
  const { data } = await client.query({ query: gql('{ viewer { name } }') });
  assert.ok(data.viewer.name);
  await sees((after) => firstOf(client, events, { after }));
  await assert.rejects(firstOf(client, 'subscription { nonsense }'), (error) => {
    assert.ok(CombinedGraphQLErrors.is(error), String(error));
    assert.equal(error.errors[0].extensions.code, 'GRAPHQL_VALIDATION_FAILED');
    return true;
  });
  client.stop();
});

test('Apollo Client subscribes over WebSocket', async () => {
  const socket = webSocket(authorization);
  const client = apollo(new GraphQLWsLink(socket));
  await sees((after) => firstOf(client, events, { after }));
  client.stop();
  await socket.dispose();
});
