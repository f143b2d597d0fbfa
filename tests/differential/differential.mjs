// Sends pseudorandom operations to a server and compares validation and responses with graphql-js. Sends no mutation that
// changes data.
//
//     node differential.mjs URL TOKEN [OPTION]...
//
//     --count N       number of operations after the fixtures (default: 4000)
//     --seed N        seed of the pseudorandom numbers (default: random; it is printed)
//     --only N        sends only the operation with this number, and shows it
//     --fixtures      sends only the fixtures
//     --out FILE      writes each disagreement as a line of JSON, in the form of a fixture
//     --schema FILE   the schema (default: the one of this repository)
//
// The token is that of an administrator. Exits with status 1 on a disagreement.
import { createWriteStream } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { parseArgs } from 'node:util';
import { Answers } from './answers.mjs';
import { Random } from './random.mjs';
import { kindOf, Reference } from './reference.mjs';
import { isHarmless, makeRequest } from './request.mjs';
import { findRows, Server } from './server.mjs';
import { shrink } from './shrink.mjs';

const AT_ONCE = 8;
const SHOWN_OF_A_KIND = 3;

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    count: { type: 'string', default: '4000' },
    seed: { type: 'string' },
    only: { type: 'string' },
    fixtures: { type: 'boolean', default: false },
    out: { type: 'string' },
    schema: { type: 'string' },
  },
});
const [url, token] = positionals;
if (!token) {
  console.error('usage: node differential.mjs URL TOKEN [--count N] [--seed N] [--only N] [--fixtures] [--out FILE] [--schema FILE]');
  process.exit(2);
}
const path = (name) => new URL(name, import.meta.url);
const reference = new Reference(await readFile(options.schema ?? path('../../schema/schema.graphql'), 'utf8'));
const server = new Server(url, token);
const answers = new Answers(server, reference.schema);
const counts = { accepted: 0, refused: 0, answers: 0, open: 0, bounded: 0, notComparable: 0 };

// Sends a request. Returns how the server disagrees with graphql-js, or undefined.
async function examine(request) {
  const expected = reference.verdict(request);
  const kind = kindOf(expected, request.document);
  const actual = await server.verdict(request, kind);
  const told = actual.code && `${actual.code} ${actual.message}`;
  const disagreement = (sort, group, more) => ({ sort, group, request, expected, told, ...more });
  if (actual.isFault) return disagreement('fault', `the server fails with ${actual.code}`);
  if (expected.accepted === undefined || actual.accepted === undefined) {
    counts[actual.accepted === undefined ? 'bounded' : 'open'] += 1;
    return undefined;
  }
  if (expected.accepted && !actual.accepted) return disagreement('refused', `server refuses, graphql-js accepts: ${told.replace(/"[^"]*"|`[^`]*`|\d+/g, '…')}`);
  if (!expected.accepted && actual.accepted) return disagreement(`accepted ${expected.because}`, `server accepts, graphql-js refuses: ${expected.because || expected.rules()}`);
  counts[actual.accepted ? 'accepted' : 'refused'] += 1;
  if (!actual.accepted || kind !== 'query' || !answers.isStable(expected.document)) return undefined;
  const difference = await answers.difference(request, expected.document, actual.body);
  if (difference?.notComparable) {
    counts.notComparable += 1;
    lastNotComparable = difference.notComparable;
    return undefined;
  }
  counts.answers += 1;
  return difference && disagreement(`answer ${difference.what}`, `different ${difference.what}`, { difference });
}
let lastNotComparable;

// Sends what is kept. Returns how many are not as they say.
async function runFixtures() {
  const fixtures = JSON.parse(await readFile(path('fixtures.json'), 'utf8'));
  let failed = 0;
  for (const { note, expected, ...request } of fixtures) {
    const verdict = reference.verdict(request);
    if (verdict.accepted !== (expected === 'accepted')) {
      failed += 1;
      console.log(`\nfixture "${note}": graphql-js: ${verdict.accepted ? 'accepted' : `refused: ${verdict.message}`}\n${show(request)}`);
      continue;
    }
    const disagreement = await examine(request);
    if (!disagreement) continue;
    failed += 1;
    console.log(`\nfixture "${note}": ${disagreement.group}\n${show(request)}\n${explain(disagreement)}`);
  }
  console.log(`fixtures: ${fixtures.length - failed} of ${fixtures.length}`);
  return failed;
}

function show({ document, variables, operationName }) {
  const rest = [variables && `variables: ${JSON.stringify(variables)}`, operationName !== undefined && `operationName: ${JSON.stringify(operationName)}`];
  // What cannot be seen is shown as JSON.
  const text = /[^\n\x20-\x7e]/.test(document) ? JSON.stringify(document) : document;
  return [text, ...rest.filter(Boolean)].join('\n').replace(/^/gm, '    ');
}

function explain({ told, expected, difference }) {
  if (!difference) return [told && `  server: ${told}`, expected.message && `  graphql-js: ${expected.message}`].filter(Boolean).join('\n');
  // Long answers from shortly before where they begin to differ.
  const { expected: one, actual: other } = difference;
  let same = 0;
  while (same < one.length && one[same] === other[same]) same += 1;
  const part = (text) => text.slice(Math.max(0, same - 100), same + 100);
  return `  server: ${part(other)}\n  graphql-js: ${part(one)}`;
}

async function runRandom(seed) {
  const pools = await findRows(server, reference.schema);
  const numbers = options.only === undefined ? Array.from({ length: Number(options.count) }, (_, number) => number) : [Number(options.only)];
  const disagreements = [];
  let sent = 0;
  const work = numbers.values();
  const worker = async () => {
    for (const number of work) {
      const request = makeRequest(new Random(seed, number), reference.schema, pools);
      if (!isHarmless(request)) continue;
      if (options.only !== undefined) console.log(show(request));
      const disagreement = await examine(request);
      if (disagreement) disagreements.push({ number, ...disagreement });
      sent += 1;
      if (sent % 1000 === 0) console.log(`${sent} operations, ${disagreements.length} disagreements`);
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, worker));
  return { sent, disagreements };
}

// Shows some of each kind, made small, and writes all of them down.
async function report(disagreements) {
  const out = options.out && createWriteStream(options.out);
  const groups = groupBy(disagreements);
  for (const [group, all] of [...groups].sort(([, one], [, other]) => other.length - one.length)) {
    console.log(`\n== ${all.length} × ${group}`);
    for (const [place, disagreement] of all.entries()) {
      const { number, sort } = disagreement;
      let small = disagreement;
      if (place < SHOWN_OF_A_KIND) {
        await shrink(disagreement.request, async (request) => {
          const found = isHarmless(request) && (await examine(request));
          if (found?.sort === sort) small = found;
          return found?.sort === sort;
        });
        console.log(`\n  operation ${number}\n${show(small.request)}\n${explain(small)}`);
      }
      const { request, expected, told, difference } = small;
      const note = `${small.group} (operation ${number})`;
      out?.write(`${JSON.stringify({ note, ...request, expected: expected.accepted ? 'accepted' : 'refused', server: told, reference: expected.message, difference })}\n`);
    }
  }
  await new Promise((resolve) => (out ? out.end(resolve) : resolve()));
}

function groupBy(disagreements) {
  const groups = new Map();
  for (const disagreement of disagreements) groups.set(disagreement.group, [...(groups.get(disagreement.group) ?? []), disagreement]);
  return groups;
}

let failed = options.only === undefined ? await runFixtures() : 0;
if (!options.fixtures) {
  const seed = Number(options.seed ?? Math.floor(Math.random() * 2 ** 32));
  console.log(`seed: ${seed}`);
  for (const name of Object.keys(counts)) counts[name] = 0;
  const { sent, disagreements } = await runRandom(seed);
  const { accepted, refused, answers: compared, open, bounded, notComparable } = { ...counts };
  await report(disagreements);
  failed += disagreements.length;
  if (notComparable > 0) console.log(`an answer that cannot be compared: ${lastNotComparable}`);
  console.log(`\nboth accept ${accepted}, both refuse ${refused}; answers compared: ${compared}, not comparable: ${notComparable}; left to the server: ${open}, beyond its bounds: ${bounded}`);
  console.log(`differential: ${sent - disagreements.length} of ${sent} operations agree, seed ${seed}`);
}
process.exitCode = failed ? 1 : 0;
