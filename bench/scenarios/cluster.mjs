// The processes of a scenario: PostgreSQL, Redis, HAProxy and the instances.
import { execFile, spawn } from 'node:child_process';
import { closeSync, openSync, readFileSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { randomBytes } from 'node:crypto';
import { promisify } from 'node:util';
import { graphql, send } from './http.mjs';

const env = process.env;
const logs = env.SCENARIOS_LOGS;

export const sleep = (ms) => new Promise((done) => setTimeout(done, ms));

/** Waits until `check` returns a true value, at most `seconds`. */
export async function until(what, seconds, check) {
  const end = Date.now() + seconds * 1000;
  for (;;) {
    const value = await check();
    if (value) return value;
    if (Date.now() > end) throw new Error(`timeout: ${what}`);
    await sleep(100);
  }
}

const taken = new Set();

/** A free port below those that the system gives to outgoing connections, so that a process can be started again on it. */
async function freePort() {
  for (;;) {
    const port = 20_000 + Math.floor(Math.random() * 12_000);
    const isFree = await new Promise((done) => {
      const server = createServer().once('error', () => done(false));
      server.listen(port, '127.0.0.1', () => server.close(() => done(true)));
    });
    if (isFree && !taken.has(port)) {
      taken.add(port);
      return port;
    }
  }
}

class Process {
  constructor(name, command, environment = {}) {
    Object.assign(this, { name, command, environment });
  }

  start(extra = {}) {
    const log = openSync(`${logs}/${this.name}.log`, 'a');
    const [program, ...args] = this.command;
    this.child = spawn(program, args, {
      env: { PATH: env.PATH, HOME: env.HOME, LC_ALL: 'C', ...this.environment, ...extra },
      stdio: ['ignore', log, log],
    });
    closeSync(log);
    const child = this.child;
    this.ended = new Promise((done) => {
      child.once('exit', (code, signal) => done(signal ?? code));
      child.once('error', (error) => done(error.message));
    });
  }

  get isRunning() {
    return this.child?.exitCode === null && this.child.signalCode === null;
  }

  signal(name) {
    this.child.kill(name);
  }

  /** Sends a signal to the process and all of its children. */
  signalAll(name) {
    const { pid } = this.child;
    const children = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8').split(' ').filter(Boolean);
    for (const each of [pid, ...children.map(Number)]) process.kill(each, name);
  }

  /** Ends the process and waits at most `seconds`. */
  async end(signal, seconds) {
    this.signal(signal);
    await until(`the end of ${this.name}`, seconds, () => !this.isRunning);
    return this.ended;
  }
}

const run = promisify(execFile);

export class Cluster {
  constructor(instances) {
    this.size = instances;
    this.processes = [];
  }

  async start() {
    const url = new URL(env.SCENARIOS_DATABASE_URL);
    this.redisPort = await freePort();
    this.environment = {
      DATABASE_URL: url.href,
      REDIS_URL: `redis://127.0.0.1:${this.redisPort}`,
      GATHERING__AUTH__SIGNING_KEY: randomBytes(48).toString('base64'),
      GATHERING__SERVER__TRUSTED_PROXIES: '127.0.0.1/32',
      GATHERING__SERVER__GRACE: '3s',
      GATHERING__LIMITS__ADDRESS: '1000000',
      // The sign-ins of the scenario `clock`, and the load, which does not count towards the limits that are measured.
      GATHERING__LIMITS__AUTH: '1000',
      GATHERING__LIMITS__CLASSES: '{ load = { read = 1000000, write = 1000000, cost = 6000000 } }',
      GATHERING__SUBSCRIPTIONS__CONNECTIONS_PER_CLIENT: '100',
    };
    const folder = env.SCENARIOS_POSTGRES;
    const as = process.getuid() === 0 ? ['setpriv', '--reuid=postgres', '--regid=postgres', '--init-groups'] : [];
    // A committed transaction survives a crash of PostgreSQL, although not one of the machine.
    const settings = ['listen_addresses=127.0.0.1', 'fsync=off', 'full_page_writes=off'].flatMap((s) => ['-c', s]);
    const place = ['-D', `${folder}/data`, '-k', folder, '-p', url.port];
    this.postgres = this.#add('postgres', [...as, 'postgres', ...place, ...settings]);
    const volatile = ['--save', '', '--appendonly', 'no'];
    this.redis = this.#add('redis', ['redis-server', '--bind', '127.0.0.1', '--port', `${this.redisPort}`, ...volatile]);
    this.postgres.start();
    this.redis.start();
    const isReady = () => run('pg_isready', ['-q', '-h', folder, '-p', url.port]).then(() => true, () => false);
    await until('PostgreSQL', 20, isReady);

    this.instances = [];
    for (let n = 0; n < this.size; n++) {
      const port = await freePort();
      const command = [env.SCENARIOS_PROGRAM, 'serve', '--listen', `127.0.0.1:${port}`];
      const instance = this.#add(`instance-${n + 1}`, command, this.environment);
      instance.url = `http://127.0.0.1:${port}`;
      instance.start();
      this.instances.push(instance);
    }
    await Promise.all(this.instances.map((instance) => this.ready(instance)));

    const port = await freePort();
    this.url = `http://127.0.0.1:${port}`;
    const servers = this.instances.map(({ name, url }) => `    server ${name} ${url.slice('http://'.length)}`);
    const given = readFileSync('ops/haproxy.cfg', 'utf8').replace(/^ *bind .*$/m, `    bind 127.0.0.1:${port}`);
    const lines = given.split('\n').filter((line) => !/^ +server /.test(line));
    const file = `${env.SCENARIOS_POSTGRES}/../haproxy.cfg`;
    writeFileSync(file, `${lines.join('\n').trimEnd()}\n${servers.join('\n')}\n`);
    this.proxy = this.#add('haproxy', ['haproxy', '-db', '-f', file]);
    this.proxy.start();
    await until('HAProxy', 20, async () => (await send(`${this.url}/health/live`, { timeout: 2000 })).status === 200);
    await sleep(2000); // checks of all instances
  }

  #add(name, command, environment) {
    const added = new Process(name, command, environment);
    this.processes.push(added);
    return added;
  }

  /** Waits until an instance is ready, at most `seconds`. */
  async ready(instance, seconds = 60) {
    await until(`readiness of ${instance.name}`, seconds, async () => {
      if (!instance.isRunning) throw new Error(`${instance.name} has ended: ${await instance.ended}`);
      return (await send(`${instance.url}/health/ready`, { timeout: 2000 })).status === 200;
    });
  }

  /** Waits until Redis is reachable, or not, for all instances. */
  async redisIs(reachable, seconds = 30) {
    for (const instance of this.instances) {
      await until(`${instance.name}: Redis ${reachable ? 'reachable' : 'not reachable'}`, seconds, async () => {
        const { body } = await send(`${instance.url}/health`, { timeout: 2000 });
        const check = body?.checks?.find(({ name }) => name === 'redis');
        // An instance finds out when it uses Redis.
        await graphql(instance.url, { token: this.token, query: '{ __typename }' });
        return check?.status === (reachable ? 'pass' : 'warn');
      });
    }
  }

  async metric(instance, name) {
    const { text } = await send(`${instance.url}/metrics`, { timeout: 5000 });
    const line = text?.split('\n').find((line) => line.startsWith(`${name} `) || line.startsWith(`${name}{`));
    return line ? Number(line.slice(line.lastIndexOf(' '))) : 0;
  }

  /** Runs a command of the program and returns its output. */
  async command(args, input = '') {
    const environment = { PATH: env.PATH, HOME: env.HOME, ...this.environment };
    const child = run(env.SCENARIOS_PROGRAM, args, { env: environment, timeout: 30_000 });
    child.child.stdin.end(input);
    return (await child).stdout;
  }

  async key(email, ...args) {
    const output = await this.command(['key', 'create', '--email', email, '--name', 'scenarios', ...args]);
    return output.match(/gth_\w+/)[0];
  }

  /** Ends all processes. */
  async end() {
    if (this.postgres?.isRunning) this.postgres.signalAll('SIGCONT');
    for (const { isRunning, child } of [...this.processes].reverse()) {
      if (!isRunning) continue;
      child.kill('SIGCONT');
      child.kill(child === this.postgres.child ? 'SIGINT' : 'SIGKILL');
    }
    await until('the end of all processes', 20, () => this.processes.every(({ isRunning }) => !isRunning));
  }
}
