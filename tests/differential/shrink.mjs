// Makes a request that shows a disagreement as small as it can be while it still does.
import { Kind, parse, print } from 'graphql';
import { join, tokens } from './spelling.mjs';

const MOST_ATTEMPTS = 400;

// `shows` tells whether a request still shows the disagreement.
export async function shrink(request, shows) {
  let left = MOST_ATTEMPTS;
  const test = async (candidate) => {
    left -= 1;
    return left > 0 && (await shows(candidate).catch(() => false));
  };
  const plain = reprint(request);
  if (plain && (await test(plain))) return shrinkTree(plain, test);
  return shrinkTokens(request, test);
}

function reprint(request) {
  try {
    return { ...request, document: print(parse(request.document)) };
  } catch {
    return undefined;
  }
}

// Tries the smaller requests one after the other, and begins again with each that still shows the disagreement.
async function shrinkTree(request, test) {
  let smallest = request;
  for (let isSmaller = true; isSmaller; ) {
    isSmaller = false;
    for (const candidate of smaller(smallest)) {
      if (JSON.stringify(candidate).length >= JSON.stringify(smallest).length || !(await test(candidate))) continue;
      smallest = candidate;
      isSmaller = true;
      break;
    }
  }
  return smallest;
}

function* smaller(request) {
  const { document, variables, operationName } = request;
  if (variables) yield { ...request, variables: undefined };
  if (operationName) yield { ...request, operationName: undefined };
  const count = placesOf(parse(document)).length;
  for (let index = 0; index < count; index += 1) {
    const tree = parse(document, { noLocation: true });
    placesOf(tree)[index]();
    let text;
    try {
      text = print(tree);
      parse(text);
    } catch {
      continue;
    }
    yield { ...request, document: text };
  }
  for (const name of Object.keys(variables ?? {})) {
    const { [name]: value, ...others } = variables;
    yield { ...request, variables: others };
    if (value && typeof value === 'object') for (const key of Object.keys(value)) {
      const smallerValue = structuredClone(value);
      if (Array.isArray(value)) smallerValue.splice(key, 1);
      else delete smallerValue[key];
      yield { ...request, variables: { ...variables, [name]: smallerValue } };
    }
  }
}

// Ways to make a tree smaller: to leave out an item, a name or a default, or to put what is inside in the place of what
// is around it.
function placesOf(tree) {
  const ways = [];
  const walk = (node) => {
    for (const [key, child] of Object.entries(node)) {
      if (Array.isArray(child)) {
        for (const item of child) {
          const at = () => child.indexOf(item);
          ways.push(() => child.splice(at(), 1));
          if (item.kind === Kind.INLINE_FRAGMENT) ways.push(() => child.splice(at(), 1, ...item.selectionSet.selections));
        }
        for (const item of child) walk(item);
      } else if (child?.kind) {
        if (['alias', 'defaultValue', 'description', 'typeCondition'].includes(key)) ways.push(() => delete node[key]);
        if (child.kind === Kind.LIST && child.values.length === 1) ways.push(() => (node[key] = child.values[0]));
        walk(child);
      }
    }
    if (node.kind === Kind.OPERATION_DEFINITION && node.name) ways.push(() => delete node.name);
  };
  walk(tree);
  return ways;
}

// Leaves out tokens, first many at once; where the text has no tokens, characters.
async function shrinkTokens(request, test) {
  let parts = tokens(request.document) ?? Array.from(request.document, (text) => ({ before: '', text }));
  const of = (list) => ({ ...request, document: join(list) });
  for (let size = Math.ceil(parts.length / 2); size >= 1; size = Math.floor(size / 2)) {
    for (let from = 0; from < parts.length; ) {
      const fewer = [...parts.slice(0, from), ...parts.slice(from + size)];
      if (await test(of(fewer))) parts = fewer;
      else from += size;
    }
  }
  for (const [index, part] of parts.entries()) {
    const plain = parts.with?.(index, { ...part, before: ' ' }) ?? parts;
    if (part.before !== ' ' && (await test(of(plain)))) parts = plain;
  }
  return of(parts);
}
