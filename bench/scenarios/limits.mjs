// Measures how much of a rate limit a client can use on all instances together.
import http from 'node:http';
import { failureOf, graphql, Tally } from './http.mjs';

const LIMIT = 120; // the default of `limits.read`
const PER_INSTANCE = 150;

/** Creates the clients of later measurements: users without earlier requests. */
export async function prepare(cluster, count) {
  cluster.clients = [];
  for (let n = 1; n <= count; n++) {
    const email = `limits-${n}-${Date.now()}@example.com`;
    await cluster.command(['user', 'create', '--email', email], 'a long password\n');
    cluster.clients.push(await cluster.key(email));
  }
}

/** The number of accepted queries of a client, sent to all instances at the same time. */
export async function measure(cluster) {
  const { instances } = cluster;
  const token = cluster.clients.pop();
  const local = async () => {
    const counts = instances.map((instance) => cluster.metric(instance, 'gathering_rate_limit_local_decisions_total'));
    return (await Promise.all(counts)).reduce((sum, count) => sum + count, 0);
  };
  const before = await local();
  const outcomes = new Tally();
  const began = Date.now();
  await Promise.all(
    instances.map(async ({ url }) => {
      const agent = new http.Agent({ keepAlive: true });
      let left = PER_INSTANCE;
      // Few at a time: an instance that is overloaded decides without waiting for Redis.
      const work = async () => {
        while (left-- > 0) {
          const answer = await graphql(url, { token, query: '{ viewer { name } }', agent });
          outcomes.add(failureOf(answer) ?? 'accepted');
        }
      };
      await Promise.all([work(), work()]);
      agent.destroy();
    }),
  );
  const seconds = (Date.now() - began) / 1000;
  const decided = (await local()) - before;
  return { accepted: outcomes.get('accepted') ?? 0, outcomes, seconds, decided, instances: instances.length };
}

/** Checks a measurement against the limit of `times` instances; prints and returns whether it was kept. */
export function check(name, { accepted, outcomes, seconds, decided, instances }, times) {
  // A bucket refills while it is measured. An instance decides alone what Redis does not answer in time.
  const refill = Math.floor((LIMIT * seconds) / 60) + 1;
  const one = LIMIT + refill;
  const bound = times === 1 ? one + Math.min(decided, instances * one) : times * one;
  const isKept = accepted <= bound && accepted >= LIMIT;
  const isConclusive = times > 1 || decided < LIMIT;
  const verdict = isKept ? (isConclusive ? 'ok' : 'ok, but not conclusive: this machine is overloaded') : 'NOT KEPT';
  const expected = `expected ${LIMIT} to ${bound}, ${decided} decided without Redis`;
  console.log(`limit, ${name}: ${outcomes} on ${instances} instances; ${expected}: ${verdict}`);
  return isKept;
}
