// One pseudo random request: an operation, valid or with one thing changed, in one of its many spellings.
import { print } from 'graphql';
import { breakDocument, breakVariables } from './breakage.mjs';
import { generate, SIGN_IN } from './generate.mjs';
import { breakText, respell } from './spelling.mjs';

const SIGNS_IN = new RegExp(`\\b(${SIGN_IN.join('|')})\\b`);

// Whether a request may be sent: it must not sign in, nor make an account.
export const isHarmless = ({ document }) => !SIGNS_IN.test(document);

export function makeRequest(random, schema, pools) {
  const generated = generate(random, schema, pools);
  const change = random.weighted([[40, 'nothing'], [34, 'document'], [12, 'text'], [11, 'variables'], [3, 'operationName']]);
  let { variables, operationName } = generated;
  const tree = structuredClone(generated.document);
  if (change === 'document') breakDocument(random, tree);
  let document = print(tree);
  if (random.chance(0.4)) document = respell(random, document);
  if (change === 'text') document = breakText(random, document);
  if (change === 'variables') variables = breakVariables(random, variables);
  if (change === 'operationName') operationName = random.pick([undefined, 'Op1', 'Op2', 'NoSuchOperation']);
  return { document, variables, operationName };
}
