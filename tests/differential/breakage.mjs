// Changes one node of a valid operation. graphql-js decides whether the result is valid.
import { Kind, parseType, parseValue } from 'graphql';
import { argumentNode, intNode, nameNode, stringNode, variableNode } from './values.mjs';

const VALUES = ['1', '-7', '2147483648', '99999999999999999999', '1.5', '1e2', '"text"', '""', '"1"', 'true', 'null', 'UNKNOWN', 'ASC', 'NAME', 'RUNNING', '[]', '[1]', '["a"]', '[null]', '[[1]]', '{}', '{a: 1}', '{field: NAME, direction: ASC}', '{search: "a"}', '$undefined', '$v1', '[$v1]', '{search: $v2}'];
const TYPES = ['Int', 'Int!', 'ID', 'ID!', '[ID!]!', '[ID]', '[ID!]', 'String', 'String!', 'Boolean', 'Boolean!', '[Boolean]', 'Float', 'Circle', 'Node', 'Unknown', 'CircleFilter', 'CircleFilter!', '[CircleFilter]', 'SortDirection', 'SortDirection!', 'NamedOrder', 'DateTime', '[[ID]]', '__Type', '__TypeKind', 'Query'];
const DIRECTIVES = ['unknown', 'skip', 'include', 'rateLimit', 'deprecated', 'specifiedBy', 'oneOf'];
const CONDITIONS = ['Query', 'Mutation', 'Circle', 'Agent', 'Node', 'Actor', 'Event', 'CircleEvent', 'Task', 'ConversationUpdate', 'Unknown', 'String', 'CircleFilter', 'Access', 'DateTime', '__Type'];

// All nodes of a document, by kind; each knows the list that holds it and the nodes around it.
function nodesOf(document) {
  const found = [];
  const walk = (node, list, around) => {
    if (node === null || typeof node !== 'object') return;
    if (Array.isArray(node)) {
      for (const item of node) walk(item, node, around);
      return;
    }
    if (node.kind) found.push({ node, list, around });
    for (const [key, child] of Object.entries(node)) if (key !== 'loc' && child && typeof child === 'object') walk(child, undefined, node.kind ? [...around, node] : around);
  };
  walk(document, undefined, []);
  return (...kinds) => found.filter(({ node }) => kinds.includes(node.kind));
}

const typename = () => ({ kind: Kind.FIELD, name: nameNode('__typename'), arguments: [], directives: [] });
const directive = (name, ...args) => ({ kind: Kind.DIRECTIVE, name: nameNode(name), arguments: args });
const selectionSet = (...selections) => ({ kind: Kind.SELECTION_SET, selections });
const keyOf = (field) => (field.alias ?? field.name).value;
const replace = (node, other) => {
  for (const key of Object.keys(node)) delete node[key];
  Object.assign(node, other);
};

// Each takes a random source, the nodes of the document and the document, and changes it, or throws where it cannot.
const CHANGES = {
  unknownField: (random, nodes) => (random.pick(nodes(Kind.FIELD)).node.name = nameNode('noSuchField')),
  otherField(random, nodes) {
    random.pick(nodes(Kind.FIELD)).node.name = nameNode(random.pick(nodes(Kind.FIELD)).node.name.value);
  },
  unknownArgument: (random, nodes) => random.pick(nodes(Kind.FIELD, Kind.DIRECTIVE)).node.arguments.push(argumentNode('noSuchArgument', intNode(1))),
  duplicateArgument(random, nodes) {
    const { node, list } = random.pick(nodes(Kind.ARGUMENT));
    list.push(structuredClone(node));
  },
  missingArgument(random, nodes) {
    const { node, list } = random.pick(nodes(Kind.ARGUMENT));
    list.splice(list.indexOf(node), 1);
  },
  renamedArgument: (random, nodes) => (random.pick(nodes(Kind.ARGUMENT)).node.name = nameNode(random.pick(['id', 'first', 'filter', 'input', 'if', 'other']))),
  addedArgument: (random, nodes) => random.pick(nodes(Kind.FIELD)).node.arguments.push(argumentNode(random.pick(['id', 'first', 'filter', 'orderBy']), parseValue(random.pick(VALUES)))),
  otherValue(random, nodes) {
    const places = nodes(Kind.ARGUMENT, Kind.OBJECT_FIELD);
    random.pick(places).node.value = parseValue(random.pick(VALUES));
  },
  otherInnerValue(random, nodes) {
    const kinds = [Kind.INT, Kind.FLOAT, Kind.STRING, Kind.BOOLEAN, Kind.ENUM, Kind.NULL, Kind.LIST, Kind.OBJECT, Kind.VARIABLE];
    const places = nodes(...kinds).filter(({ around }) => around.at(-1).kind !== Kind.VARIABLE_DEFINITION && !('description' in around.at(-1)));
    replace(random.pick(places).node, parseValue(random.pick(VALUES)));
  },
  similarValue(random, nodes) {
    const { node } = random.pick(nodes(Kind.INT, Kind.FLOAT, Kind.STRING, Kind.BOOLEAN, Kind.ENUM));
    if (node.kind === Kind.STRING || node.kind === Kind.ENUM) node.kind = node.kind === Kind.STRING && /^[a-z]\w*$/i.test(node.value) ? Kind.ENUM : Kind.STRING;
    else if (node.kind === Kind.INT) replace(node, random.pick([{ kind: Kind.FLOAT, value: `${node.value}.0` }, stringNode(node.value), intNode(`${node.value}0000000000`)]));
    else replace(node, stringNode(String(node.value)));
  },
  duplicateInputField(random, nodes) {
    const { node, list } = random.pick(nodes(Kind.OBJECT_FIELD));
    list.push(random.chance(0.5) ? structuredClone(node) : { ...node, value: parseValue(random.pick(VALUES)) });
  },
  missingInputField(random, nodes) {
    const { node, list } = random.pick(nodes(Kind.OBJECT_FIELD));
    list.splice(list.indexOf(node), 1);
  },
  unknownInputField: (random, nodes) => random.pick(nodes(Kind.OBJECT)).node.fields.push({ kind: Kind.OBJECT_FIELD, name: nameNode('noSuchField'), value: intNode(1) }),
  otherVariableType: (random, nodes) => (random.pick(nodes(Kind.VARIABLE_DEFINITION)).node.type = parseType(random.pick(TYPES))),
  looserVariableType(random, nodes) {
    const { node } = random.pick(nodes(Kind.VARIABLE_DEFINITION));
    const { type } = node;
    node.type = type.kind === Kind.NON_NULL_TYPE ? type.type : random.pick([{ kind: Kind.NON_NULL_TYPE, type }, { kind: Kind.LIST_TYPE, type }, type.type ?? type]);
    if (random.chance(0.5)) delete node.defaultValue;
  },
  otherDefault: (random, nodes) => (random.pick(nodes(Kind.VARIABLE_DEFINITION)).node.defaultValue = parseValue(random.pick(VALUES.filter((value) => !value.includes('$'))))),
  variableAsDefault: (random, nodes) => (random.pick(nodes(Kind.VARIABLE_DEFINITION)).node.defaultValue = variableNode('v1')),
  undefinedVariable(random, nodes) {
    const { node, list } = random.pick(nodes(Kind.VARIABLE_DEFINITION));
    list.splice(list.indexOf(node), 1);
  },
  unusedVariable: (random, nodes) => random.pick(nodes(Kind.OPERATION_DEFINITION)).node.variableDefinitions.push({ kind: Kind.VARIABLE_DEFINITION, variable: variableNode('unused'), type: parseType(random.pick(TYPES)), directives: [] }),
  duplicateVariable(random, nodes) {
    const { node, list } = random.pick(nodes(Kind.VARIABLE_DEFINITION));
    list.push(structuredClone(node));
  },
  swappedVariable: (random, nodes) => (random.pick(nodes(Kind.VARIABLE)).node.name = nameNode(random.pick(nodes(Kind.VARIABLE)).node.name.value)),
  addedDirective(random, nodes) {
    const kinds = [Kind.FIELD, Kind.INLINE_FRAGMENT, Kind.FRAGMENT_SPREAD, Kind.FRAGMENT_DEFINITION, Kind.OPERATION_DEFINITION, Kind.VARIABLE_DEFINITION];
    const args = random.pick([[], [argumentNode('if', parseValue(random.pick(VALUES)))], [argumentNode('if', { kind: Kind.BOOLEAN, value: true })]]);
    random.pick(nodes(random.pick(kinds))).node.directives.push(directive(random.pick(DIRECTIVES), ...args));
  },
  duplicateDirective(random, nodes) {
    const { node, list } = random.pick(nodes(Kind.DIRECTIVE));
    list.push(structuredClone(node));
  },
  unknownFragment: (random, nodes) => random.pick(nodes(Kind.SELECTION_SET)).node.selections.push({ kind: Kind.FRAGMENT_SPREAD, name: nameNode('NoSuchFragment'), directives: [] }),
  renamedFragment: (random, nodes) => (random.pick(nodes(Kind.FRAGMENT_DEFINITION)).node.name = nameNode(random.pick(['Other', 'F1', 'F2', 'on']))),
  addedSpread(random, nodes) {
    const name = random.pick(nodes(Kind.FRAGMENT_DEFINITION)).node.name.value;
    random.pick(nodes(Kind.SELECTION_SET)).node.selections.push({ kind: Kind.FRAGMENT_SPREAD, name: nameNode(name), directives: [] });
  },
  duplicateDefinition: (random, nodes, document) => document.definitions.push(structuredClone(random.pick(document.definitions))),
  unusedFragment(random, nodes, document) {
    document.definitions.push({ kind: Kind.FRAGMENT_DEFINITION, name: nameNode('Unused'), typeCondition: parseType('Query'), directives: [], selectionSet: selectionSet(typename()) });
  },
  otherCondition(random, nodes) {
    const { node } = random.pick(nodes(Kind.FRAGMENT_DEFINITION, Kind.INLINE_FRAGMENT));
    node.typeCondition = parseType(random.pick(CONDITIONS));
  },
  otherOperation(random, nodes) {
    const { node } = random.pick(nodes(Kind.OPERATION_DEFINITION));
    node.operation = random.pick(['query', 'mutation', 'subscription']);
  },
  sameOperationName(random, nodes) {
    for (const { node } of nodes(Kind.OPERATION_DEFINITION)) node.name = random.chance(0.8) ? nameNode('Op1') : undefined;
  },
  anonymousBeside(random, nodes, document) {
    document.definitions.push({ kind: Kind.OPERATION_DEFINITION, operation: 'query', variableDefinitions: [], directives: [], selectionSet: selectionSet(typename()) });
  },
  leafWithSelection(random, nodes) {
    const leaves = nodes(Kind.FIELD).filter(({ node }) => !node.selectionSet);
    random.pick(leaves).node.selectionSet = selectionSet(random.pick([typename(), { ...typename(), name: nameNode('a') }]));
  },
  objectWithoutSelection(random, nodes) {
    const objects = nodes(Kind.FIELD).filter(({ node }) => node.selectionSet);
    delete random.pick(objects).node.selectionSet;
  },
  typenameDressedUp(random, nodes) {
    const field = typename();
    const dress = random.pick([
      () => (field.selectionSet = selectionSet(typename())),
      () => field.arguments.push(argumentNode('a', intNode(1))),
      () => field.directives.push(directive('unknown')),
      () => field.directives.push(directive(random.pick(['skip', 'include']))),
      () => field.directives.push(directive('skip', argumentNode('if', parseValue(random.pick(VALUES))))),
      () => field.directives.push(directive('include', argumentNode('if', { kind: Kind.BOOLEAN, value: random.chance(0.5) }))),
    ]);
    dress();
    random.pick(nodes(Kind.SELECTION_SET)).node.selections.push(field);
  },
  onlyVariableOfTypename(random, nodes) {
    const { node } = random.pick(nodes(Kind.OPERATION_DEFINITION));
    node.variableDefinitions.push({ kind: Kind.VARIABLE_DEFINITION, variable: variableNode('only'), type: parseType(random.pick(['Boolean!', 'Boolean', 'String'])), defaultValue: random.chance(0.7) ? { kind: Kind.BOOLEAN, value: true } : undefined, directives: [] });
    node.selectionSet.selections.push({ ...typename(), directives: [directive('include', argumentNode('if', variableNode('only')))] });
  },
  sameKey(random, nodes) {
    const [one, other] = [random.pick(nodes(Kind.FIELD)).node, random.pick(nodes(Kind.FIELD)).node];
    one.alias = nameNode(keyOf(other));
  },
  sameKeyNearby(random, nodes) {
    const sets = nodes(Kind.SELECTION_SET).filter(({ node }) => node.selections.filter(({ kind }) => kind === Kind.FIELD).length > 1);
    const [one, other] = random.shuffle(random.pick(sets).node.selections.filter(({ kind }) => kind === Kind.FIELD));
    one.alias = nameNode(keyOf(other));
  },
  sameFieldAgain(random, nodes) {
    const { node, list } = random.pick(nodes(Kind.FIELD));
    const copy = structuredClone(node);
    if (copy.arguments.length > 0 && random.chance(0.7)) random.pick(copy.arguments).value = parseValue(random.pick(VALUES));
    const inner = nodesOf(copy)(Kind.FIELD);
    if (random.chance(0.4)) random.pick(inner).node.alias = nameNode(keyOf(random.pick(inner).node));
    list.push(random.chance(0.5) ? copy : { kind: Kind.INLINE_FRAGMENT, directives: [], selectionSet: selectionSet(copy) });
  },
  otherLength(random, nodes) {
    const lists = (of) => nodesOf(of.arguments)(Kind.LIST).filter(({ node }) => node.values.length > 0);
    const { node, list } = random.pick(nodes(Kind.FIELD).filter((field) => lists(field.node).length > 0));
    const copy = structuredClone(node);
    const { values } = random.pick(lists(copy)).node;
    if (random.chance(0.5)) values.pop();
    else values.push(structuredClone(values[0]));
    list.push(copy);
  },
  conflictThroughFragment(random, nodes, document) {
    const sets = nodes(Kind.FRAGMENT_DEFINITION, Kind.INLINE_FRAGMENT).filter(({ node }) => node.typeCondition);
    const { typeCondition } = random.pick(sets).node;
    const { node } = random.pick(nodes(Kind.FIELD));
    const copy = structuredClone(node);
    copy.alias = nameNode(random.pick(nodes(Kind.FIELD).map((other) => keyOf(other.node))));
    document.definitions.push({ kind: Kind.FRAGMENT_DEFINITION, name: nameNode('Conflict'), typeCondition: structuredClone(typeCondition), directives: [], selectionSet: selectionSet(copy) });
    random.pick(nodes(Kind.SELECTION_SET)).node.selections.push({ kind: Kind.FRAGMENT_SPREAD, name: nameNode('Conflict'), directives: [] });
  },
  movedSelection(random, nodes) {
    const { node, list } = random.pick(nodes(Kind.FIELD, Kind.INLINE_FRAGMENT, Kind.FRAGMENT_SPREAD));
    if (list.length > 1) list.splice(list.indexOf(node), 1);
    random.pick(nodes(Kind.SELECTION_SET)).node.selections.push(structuredClone(node));
  },
  moreAtTheRoot(random, nodes) {
    const { node } = random.pick(nodes(Kind.OPERATION_DEFINITION));
    const more = [typename(), { ...node.selectionSet.selections[0], alias: nameNode('again') }, { kind: Kind.INLINE_FRAGMENT, directives: [], selectionSet: selectionSet({ ...typename(), alias: nameNode('again') }) }];
    node.selectionSet.selections.push(random.pick(more));
  },
};

// Changes one thing of a document, which must be a copy. Returns what kind of change it was; undefined for none.
export function breakDocument(random, document) {
  for (let attempt = 0; attempt < 10; attempt += 1) {
    const name = random.pick(Object.keys(CHANGES));
    try {
      CHANGES[name](random, nodesOf(document), document);
      return name;
    } catch (error) {
      // The document has no such node; another change is tried.
      if (!(error instanceof TypeError)) throw error;
    }
  }
  return undefined;
}

const JSON_VALUES = [null, true, 0, 1, -1, 1.5, 2147483648, 1000, '', 'a', '1', 'ASC', 'UNKNOWN', [], [null], ['a'], [['a']], {}, { a: 1 }, { field: 'NAME' }, { id: 1 }];

// Changes one thing of the variables' values; returns them.
export function breakVariables(random, variables) {
  const changed = structuredClone(variables ?? {});
  const places = [];
  const walk = (holder) => {
    for (const [key, value] of Object.entries(holder)) {
      places.push({ holder, key });
      if (value && typeof value === 'object') walk(value);
    }
  };
  walk(changed);
  if (places.length === 0 || random.chance(0.04)) return random.pick([undefined, {}, { unknown: 1 }, { v1: null }]);
  const { holder, key } = random.pick(places);
  const edits = [
    () => (holder[key] = structuredClone(random.pick(JSON_VALUES))),
    () => (holder[key] = structuredClone(random.pick(JSON_VALUES))),
    () => (holder[key] = null),
    () => (holder[key] = [holder[key]]),
    () => (Array.isArray(holder) ? holder.splice(key, 1) : delete holder[key]),
    () => (Array.isArray(holder) ? holder.push(null) : (holder.noSuchField = 1)),
    () => (holder[key] = typeof holder[key] === 'number' ? String(holder[key]) : [[holder[key]]]),
    () => (holder[key] = holder[key] && typeof holder[key] === 'object' ? { ...holder[key], noSuchField: 1 } : { value: holder[key] }),
  ];
  random.pick(edits)();
  return changed;
}
