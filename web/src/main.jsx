// The playground: GraphiQL with examples, a sign-in dialog and a page for API keys.
import 'graphiql/setup-workers/vite';
import 'graphiql/style.css';
import './main.css';
import { GraphiQL, HISTORY_PLUGIN } from 'graphiql';
import { createRoot } from 'react-dom/client';
import { KEYS_PLUGIN } from './ApiKeys.jsx';
import { examples } from './examples.js';
import icon from './icon.svg';
import { RateLimit } from './RateLimit.jsx';
import { fetcher } from './requests.js';
import { SignIn } from './SignIn.jsx';

// A link may contain an operation: /graphql?query=…&variables=…
const url = new URLSearchParams(location.search);
const linked = url.has('query') && { query: url.get('query'), variables: url.get('variables') ?? '' };
// GraphiQL shows the variables of the first tab of a first visit only if they are also its initial ones.
const firstVisit = !localStorage.getItem('graphiql:tabState');
const initial = linked || (firstVisit && examples[0]);

createRoot(document.getElementById('playground')).render(
  <GraphiQL
    fetcher={fetcher}
    plugins={[HISTORY_PLUGIN, KEYS_PLUGIN]}
    defaultTabs={linked ? [linked, ...examples] : examples}
    initialQuery={initial?.query}
    initialVariables={initial?.variables}
    defaultQuery=""
    defaultEditorToolsVisibility="variables"
  >
    <GraphiQL.Logo>
      <img className="logo" src={icon} alt="" /> Gathering
      <RateLimit />
      <SignIn />
    </GraphiQL.Logo>
  </GraphiQL>,
);
