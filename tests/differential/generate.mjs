// Generates mostly valid operations; graphql-js decides.
import { getNamedType, isAbstractType, isCompositeType, isLeafType, isRequiredArgument, Kind, OperationTypeNode, print, visit } from 'graphql';
import { argumentNode, nameNode, stringNode, Values, Variables } from './values.mjs';

// Mutations that run for callers who are not signed in. They are never sent.
export const SIGN_IN = ['login', 'register', 'refreshSession'];

const MAX_DEPTH = 5;
// What graphql-js knows of introspection, and the specification of September 2025 does not.
const DRAFT = ['__Directive.isDeprecated', '__Directive.deprecationReason', '__Schema.directives(includeDeprecated:)'];
const PAGE_ARGUMENTS = ['first', 'last', 'after', 'before'];

// Returns `{ document, variables, operationName }`, the document as a syntax tree.
export function generate(random, schema, pools) {
  return new Generator(random, schema, pools).request();
}

class Generator {
  constructor(random, schema, pools) {
    this.random = random;
    this.schema = schema;
    this.variables = new Variables();
    this.values = new Values(random, pools, this.variables);
    this.fragments = [];
    // What each response key stands for, in the whole document: so no two selections conflict.
    this.keys = new Map();
    this.fieldsLeft = 0;
  }

  request() {
    const { random } = this;
    const count = random.weighted([[17, 1], [2, 2], [1, 3]]);
    const isAnonymous = count === 1 && random.chance(0.4);
    const operations = Array.from({ length: count }, (_, index) => this.operation(isAnonymous ? undefined : `Op${index + 1}`));
    for (const operation of operations) this.declare(operation);
    const chosen = random.pick(operations);
    const variables = {};
    for (const { variable } of chosen.variableDefinitions) {
      const { value } = this.variables.declared.get(variable.name.value);
      if (value !== undefined) variables[variable.name.value] = value;
    }
    const needsName = count > 1 || (!isAnonymous && random.chance(0.3));
    const definitions = random.shuffle([...operations, ...this.fragments.map(({ definition }) => definition)]);
    if (random.chance(0.03)) {
      const described = definitions.find((definition) => definition.kind === Kind.FRAGMENT_DEFINITION || definition.name);
      if (described) described.description = stringNode('What it is for.');
    }
    return {
      document: { kind: Kind.DOCUMENT, definitions },
      variables: Object.keys(variables).length > 0 || random.chance(0.1) ? variables : undefined,
      operationName: needsName ? chosen.name.value : undefined,
    };
  }

  operation(name) {
    const { random, schema } = this;
    const kind = random.weighted([[16, 'query'], [3, 'mutation'], [2, 'subscription']]);
    this.fieldsLeft = random.weighted([[3, 4], [4, 12], [2, 30]]);
    const root = schema.getRootType(OperationTypeNode[kind.toUpperCase()]);
    return {
      kind: Kind.OPERATION_DEFINITION,
      operation: kind,
      name: name && nameNode(name),
      variableDefinitions: [],
      directives: [],
      selectionSet: kind === 'subscription' ? this.subscriptionRoot(root) : this.selectionSet(root, 0),
    };
  }

  // A subscription has one root field, with nothing beside it that could leave it out.
  subscriptionRoot(root) {
    const field = this.field(root, this.random.pick(Object.values(root.getFields())), 0);
    const selections = [field];
    if (this.random.chance(0.2)) selections.push(structuredClone(field));
    const selectionSet = { kind: Kind.SELECTION_SET, selections };
    if (!this.random.chance(0.2)) return selectionSet;
    const inline = { kind: Kind.INLINE_FRAGMENT, typeCondition: namedTypeNode(root.name), directives: [], selectionSet };
    return { kind: Kind.SELECTION_SET, selections: [inline] };
  }

  selectionSet(type, depth) {
    const { random } = this;
    const selections = [];
    const count = depth === 0 ? random.weighted([[4, 1], [3, 2], [2, 3]]) : random.weighted([[2, 1], [3, 2], [3, 3], [2, 5]]);
    for (let index = 0; index < count; index += 1) selections.push(this.selection(type, depth));
    return { kind: Kind.SELECTION_SET, selections };
  }

  selection(type, depth) {
    const { random } = this;
    const chosen = random.weighted([[9, 'field'], [isAbstractType(type) ? 6 : 1.2, 'inline'], [1.2, 'spread']]);
    const selection = chosen === 'inline' ? this.inlineFragment(type, depth) : chosen === 'spread' ? this.spread(type, depth) : this.anyField(type, depth);
    if (random.chance(0.12)) selection.directives = this.conditions();
    return selection;
  }

  conditions() {
    const { random } = this;
    const type = this.schema.getDirective('skip').args[0].type;
    const names = random.weighted([[4, ['include']], [3, ['skip']], [1, ['skip', 'include']]]);
    return names.map((name) => ({ kind: Kind.DIRECTIVE, name: nameNode(name), arguments: [argumentNode('if', this.values.value(type, 'if'))] }));
  }

  anyField(type, depth) {
    const { random } = this;
    this.fieldsLeft -= 1;
    const goesOn = depth < MAX_DEPTH && this.fieldsLeft > 0;
    const fields = Object.values(type.getFields?.() ?? {}).filter((field) => {
      if (SIGN_IN.includes(field.name) || DRAFT.includes(`${type}.${field.name}`)) return false;
      return isLeafType(getNamedType(field.type)) || goesOn || depth === 0;
    });
    if (fields.length === 0 || random.chance(0.08)) return this.named({ kind: Kind.FIELD, name: nameNode('__typename'), arguments: [], directives: [] }, 'String!');
    if (type === this.schema.getQueryType() && random.chance(0.04)) return this.introspection(depth);
    return this.field(type, random.pick(fields), depth);
  }

  introspection(depth) {
    const { random, schema } = this;
    const isType = random.chance(0.7);
    const field = { kind: Kind.FIELD, name: nameNode(isType ? '__type' : '__schema'), arguments: [], directives: [] };
    if (isType) field.arguments.push(argumentNode('name', stringNode(random.pick(Object.keys(schema.getTypeMap())))));
    this.fieldsLeft = Math.min(this.fieldsLeft, 6);
    const named = this.named(field, isType ? '__Type' : '__Schema!');
    return { ...named, selectionSet: this.selectionSet(schema.getType(isType ? '__Type' : '__Schema'), depth + 1) };
  }

  field(parent, definition, depth) {
    const type = getNamedType(definition.type);
    const node = { kind: Kind.FIELD, name: nameNode(definition.name), arguments: this.arguments(parent, definition), directives: [] };
    const named = this.named(node, `${definition.type}`);
    return isCompositeType(type) ? { ...named, selectionSet: this.selectionSet(type, depth + 1) } : named;
  }

  arguments(parent, definition) {
    const { random } = this;
    const page = random.weighted([[14, ['first']], [3, ['last']], [1, []], [0.3, ['first', 'last']]]);
    const isTaken = (argument) => {
      if (DRAFT.includes(`${parent}.${definition.name}(${argument.name}:)`)) return false;
      if (isRequiredArgument(argument)) return true;
      if (argument.name === 'first' || argument.name === 'last') return page.includes(argument.name);
      if (PAGE_ARGUMENTS.includes(argument.name)) return random.chance(0.06);
      return random.chance(0.35);
    };
    const taken = random.shuffle(definition.args.filter(isTaken));
    const of = getNamedType(definition.type).name;
    return taken.map((argument) => argumentNode(argument.name, this.values.value(argument.type, argument.name, { of, hasDefault: argument.defaultValue !== undefined })));
  }

  // Gives a field a response key that stands for nothing else in the document.
  named(field, type) {
    const { random } = this;
    const signature = `${field.name.value}(${field.arguments.map(print).sort()}): ${type}`;
    const known = [...this.keys].filter(([, other]) => other === signature).map(([key]) => key);
    const own = field.name.value;
    let key = random.pick([...known, own]);
    if ((this.keys.get(key) ?? signature) !== signature || random.chance(0.15)) key = `k${this.keys.size + 1}`;
    this.keys.set(key, signature);
    return key === own && !random.chance(0.05) ? field : { ...field, alias: nameNode(key) };
  }

  // A type that an object of the given type can be of, too.
  overlapping(type) {
    const { schema, random } = this;
    const interfaces = type.getInterfaces?.() ?? [];
    const possible = isAbstractType(type) ? schema.getPossibleTypes(type) : [];
    const others = interfaces.length + possible.length === 0 ? [type] : [...interfaces, ...possible];
    return random.chance(0.25) ? type : random.pick(others);
  }

  inlineFragment(type, depth) {
    const { random } = this;
    if (random.chance(0.2)) return { kind: Kind.INLINE_FRAGMENT, directives: [], selectionSet: this.selectionSet(type, depth) };
    const narrowed = this.overlapping(type);
    return { kind: Kind.INLINE_FRAGMENT, typeCondition: namedTypeNode(narrowed.name), directives: [], selectionSet: this.selectionSet(narrowed, depth) };
  }

  spread(type, depth) {
    const { random } = this;
    const fitting = this.fragments.filter(({ isComplete, depth: made, on }) => isComplete && depth <= made && this.overlaps(type, on));
    let fragment = fitting.length > 0 && random.chance(0.6) ? random.pick(fitting) : undefined;
    if (!fragment) {
      const on = this.overlapping(type);
      const name = nameNode(`F${this.fragments.length + 1}`);
      const definition = { kind: Kind.FRAGMENT_DEFINITION, name, typeCondition: namedTypeNode(on.name), directives: [] };
      fragment = { definition, on, depth, isComplete: false };
      this.fragments.push(fragment);
      definition.selectionSet = this.selectionSet(on, depth);
      fragment.isComplete = true;
    }
    return { kind: Kind.FRAGMENT_SPREAD, name: nameNode(fragment.definition.name.value), directives: [] };
  }

  overlaps(type, other) {
    const objects = (of) => (isAbstractType(of) ? this.schema.getPossibleTypes(of) : [of]);
    return objects(type).some((object) => objects(other).includes(object));
  }

  // Declares the variables that an operation uses, also in fragments.
  declare(operation) {
    const used = new Set();
    const seen = new Set();
    const collect = (node) =>
      visit(node, {
        Variable: ({ name }) => void used.add(name.value),
        FragmentSpread: ({ name }) => {
          if (seen.has(name.value)) return;
          seen.add(name.value);
          collect(this.fragments.find(({ definition }) => definition.name.value === name.value).definition);
        },
      });
    collect(operation);
    const definitions = this.random.shuffle([...used]).map((name) => structuredClone(this.variables.declared.get(name).definition));
    operation.variableDefinitions = definitions;
  }
}

function namedTypeNode(name) {
  return { kind: Kind.NAMED_TYPE, name: nameNode(name) };
}
