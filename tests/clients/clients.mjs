// Uses a server with the common clients: graphql-ws, graphql-sse and Apollo Client.
//
//     node clients.mjs URL TOKEN PROGRAM
//
// The token is that of a user who may create projects, whose events the subscriptions receive. The program is that of the
// server, which one test restarts.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import test from 'node:test';
import { setTimeout as delay } from 'node:timers/promises';
import { ApolloClient, gql, HttpLink, InMemoryCache } from '@apollo/client';
import { CombinedGraphQLErrors } from '@apollo/client/errors';
import { GraphQLWsLink } from '@apollo/client/link/subscriptions';
import * as sse from 'graphql-sse';
import * as overWebSocket from 'graphql-ws';
import WebSocket from 'ws';

const [url, token, program] = process.argv.slice(2);
if (!program) {
  console.error('usage: node clients.mjs URL TOKEN PROGRAM');
  process.exit(2);
}
const authorization = `Bearer ${token}`;

async function ask(query, variables, server = { url, authorization }) {
  const response = await fetch(server.url, {
    method: 'POST',
    headers: { authorization: server.authorization, 'content-type': 'application/json' },
    body: JSON.stringify({ query, variables }),
  });
  const { data, errors } = await response.json();
  assert.equal(errors, undefined, JSON.stringify(errors));
  return data;
}

const cursorNow = async (server) =>
  (await ask('{ events(first: 1) { nodes { cursor } } }', {}, server)).events.nodes[0].cursor;

// The cursor of the latest event, once it is one of this project: events are listed shortly after their commit.
async function cursorOf(project, server) {
  const query = '{ events(first: 1) { nodes { cursor ... on ProjectEvent { project { id } } } } }';
  for (const end = Date.now() + 20_000; Date.now() < end; await delay(20)) {
    const [latest] = (await ask(query, {}, server)).events.nodes;
    if (latest.project?.id === project) {
      return latest.cursor;
    }
  }
  throw new Error('the event of the project is not listed');
}

async function createProject(server) {
  const create = 'mutation ($input: CreateProjectInput!) { createProject(input: $input) { project { id } } }';
  const { createProject } = await ask(create, { input: { name: `Project ${randomUUID()}` } }, server);
  return createProject.project.id;
}

const events = `subscription ($after: String) {
  events(after: $after, filter: { types: [PROJECT_CREATED] }) { type cursor }
}`;

// Begins a subscription, causes an event and waits for it.
async function sees(begin) {
  const after = await cursorNow();
  const seen = begin(after);
  await createProject();
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

test('graphql-ws queries and subscribes', async () => {
  const client = webSocket(authorization);
  const answer = await first(client.iterate({ query: '{ viewer { name } }' }));
  assert.ok(answer.data.viewer.name);
  await sees((after) => first(client.iterate({ query: events, variables: { after } })));
  await client.dispose();
});

test('graphql-ws reports an invalid operation and stays connected', async () => {
  const client = webSocket(authorization);
  await assert.rejects(first(client.iterate({ query: 'subscription { nonsense }' })), (errors) => {
    assert.equal(errors[0].extensions.code, 'GRAPHQL_VALIDATION_FAILED');
    return true;
  });
  const answer = await first(client.iterate({ query: '{ __typename }' }));
  assert.deepEqual(answer.data, { __typename: 'Query' });
  await client.dispose();
});

test('graphql-ws receives the reason of a refused connection', async () => {
  const client = webSocket('Bearer nonsense');
  await assert.rejects(first(client.iterate({ query: '{ __typename }' })), ({ code, reason }) => {
    assert.equal(code, 4403);
    assert.match(reason, /not valid/);
    return true;
  });
});

test('graphql-ws receives pongs', async () => {
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

// A server with a database in this folder, on this port or a free one.
async function start(folder, port = 0) {
  const server = spawn(program, ['serve', '--listen', `127.0.0.1:${port}`], {
    env: { ...process.env, DATABASE_URL: `sqlite://${join(folder, 'gathering.db')}`, XDG_DATA_HOME: folder, GATHERING__SERVER__GRACE: '0s' },
    stdio: ['ignore', 'pipe', 'ignore'],
  });
  for await (const line of createInterface({ input: server.stdout })) {
    const address = line.match(/^listening on (http:\S+)/);
    if (address) {
      return { server, url: `${address[1]}/graphql`, port: new URL(address[1]).port };
    }
  }
  throw new Error('the server has not started');
}

async function stop({ server }) {
  const ended = once(server, 'exit');
  server.kill('SIGTERM');
  await ended;
}

test('graphql-ws resumes a subscription after a restart', { timeout: 60_000 }, async (context) => {
  const folder = await mkdtemp(join(tmpdir(), 'gathering-'));
  let running = await start(folder);
  const register = 'mutation ($input: RegisterInput!) { register(input: $input) { accessToken } }';
  const input = { name: 'Client', email: 'client@example.org', password: `${randomUUID()}` };
  const session = await ask(register, { input }, running);
  const owner = { url: running.url, authorization: `Bearer ${session.register.accessToken}` };

  const closed = [];
  const client = overWebSocket.createClient({
    url: running.url.replace('http', 'ws'),
    webSocketImpl: WebSocket,
    connectionParams: { authorization: owner.authorization },
    retryWait: () => delay(20),
    on: { closed: ({ code }) => closed.push(code) },
    // Until the next server listens, connections fail.
    retryAttempts: Infinity,
    shouldRetry: () => true,
  });
  context.after(async () => {
    await client.dispose();
    running.server.kill('SIGKILL');
    await rm(folder, { recursive: true });
  });
  const query = 'subscription ($after: String) { events(after: $after, filter: { types: [PROJECT_CREATED] }) { cursor ... on ProjectEvent { project { id } } } }';
  const before = await createProject(owner);
  let cursor = await cursorOf(before, owner);
  const variables = { get after() { return cursor; } };
  const stream = client.iterate({ query, variables });
  const created = [];
  const seen = [];
  const next = async () => {
    const { value, done } = await stream.next();
    assert.equal(done, false, 'the subscription continues');
    assert.equal(value.errors, undefined, JSON.stringify(value.errors));
    cursor = value.data.events.cursor;
    seen.push(value.data.events.project.id);
  };
  for (const restart of [true, true, false]) {
    created.push(await createProject(owner));
    await next();
    if (restart) {
      await stop(running);
      running = await start(folder, running.port);
      created.push(await createProject(owner));
      await next();
    }
  }
  assert.deepEqual(seen, created);
  assert.equal(closed.filter((code) => code === 1012).length, 2, closed.join());
});

const serverSentEvents = (authorization) =>
  sse.createClient({ url, headers: { authorization }, retryAttempts: 0 });

test('graphql-sse queries and subscribes', async () => {
  const client = serverSentEvents(authorization);
  const answer = await first(client.iterate({ query: '{ viewer { name } }' }));
  assert.ok(answer.data.viewer.name);
  await sees((after) => first(client.iterate({ query: events, variables: { after } })));
  client.dispose();
});

test('graphql-sse reports errors', async () => {
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
      complete: () => reject(new Error('no event arrived')),
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
