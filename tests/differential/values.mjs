// Values for the arguments, input fields and variables of a generated operation.
import { isEnumType, isInputObjectType, isListType, isNonNullType, isRequiredInputField, Kind, parseType, valueFromASTUntyped } from 'graphql';

export const nameNode = (value) => ({ kind: Kind.NAME, value });
export const stringNode = (value) => ({ kind: Kind.STRING, value });
export const intNode = (value) => ({ kind: Kind.INT, value: String(value) });
export const variableNode = (name) => ({ kind: Kind.VARIABLE, name: nameNode(name) });
export const argumentNode = (name, value) => ({ kind: Kind.ARGUMENT, name: nameNode(name), value });
const nullNode = { kind: Kind.NULL };
const booleanNode = (value) => ({ kind: Kind.BOOLEAN, value });

const STRINGS = ['', 'a', 'Release', 'o', '%', '_', '\\', 'say "no"', '"""', 'Zoë', 'été', '😀', '👩‍💻 team', 'two\nlines', '\ttab', 'a,b', '# no comment', '{ not: $code }', '\u2028', 'ß', 'İ', 'null', '\u0001'];
const DATES = ['2024-01-31T12:00:00Z', '2030-12-31T23:59:59Z', '2025-06-01T00:00:00+02:00', '1999-01-01T00:00:00.123Z'];
const DECIMALS = ['0', '1.5', '0.000001', '12.25'];
const NO_IDS = ['', 'nothing', 'circle_', 'circle_00000000000000000000000000', '1', 'agent_😀'];

// What an id in the place of this name is the id of.
const ID_OF = { assignee: 'Agent', reviewer: 'Agent', facilitator: 'Agent', participant: 'Agent', agent: 'Agent', actor: 'User', parent: 'Task', defaultModel: 'Model' };

// The variables of one document. All operations share the names; each declares those that it uses.
export class Variables {
  declared = new Map();

  // Declares a variable. `value` is what is sent; undefined is nothing.
  add(type, defaultValue, value) {
    const name = `v${this.declared.size + 1}`;
    const definition = { kind: Kind.VARIABLE_DEFINITION, variable: variableNode(name), type: parseType(type), defaultValue, directives: [] };
    this.declared.set(name, { definition, value });
    return variableNode(name);
  }
}

export class Values {
  // `pools.ids` has ids that exist, by the name of their type.
  constructor(random, pools, variables) {
    Object.assign(this, { random, pools, variables });
  }

  // A value for a place of that type: a literal or a variable. `hint` is the name of the place, `of` the type that its
  // field returns; with `hasDefault` the place has a default value.
  value(type, hint, { of, hasDefault = false, depth = 0 } = {}) {
    if (this.random.chance(0.3)) return this.variable(type, hint, of, hasDefault);
    return this.literal(type, hint, { of, depth, mayHoldVariables: true });
  }

  // A variable that may stand in a place of that type, with a value and now and then a default or none of both.
  variable(type, hint, of, hasDefault) {
    const { random } = this;
    const bare = isNonNullType(type) ? type.ofType : type;
    const literal = () => this.literal(bare, hint, { of, mayBeNull: false });
    const json = () => valueFromASTUntyped(literal());
    const isRequired = isNonNullType(type);
    const kind = random.weighted([[4, 'required'], [2, 'required default'], [isRequired ? 0 : 4, 'nullable'], [3, 'nullable default'], [isRequired && hasDefault ? 6 : 0, 'nullable']]);
    const hasOwnDefault = kind.endsWith('default');
    const written = `${this.#stricter(bare)}${kind.startsWith('required') ? '!' : ''}`;
    const mayBeLeftOut = hasOwnDefault || kind === 'nullable';
    let value = mayBeLeftOut && random.chance(0.4) ? undefined : json();
    if (kind === 'nullable' && random.chance(0.15)) value = null;
    return this.variables.add(written, hasOwnDefault ? literal() : undefined, value);
  }

  // A variable of this type may stand in a place of the given one: its items may be non-null.
  #stricter(type) {
    if (!isListType(type)) return `${type}`;
    const item = type.ofType;
    if (isNonNullType(item)) return `[${this.#stricter(item.ofType)}!]`;
    return `[${this.#stricter(item)}${this.random.chance(0.3) ? '!' : ''}]`;
  }

  literal(type, hint, { of, depth = 0, mayBeNull = true, mayHoldVariables = false } = {}) {
    const { random } = this;
    if (isNonNullType(type)) return this.literal(type.ofType, hint, { of, depth, mayBeNull: false, mayHoldVariables });
    if (mayBeNull && random.chance(0.06)) return nullNode;
    const inner = (innerType, innerHint, hasDefault = false) =>
      mayHoldVariables
        ? this.value(innerType, innerHint, { of, hasDefault, depth: depth + 1 })
        : this.literal(innerType, innerHint, { of, depth: depth + 1 });
    if (isListType(type)) {
      // One value stands for a list of one; not as a variable, which would have to be of the list's type.
      if (random.chance(0.2)) return this.literal(type.ofType, hint, { of, depth, mayBeNull: false, mayHoldVariables });
      const length = random.weighted([[1, 0], [5, 1], [4, 2], [1, 3]]);
      return { kind: Kind.LIST, values: Array.from({ length }, () => inner(type.ofType, hint)) };
    }
    if (isInputObjectType(type)) {
      const fields = Object.values(type.getFields()).filter((field) => isRequiredInputField(field) || random.chance(depth > 1 ? 0.1 : 0.3));
      return {
        kind: Kind.OBJECT,
        fields: random.shuffle(fields).map((field) => ({
          kind: Kind.OBJECT_FIELD,
          name: nameNode(field.name),
          value: inner(field.type, field.name, field.defaultValue !== undefined),
        })),
      };
    }
    if (isEnumType(type)) return { kind: Kind.ENUM, value: random.pick(type.getValues()).name };
    return this.#scalar(type.name, hint, of);
  }

  #scalar(type, hint, of) {
    const { random } = this;
    switch (type) {
      case 'ID':
        return this.#id(hint, of);
      case 'Int':
        if (hint === 'first' || hint === 'last') return intNode(random.weighted([[5, 1], [6, 2], [3, 3], [1, 20], [0.4, 0], [0.2, -1], [0.3, 101], [0.3, 2147483647]]));
        return intNode(random.pick([0, 1, 2, 5, 100, -1, 2147483647, -2147483648]));
      case 'Float':
        return random.chance(0.5) ? intNode(random.int(-3, 100)) : { kind: Kind.FLOAT, value: random.pick(['0.5', '1.0', '-2.25', '1e3', '1.5E-3', '0.7']) };
      case 'Boolean':
        return booleanNode(random.chance(0.5));
      case 'DateTime':
        return stringNode(random.pick(DATES));
      case 'Decimal':
        return stringNode(random.pick(DECIMALS));
      default:
        if ((hint === 'after' || hint === 'before') && random.chance(0.9)) return stringNode(random.pick(this.pools.cursors[of] ?? this.pools.cursors.any));
        return stringNode(random.pick(STRINGS));
    }
  }

  #id(hint, of) {
    const { random, pools: { ids } } = this;
    if (random.chance(0.06)) return random.chance(0.5) ? stringNode(random.pick(NO_IDS)) : intNode(random.pick([0, 7, '9007199254740991']));
    const noun = hint.replace(/Ids?$/, '');
    const kind = ID_OF[noun] ?? noun[0].toUpperCase() + noun.slice(1);
    const pool = ids[kind] ?? ids[of];
    return stringNode(random.pick(pool && random.chance(0.9) ? pool : random.pick(Object.values(ids))));
  }
}
