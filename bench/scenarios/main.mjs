// Runs the scenarios of bench/scenarios.sh and prints a report of each.
import { readFileSync } from 'node:fs';
import { Cluster, sleep } from './cluster.mjs';
import { graphql } from './http.mjs';
import { check, measure, prepare } from './limits.mjs';
import { Load } from './load.mjs';

const scenarios = { kill, stop, redis, postgres, clock, rolling, soak };
/** The number of measurements of the rate limits, if it is not one afterwards. */
const MEASURED = { redis: 5, clock: 2 };
const WARM_UP = 4000;
const COOL_DOWN = 5000;

const note = (text) => console.log(`${new Date().toISOString().slice(11, 23)} ${text}`);

async function kill({ instances }, cluster) {
  for (const instance of instances) {
    note(`SIGKILL to ${instance.name}`);
    await instance.end('SIGKILL', 10);
    await sleep(3000);
    instance.start();
    await cluster.ready(instance);
    note(`${instance.name} is ready again`);
    await sleep(2000);
  }
}

async function stop({ instances: [, second] }, cluster) {
  note('SIGSTOP to instance 2');
  second.signal('SIGSTOP');
  await sleep(30_000);
  second.signal('SIGCONT');
  await cluster.ready(second);
  note('instance 2 continues');
}

async function redis({ redis }, cluster, limit) {
  await limit('with Redis', 1);
  note('SIGSTOP to Redis');
  redis.signal('SIGSTOP');
  await cluster.redisIs(false);
  await limit('Redis stopped', cluster.size);
  redis.signal('SIGCONT');
  await cluster.redisIs(true);
  note('Redis continues');
  await limit('with Redis again', 1);
  note('SIGKILL to Redis');
  await redis.end('SIGKILL', 10);
  await cluster.redisIs(false);
  await limit('without Redis', cluster.size);
  redis.start();
  await cluster.redisIs(true);
  note('Redis has restarted empty');
  await limit('with empty Redis', 1);
}

async function postgres({ postgres }, cluster) {
  note('SIGSTOP to all processes of PostgreSQL');
  postgres.signalAll('SIGSTOP');
  await sleep(12_000);
  postgres.signalAll('SIGCONT');
  for (const instance of cluster.instances) await cluster.ready(instance);
  note('all instances are ready again');
  await sleep(4000);
  for (const [signal, pause] of [['SIGINT', 3000], ['SIGQUIT', 0]]) {
    note(`${signal} to PostgreSQL`);
    await postgres.end(signal, 20);
    await sleep(pause);
    postgres.start();
    for (const instance of cluster.instances) await cluster.ready(instance);
    note('all instances are ready again');
    await sleep(4000);
  }
}

async function clock({ instances }, cluster, limit) {
  const [, , third] = instances;
  const library = ['x86_64', 'aarch64'].map((m) => `/usr/lib/${m}-linux-gnu/faketime/libfaketimeMT.so.1`);
  for (const offset of ['+1h', '-1h']) {
    await third.end('SIGTERM', 40);
    third.start({ LD_PRELOAD: library.join(':'), FAKETIME: offset, FAKETIME_DONT_FAKE_MONOTONIC: '1', DONT_FAKE_MONOTONIC: '1' });
    await cluster.ready(third);
    note(`instance 3 is ready, its clock at ${offset}`);
    await sleep(5000);
    await limit(`clock at ${offset}`, 1);
    await tokens(instances, offset);
    await sleep(5000);
  }
}

/** Prints which instance accepts the access tokens of which. */
async function tokens(instances, offset) {
  const input = '{ email: "guest@example.com", password: "gathering-demo" }';
  const query = `mutation { login(input: ${input}) { accessToken userErrors { message } } }`;
  const rows = [];
  for (const from of instances) {
    const { body, text } = await graphql(from.url, { query });
    const token = body?.data?.login.accessToken;
    if (!token) throw new Error(`no sign-in: ${text}`);
    const accepted = [];
    for (const to of instances) {
      const answer = await graphql(to.url, { token, query: '{ viewer { name } }' });
      accepted.push(answer.body?.data?.viewer ? 'yes' : answer.body?.errors?.[0]?.extensions?.code);
    }
    rows.push(`${from.name}: ${accepted.join(' ')}`);
  }
  note(`access tokens accepted by instances 1, 2, 3 (clock of 3 at ${offset}): ${rows.join('; ')}`);
}

async function rolling({ instances }, cluster) {
  for (const instance of instances) {
    note(`SIGTERM to ${instance.name}`);
    const status = await instance.end('SIGTERM', 60);
    instance.start();
    await cluster.ready(instance);
    note(`${instance.name} has ended with ${status} and is ready again`);
    await sleep(2000); // checks of the proxy
  }
}

/** Memory may grow by this factor from the second quarter of a soak to the last. */
const GROWTH = 1.1;

async function soak({ instances }, cluster, limit, load) {
  const minutes = Number(process.env.SOAK_MINUTES ?? 60);
  load.pace = 1000;
  const row = (cells) => console.log(cells.map((cell) => `${cell}`.padStart(14)).join(''));
  row(['minute', ...instances.map((_, at) => `${at + 1}: MiB`), 'open files', 'relay lag', 'events']);
  const curve = [];
  for (let minute = 0; minute <= minutes; minute++) {
    if (minute) await sleep(60_000);
    const all = (name) => Promise.all(instances.map((instance) => cluster.metric(instance, `gathering_${name}`)));
    const memory = (await all('process_resident_memory_bytes')).map((bytes) => bytes / 2 ** 20);
    const files = (await all('process_open_fds')).join('/');
    const lag = Math.max(...(await all('event_relay_lag_seconds')));
    curve.push(memory);
    row([minute, ...memory.map((mebibytes) => mebibytes.toFixed(1)), files, `${lag.toFixed(3)} s`, load.written.size]);
  }
  const quarter = Math.max(1, Math.floor(curve.length / 4));
  const mean = (rows, at) => rows.reduce((sum, memory) => sum + memory[at], 0) / rows.length;
  for (const [at, { name }] of instances.entries()) {
    const growth = mean(curve.slice(-quarter), at) / mean(curve.slice(quarter, 2 * quarter), at);
    note(`memory of ${name}: the last quarter has ${growth.toFixed(3)} times that of the second`);
    if (growth > GROWTH) throw new Error(`the memory of ${name} grows`);
  }
}

async function run(name) {
  console.log(`\n== ${name}`);
  const cluster = new Cluster(3);
  const faults = [];
  try {
    await cluster.start();
    const token = await cluster.key('demo@example.com', '--scope', 'read', '--scope', 'write', '--quota-class', 'load');
    cluster.token = token;
    await prepare(cluster, MEASURED[name] ?? 1);
    const load = new Load(cluster.url, token);
    await load.start();
    await sleep(WARM_UP);
    const limit = async (what, times) => {
      if (!check(what, await measure(cluster), times)) faults.push(`rate limit: ${what}`);
    };
    try {
      await scenarios[name](cluster, cluster, limit, load);
      await sleep(COOL_DOWN);
    } catch (error) {
      faults.push(`${error.message}`);
      console.error(error);
    }
    const result = await load.stop();
    if (!(name in MEASURED)) await limit('afterwards', 1);
    report(load, result);
    for (const [what, count] of Object.entries(result)) {
      if (count) faults.push(`${what}: ${count}`);
    }
    if (name === 'rolling' && load.failures.size) faults.push(`requests failed: ${load.failures}`);
    for (const { name } of cluster.instances) panics(name, faults);
  } finally {
    await cluster.end();
  }
  console.log(faults.length ? `FAILED: ${faults.join('; ')}` : 'ok');
  return faults.length === 0;
}

function panics(name, faults) {
  const log = readFileSync(`${process.env.SCENARIOS_LOGS}/${name}.log`, 'utf8');
  const lines = log.split('\n').filter((line) => line.includes('panicked'));
  if (lines.length) faults.push(`${name} panicked: ${lines[0]}`);
}

const COLUMNS = ['reader', 'seen', 'lost', 'duplicated', 'out of order', 'largest delay', 'connections'];

function report(load, result) {
  const seconds = (ms) => `${(ms / 1000).toFixed(2)} s`;
  console.log(`events written (acknowledged): ${load.written.size}, of which replayed: ${load.replayed}`);
  console.log(`slowest write: ${seconds(load.slowest)}, ${load.slowestAt}; queries answered: ${load.requests}`);
  const row = (cells) => console.log(cells.map((cell, at) => (at ? `${cell}`.padStart(14) : cell.padEnd(12))).join(''));
  row(COLUMNS);
  for (const { name, seen, lost, duplicates, disorder, displaced, delay, connects } of load.readers) {
    row([name, seen.size, lost.length, duplicates, disorder + displaced, seconds(delay), connects]);
    if (lost.length) console.log(`  lost: ${lost.slice(0, 5).join(', ')}`);
  }
  console.log(`applied twice: ${result['applied twice']}; EventsMissed: ${result.missed}`);
  console.log(`out of the order of their writer, across subjects (not promised): ${load.acrossSubjects}`);
  console.log(`requests failed: ${load.failures}`);
  console.log(`connections ended: ${load.ends}`);
  for (const sample of load.samples.slice(0, 8)) console.log(`  ${sample}`);
}

let passed = true;
for (const name of process.argv.slice(2)) {
  if (!(name in scenarios)) {
    console.error(`no such scenario: ${name}`);
    process.exit(2);
  }
}
for (const name of process.argv.slice(2)) {
  try {
    passed = (await run(name)) && passed;
  } catch (error) {
    console.error(error);
    passed = false;
  }
}
process.exit(passed ? 0 : 1);
