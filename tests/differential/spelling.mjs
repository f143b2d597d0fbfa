// Other spellings of a document's text: white space, commas, comments, byte-order marks, strings; and edits that may
// break it, token by token.
import { Lexer, Source, TokenKind } from 'graphql';

const SEPARATORS = [' ', '  ', '\n', '\r\n', '\r', '\t', ',', ' ,, ', '\n\n    ', '# a comment { "with" # things\n', '#\r', '\ufeff'];
const STRAYS = ['!', '$', '&', '(', ')', '...', ':', '=', '@', '[', ']', '{', '|', '}', 'a', 'on', 'null', 'true', 'query', 'fragment', '"a"', '1', '-1', '1.5', '"""b"""', '{}', '()', '[]', '""', '0', '$v1', '@skip', '{a}'];
const STRAY_CHARACTERS = ['$', '"', '\\', '%', '\u0000', '\u0007', '.', '-', '#', '\u00a0', 'é', '😀', '\u2028', '0', '_', '?', ';', "'", '\ufeff', '}', '{'];
const DEFINITIONS = ['type A { a: Int }', 'extend type Query { a: Int }', 'scalar S', 'schema { query: Query }', 'directive @a on FIELD', '{ __typename }', 'query Op1 { __typename }', 'fragment Lonely on Query { __typename }', 'subscription { events { id } }', '"no description" { __typename }'];

// The tokens of a text, each with what stands before it; undefined where the text has other things than tokens.
export function tokens(text) {
  const lexer = new Lexer(new Source(text));
  const list = [];
  let from = 0;
  try {
    for (let token = lexer.advance(); token.kind !== TokenKind.EOF; token = lexer.advance()) {
      list.push({ kind: token.kind, value: token.value, before: text.slice(from, token.start), text: text.slice(token.start, token.end) });
      from = token.end;
    }
  } catch {
    return undefined;
  }
  list.end = text.slice(from);
  return list;
}

export function join(list) {
  return list.map(({ before, text }) => before + text).join('') + (list.end ?? '');
}

const isPunctuator = ({ text }) => /^[!$&():=@[\]{|}]$/.test(text);

// The same document, spelled in another way; as it is where it has other things than tokens.
export function respell(random, text) {
  const list = tokens(text);
  if (!list) return text;
  const oddness = random.pick([0.05, 0.4, 1]);
  const separator = () => Array.from({ length: random.int(1, 2) }, () => random.pick(SEPARATORS)).join('');
  for (const [index, token] of list.entries()) {
    const mayTouch = index === 0 || isPunctuator(token) || isPunctuator(list[index - 1]);
    if (random.chance(oddness)) token.before = mayTouch && random.chance(0.4) ? '' : separator();
    const isString = token.kind === TokenKind.STRING || token.kind === TokenKind.BLOCK_STRING;
    if (isString && random.chance(0.5)) token.text = respellString(random, token.value);
  }
  if (random.chance(0.1)) list[0].before = `\ufeff${list[0].before}`;
  list.end = random.chance(oddness) ? random.pick(['', '\n', '# the end', ',', '\ufeff']) : '';
  return join(list);
}

function respellString(random, value) {
  if (random.chance(0.25)) return `"""${random.pick(['', '\n  ', '\n'])}${value.replaceAll('"""', '\\"""')}\n"""`;
  const isWhole = random.chance(0.2);
  const escape = (character) => {
    const code = character.codePointAt(0);
    const hex = (unit) => `\\u${unit.toString(16).padStart(4, '0')}`;
    const forms = [`\\u{${code.toString(16)}}`, `\\u{${code.toString(16).toUpperCase().padStart(6, '0')}}`, [...character.split('')].map((unit) => hex(unit.charCodeAt(0))).join('')];
    return random.pick(forms);
  };
  const short = { '"': '\\"', '\\': '\\\\', '\b': '\\b', '\f': '\\f', '\n': '\\n', '\r': '\\r', '\t': '\\t', '/': '\\/' };
  const spell = (character) => {
    if (isWhole || random.chance(0.1)) return escape(character);
    return short[character] ?? (character < ' ' ? escape(character) : character);
  };
  return `"${Array.from(value, spell).join('')}"`;
}

// Edits the text at one place, such that it is likely to be broken.
export function breakText(random, text) {
  if (random.chance(0.12)) return `${text}\n${random.pick(DEFINITIONS)}`;
  if (random.chance(0.15)) {
    const place = random.int(0, text.length);
    return text.slice(0, place) + random.pick(STRAY_CHARACTERS) + text.slice(place);
  }
  const list = tokens(text);
  const place = random.int(0, list.length - 1);
  const end = list.end;
  const edits = {
    drop: () => list.splice(place, 1),
    duplicate: () => list.splice(place, 0, { ...list[place], before: ' ' }),
    swap: () => {
      const next = (place + 1) % list.length;
      [list[place], list[next]] = [list[next], list[place]];
    },
    replace: () => (list[place] = { before: ' ', text: random.pick(STRAYS) }),
    insert: () => list.splice(place, 0, { before: ' ', text: random.pick(STRAYS) }),
    glue: () => (list[place] = { ...list[place], before: '' }),
    cut: () => list.splice(place),
    move: () => list.splice(random.int(0, list.length - 1), 0, ...list.splice(place, 1)),
  };
  edits[random.pick(Object.keys(edits))]();
  list.end = end;
  return join(list);
}
