// The page for API keys: a plugin of GraphiQL that lists, creates and revokes the keys of the signed-in user.
import { useEffect, useRef, useState, useSyncExternalStore } from 'react';
import { Field } from './Field.jsx';
import { ask } from './requests.js';
import { snapshot, subscribe } from './session.js';

const LIST = `query ApiKeys($after: String) {
  apiKeys(first: 50, after: $after) {
    nodes { id name prefix scopes circleIds agent { name } quotaClass expiresAt lastUsedAt }
    pageInfo { hasNextPage endCursor }
  }
}`;
const AGENTS = `query ApiKeyAgents($after: String) {
  agents(first: 100, after: $after) { nodes { id name owner { id } } pageInfo { hasNextPage endCursor } }
}`;
const CIRCLES = `query ApiKeyCircles($after: String) {
  circles(first: 100, after: $after) { nodes { id name } pageInfo { hasNextPage endCursor } }
}`;
const CREATE = `mutation CreateApiKey($input: CreateApiKeyInput!) {
  createApiKey(input: $input) { apiKey { name } secret userErrors { field message } }
}`;
const REVOKE = `mutation RevokeApiKey($input: RevokeApiKeyInput!) {
  revokeApiKey(input: $input) { userErrors { message } }
}`;

const PAGES = 10; // maximum number of pages of agents and of circles to choose from

// The new key with its secret, until the user has stored it or another user signs in. It is not state of a component,
// because GraphiQL removes the component when another plugin is opened.
let created = null;

const DAY = 86_400_000; // milliseconds
const LIFETIMES = [
  ['30', '30 days'],
  ['90', '90 days'],
  ['365', '1 year'],
  ['', 'Never'],
];

// Returns `data`, or throws the messages of the errors.
async function dataOf(query, variables) {
  let answer;
  try {
    answer = await ask({ query, variables });
  } catch {
    throw new Error('The server cannot be reached.');
  }
  if (answer.errors) {
    throw new Error(answer.errors.map(({ message }) => message).join(' '));
  }
  return answer.data;
}

// Returns the entries of all pages of a list.
async function all(query, field) {
  const found = [];
  let after = null;
  for (let page = 0; page < PAGES; page += 1) {
    const { nodes, pageInfo } = (await dataOf(query, { after }))[field];
    found.push(...nodes);
    if (!pageInfo.hasNextPage) {
      break;
    }
    after = pageInfo.endCursor;
  }
  return found;
}

const day = (date) => new Date(date).toLocaleDateString();
const minute = (date) => new Date(date).toLocaleString([], { dateStyle: 'short', timeStyle: 'short' });

function limits({ agent, circleIds, quotaClass }) {
  return [
    agent && `acts as ${agent.name}`,
    circleIds && (circleIds.length === 1 ? '1 circle' : `${circleIds.length} circles`),
    quotaClass && `quota class ${quotaClass}`,
  ].filter(Boolean);
}

function Key({ apiKey, revoke }) {
  const [asking, setAsking] = useState(false);
  const { name, prefix, scopes, expiresAt, lastUsedAt } = apiKey;
  return (
    <li>
      <strong>{name}</strong>
      <code>{prefix}…</code>
      <p>{[scopes.map((scope) => scope.toLowerCase()).join(' and '), ...limits(apiKey)].join(', ')}</p>
      <p>
        {lastUsedAt ? `Last used ${minute(lastUsedAt)}` : 'Never used'}
        {expiresAt ? `, expires ${day(expiresAt)}` : ', does not expire'}
      </p>
      {asking ? (
        <p>
          Programs that use this key stop working.{' '}
          <button type="button" className="link" onClick={() => revoke(apiKey)}>
            Revoke the key
          </button>{' '}
          <button type="button" className="link" onClick={() => setAsking(false)}>
            Keep it
          </button>
        </p>
      ) : (
        <button type="button" className="link" aria-label={`Revoke ${name}`} onClick={() => setAsking(true)}>
          Revoke
        </button>
      )}
    </li>
  );
}

function Secret({ close }) {
  const [notice, setNotice] = useState('');
  const secret = useRef(null);
  useEffect(() => secret.current.select(), []);

  async function copy() {
    secret.current.select();
    try {
      await navigator.clipboard.writeText(created.secret);
      setNotice('Copied.');
    } catch {
      // Browsers allow the clipboard only on HTTPS and on the same machine.
      setNotice('Copy the selected text.');
    }
  }

  return (
    <section className="secret" aria-label="The new key">
      <p role="status">
        The key “{created.name}” was created. Copy its secret now; it is not shown again. {notice}
      </p>
      <input ref={secret} readOnly aria-label="Secret" value={created.secret} />
      <p>
        <button type="button" className="graphiql-button" onClick={copy}>
          Copy
        </button>{' '}
        <button type="button" className="graphiql-button" onClick={close}>
          Done
        </button>
      </p>
    </section>
  );
}

function Create({ viewer, choices, done }) {
  const [busy, setBusy] = useState(false);
  const [errors, setErrors] = useState({});
  const form = useRef(null);
  const scopes = viewer.role === 'ADMIN' ? ['READ', 'WRITE', 'ADMIN'] : ['READ', 'WRITE'];
  useEffect(() => form.current.querySelector('[aria-invalid=true]')?.focus(), [errors]);

  async function submit(event) {
    event.preventDefault();
    if (busy) {
      return;
    }
    const values = new FormData(form.current);
    const days = values.get('days');
    const circleIds = values.getAll('circleIds');
    const input = {
      name: values.get('name'),
      scopes: values.getAll('scopes'),
      ...(days && { expiresAt: new Date(Date.now() + days * DAY).toISOString() }),
      ...(values.get('agentId') && { agentId: values.get('agentId') }),
      ...(circleIds.length && { circleIds }),
    };
    setBusy(true);
    setErrors({});
    try {
      const { apiKey, secret, userErrors } = (await dataOf(CREATE, { input })).createApiKey;
      if (secret) {
        form.current.reset();
        done({ name: apiKey.name, secret, userId: viewer.id });
        return;
      }
      const fields = {};
      for (const { field, message } of userErrors) {
        const name = field?.find((part) => form.current.elements[part]) ?? 'form';
        fields[name] = [fields[name], message].filter(Boolean).join(' ');
      }
      setErrors(fields);
    } catch ({ message }) {
      setErrors({ form: message });
    } finally {
      setBusy(false);
    }
  }

  return (
    <form ref={form} aria-label="Create a key" aria-busy={busy} onSubmit={submit}>
      <Field name="name" label="Name" required maxLength={100} placeholder="Worker" error={errors.name} />
      <fieldset>
        <legend>Scopes</legend>
        {scopes.map((scope) => (
          <label key={scope}>
            <input type="checkbox" name="scopes" value={scope} defaultChecked={scope === 'READ'} />
            {scope[0] + scope.slice(1).toLowerCase()}
          </label>
        ))}
        {errors.scopes && <p className="error">{errors.scopes}</p>}
      </fieldset>
      <Field name="days" label="Expires after" defaultValue="90" error={errors.expiresAt}>
        {LIFETIMES.map(([days, label]) => (
          <option key={label} value={days}>
            {label}
          </option>
        ))}
      </Field>
      {choices.agents.length > 0 && (
        <Field name="agentId" label="Acts as" error={errors.agentId}>
          <option value="">{viewer.name}</option>
          {choices.agents.map(({ id, name }) => (
            <option key={id} value={id}>
              {name} (agent)
            </option>
          ))}
        </Field>
      )}
      {choices.circles.length > 0 && (
        <details>
          <summary>Limit to circles</summary>
          <fieldset>
            <legend className="unseen">Circles</legend>
            {choices.circles.map(({ id, name }) => (
              <label key={id}>
                <input type="checkbox" name="circleIds" value={id} />
                {name}
              </label>
            ))}
          </fieldset>
        </details>
      )}
      {errors.circleIds && <p className="error">{errors.circleIds}</p>}
      <p role="alert" className={errors.form && 'error'}>
        {errors.form}
      </p>
      <button type="submit" className="graphiql-button primary" aria-disabled={busy}>
        {busy ? 'Creating…' : 'Create a key'}
      </button>
    </form>
  );
}

// The keys of one user. Another user gets another instance, so that no key of the former one is shown.
function Keys({ viewer }) {
  const [keys, setKeys] = useState(null);
  const [next, setNext] = useState(null);
  const [choices, setChoices] = useState(null);
  const [shown, setShown] = useState(created?.userId === viewer.id);
  const [error, setError] = useState('');

  async function attempt(work) {
    setError('');
    try {
      await work();
    } catch ({ message }) {
      setError(message);
    }
  }

  async function load(after) {
    const { nodes, pageInfo } = (await dataOf(LIST, { after })).apiKeys;
    setKeys((known) => (after ? [...known, ...nodes] : nodes));
    setNext(pageInfo.hasNextPage ? pageInfo.endCursor : null);
  }

  useEffect(() => {
    attempt(async () => {
      await load(null);
      const [agents, circles] = await Promise.all([all(AGENTS, 'agents'), all(CIRCLES, 'circles')]);
      setChoices({ agents: agents.filter(({ owner }) => owner.id === viewer.id), circles });
    });
  }, []);

  const revoke = ({ id }) =>
    attempt(async () => {
      const { userErrors } = (await dataOf(REVOKE, { input: { id } })).revokeApiKey;
      if (userErrors.length) {
        throw new Error(userErrors.map(({ message }) => message).join(' '));
      }
      setKeys((known) => known.filter((key) => key.id !== id));
    });

  function show(key) {
    created = key;
    setShown(true);
    attempt(() => load(null));
  }

  function close() {
    created = null;
    setShown(false);
  }

  return (
    <>
      {shown ? (
        <Secret close={close} />
      ) : (
        choices && <Create viewer={viewer} choices={choices} done={show} />
      )}
      <p role="alert" className={error && 'error'}>
        {error}
      </p>
      {keys?.length === 0 && <p>There are no keys.</p>}
      {keys?.length > 0 && (
        <ul aria-label="Keys">
          {keys.map((key) => (
            <Key key={key.id} apiKey={key} revoke={revoke} />
          ))}
        </ul>
      )}
      {next && (
        <button type="button" className="graphiql-button" onClick={() => attempt(() => load(next))}>
          Show more
        </button>
      )}
    </>
  );
}

function Page() {
  const { viewer } = useSyncExternalStore(subscribe, snapshot);
  return (
    <div className="keys">
      <h2>API keys</h2>
      <p>
        A program authenticates with a key in the header <code>Authorization: Bearer gth_…</code>. It has the rights of
        its user, within its scopes.
      </p>
      {viewer ? <Keys key={viewer.id} viewer={viewer} /> : <p>Sign in to create and revoke keys.</p>}
    </div>
  );
}

function Icon(props) {
  return (
    <svg viewBox="0 0 20 20" fill="none" stroke="currentColor" strokeWidth="1.5" {...props}>
      <title>key icon</title>
      <circle cx="6.5" cy="13.5" r="4" />
      <path d="M9.5 10.5 17 3m-4 4 3 3m-5.5-.5 1.5 1.5" />
    </svg>
  );
}

export const KEYS_PLUGIN = { title: 'API keys', icon: Icon, content: Page };
