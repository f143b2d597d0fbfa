// Uses the playground in headless Chromium without access to other servers: the documentation explorer must show the
// schema, every example must run, and an API key must be created, used and revoked, without an error in the console and
// without a violation of the page's Content-Security-Policy.
//
//     node playground.mjs URL [SCREENSHOT.png]
//
// CHROMIUM is the path of the browser, /usr/bin/chromium by default.
import assert from 'node:assert/strict';
import { chromium } from 'playwright-core';

const [url, screenshot] = process.argv.slice(2);
if (!url) {
  console.error('usage: node playground.mjs URL [SCREENSHOT.png]');
  process.exit(2);
}

// Pauses and starts the circle while the subscription runs; both events must arrive.
async function live(page, screenshot) {
  const [stream] = await Promise.all([
    page.waitForResponse((response) => response.headers()['content-type']?.startsWith('text/event-stream')),
    page.locator('.graphiql-execute-button').click(),
  ]);
  assert.equal(stream.status(), 200);
  await page.evaluate(async (id) => {
    const demo = JSON.parse(document.querySelector('meta[name="gathering-demo"]').content);
    const ask = async (query, input, token) => {
      const headers = { 'content-type': 'application/json', ...(token && { authorization: `Bearer ${token}` }) };
      const body = JSON.stringify({ query, variables: { input } });
      return (await fetch('/graphql', { method: 'POST', headers, body })).json();
    };
    const login = 'mutation ($input: LoginInput!) { login(input: $input) { accessToken } }';
    const { accessToken } = (await ask(login, demo)).data.login;
    for (const field of ['pauseCircle', 'startCircle']) {
      const mutation = `mutation ($input: CircleActionInput!) { ${field}(input: $input) { userErrors { message } } }`;
      await ask(mutation, { circleId: id }, accessToken);
    }
  }, 'circle_01ke6p4zk8e03r000000000001');
  await page.locator('.result-window .view-lines').getByText('CIRCLE_STARTED').waitFor();
  if (screenshot) {
    await page.screenshot({ path: screenshot.replace(/(\.png)?$/, '-live.png') });
  }
  // The same button stops the subscription.
  await page.locator('.graphiql-execute-button').click();
  console.log('Live: two events arrived');
}

// Creates, uses and revokes an API key.
async function keys(page, origin, screenshot) {
  await page.getByRole('button', { name: 'Show API keys' }).click();
  const form = page.getByRole('form', { name: 'Create a key' });
  await form.getByLabel('Name').fill('Playground test');
  await form.getByText('Read', { exact: true }).click();
  await form.getByRole('button', { name: 'Create a key' }).click();
  await form.getByText('must not be empty').waitFor();
  await form.getByText('Read', { exact: true }).click();
  await form.getByRole('button', { name: 'Create a key' }).click();
  const secret = await page.getByLabel('Secret', { exact: true }).inputValue();
  assert.match(secret, /^gth_\w{36}$/);
  if (screenshot) {
    await page.screenshot({ path: screenshot.replace(/(\.png)?$/, '-keys.png') });
  }
  const use = async () => {
    const response = await fetch(new URL('/graphql', origin), {
      method: 'POST',
      headers: { authorization: `Bearer ${secret}`, 'content-type': 'application/json' },
      body: JSON.stringify({ query: '{ viewer { name } }' }),
    });
    return response.status;
  };
  assert.equal(await use(), 200);
  await page.getByRole('button', { name: 'Done' }).click();
  const list = page.getByRole('list', { name: 'Keys' });
  await list.getByRole('button', { name: 'Revoke Playground test' }).click();
  await list.getByRole('button', { name: 'Revoke the key' }).click();
  await page.getByText('There are no keys.').waitFor();
  assert.equal(await use(), 401);
  console.log('API keys: one created, used and revoked');
}

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: ['--no-sandbox'],
});
try {
  const context = await browser.newContext({ viewport: { width: 1440, height: 900 } });
  const { origin } = new URL(url);
  const complaints = [];
  await context.route(
    (address) => address.origin !== origin && !['blob:', 'data:'].includes(address.protocol),
    (route) => {
      complaints.push(`requests another server: ${route.request().url()}`);
      return route.abort();
    },
  );
  await context.addInitScript(() => {
    document.addEventListener('securitypolicyviolation', ({ violatedDirective, blockedURI, sourceFile }) => {
      console.error(`policy: ${violatedDirective} blocks ${blockedURI} in ${sourceFile}`);
    });
  });
  const page = await context.newPage();
  page.on('pageerror', (error) => complaints.push(`throws: ${error}`));
  page.on('requestfailed', (request) => complaints.push(`fails: ${request.url()}`));
  page.on('console', (message) => {
    if (['error', 'warning'].includes(message.type())) {
      complaints.push(`console: ${message.text()} (${message.location().url})`);
    }
  });

  const introspected = page.waitForResponse((response) => response.request().method() === 'POST');
  await page.goto(url);
  assert.equal(await page.title(), 'Gathering');
  assert.equal((await introspected).status(), 200, 'the schema can be read');

  // Each example runs and gets data.
  const tabs = page.locator('.graphiql-tabs [role=tab]');
  await page.locator('.graphiql-query-editor .view-line').first().waitFor();
  const count = await tabs.count();
  assert.ok(count >= 3, 'there are examples');
  for (let place = count - 1; place >= 0; place -= 1) {
    const tab = tabs.nth(place);
    const name = (await tab.innerText()).trim();
    await tab.click();
    // The editor stores a query after parsing it, and then knows the name of the operation.
    await page.waitForFunction(
      (name) => new RegExp(`^(query|subscription) ${name}\\b`, 'm').test(localStorage['graphiql:query']),
      name,
    );
    if (name === 'Live') {
      await live(page, screenshot);
      continue;
    }
    const operation = (request) =>
      request.method() === 'POST' && request.postDataJSON()?.operationName === name;
    const [response] = await Promise.all([
      page.waitForResponse((response) => operation(response.request())),
      page.locator('.graphiql-execute-button').click(),
    ]);
    const { data, errors, extensions } = await response.json();
    assert.equal(errors, undefined, `${name}: ${JSON.stringify(errors)}`);
    assert.ok(data, `${name} has data`);
    assert.ok(extensions?.usage, `${name} shows its usage`);
    await page.locator('.result-window .view-lines').getByText('"data"').waitFor();
    console.log(`${name}: ${JSON.stringify(data).length} bytes of data`);
  }

  // The documentation shows the root type and a type of the schema.
  await page.getByRole('button', { name: 'Show Documentation Explorer' }).click();
  const explorer = page.locator('.graphiql-doc-explorer');
  await explorer.getByRole('link', { name: 'Query', exact: true }).click();
  await explorer.getByRole('link', { name: 'Circle', exact: true }).first().click();
  await explorer.locator('.graphiql-doc-explorer-title', { hasText: 'Circle' }).waitFor();
  await explorer.getByRole('link', { name: 'members', exact: true }).waitFor();

  if (screenshot) {
    await page.screenshot({ path: screenshot });
  }
  await keys(page, origin, screenshot);
  assert.deepEqual(complaints, [], 'the browser reports no errors');
  console.log(`playground: ${count} examples run, documentation and API keys work, no errors`);
} finally {
  await browser.close();
}
