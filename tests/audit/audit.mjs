// Runs the public GraphQL-over-HTTP audit against a server and prints every check that fails and the score.
//
//     node audit.mjs URL [MINIMUM]
//
// Fewer passed checks than the minimum (default: all) end it with status 1.
import { auditServer } from 'graphql-http';

const [url, minimum] = process.argv.slice(2);
if (!url) {
  console.error('usage: node audit.mjs URL [MINIMUM]');
  process.exit(2);
}

const results = await auditServer({ url });
for (const { id, name, status, reason, response } of results) {
  if (status !== 'ok') {
    console.log(`${status}: ${id} ${name}\n    ${reason} (status ${response.status})`);
    console.log(`    ${await response.text().catch(() => '')}`);
  }
}
const passed = results.filter(({ status }) => status === 'ok').length;
console.log(`audit: ${passed} of ${results.length}`);
process.exitCode = passed < (minimum ?? results.length) ? 1 : 0;
