// What graphql-js says about a request.
import { assertValidSchema, buildSchema, getOperationAST, GraphQLError, GraphQLScalarType, isInterfaceType, isObjectType, Kind, parse, specifiedRules, specifiedScalarTypes, TypeNameMetaFieldDef, validate, valueFromASTUntyped, visit } from 'graphql';
import { getVariableValues } from 'graphql/execution/values.js';

// Values of our own scalars that the server is sure to take.
const PLAIN = {
  DateTime: (value) => typeof value === 'string' && /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)$/.test(value) && !Number.isNaN(Date.parse(value)),
  Decimal: (value) => typeof value === 'string' && /^\d{1,6}(\.\d{1,6})?$/.test(value),
};

export class Reference {
  constructor(sdl) {
    // One schema takes every value for our own scalars, the other only plain ones: between the two the server may
    // decide as it likes.
    this.schema = buildSchema(sdl);
    this.strict = buildSchema(sdl);
    // graphql-js takes `__typename` for a field without a type where it looks for conflicts.
    const schemas = [this.schema, this.strict];
    schemas.forEach(assertValidSchema);
    for (const schema of schemas) {
      for (const type of Object.values(schema.getTypeMap())) if (isObjectType(type) || isInterfaceType(type)) type.getFields().__typename = TypeNameMetaFieldDef;
    }
    for (const type of Object.values(this.strict.getTypeMap())) {
      if (!(type instanceof GraphQLScalarType) || specifiedScalarTypes.some(({ name }) => name === type.name)) continue;
      const take = (value) => {
        if (PLAIN[type.name]?.(value)) return value;
        throw new GraphQLError(`${type.name} cannot represent this value`);
      };
      type.parseValue = take;
      type.parseLiteral = (node, variables) => take(valueFromASTUntyped(node, variables));
    }
  }

  // `{ accepted, because, document, operation }`; `accepted` is undefined where the server may decide.
  verdict(request) {
    const verdict = this.#verdict(this.schema, request);
    const isOpen = verdict.accepted && !this.#verdict(this.strict, request).accepted;
    return isOpen ? { ...verdict, accepted: undefined } : verdict;
  }

  #verdict(schema, { document: text, variables, operationName }) {
    const refused = (because, error) => ({ accepted: false, because, message: error });
    let document;
    try {
      // To the specification a block string is the same value as a plain one.
      document = visit(parse(text), { StringValue: (node) => ({ ...node, block: false }) });
    } catch (error) {
      return refused('Syntax', error.message);
    }
    // The specification forbids conditions at the root of a subscription, and graphql-js evaluates them.
    if (document.definitions.some((definition) => definition.operation === 'subscription' && hasConditions(definition, document))) return { accepted: undefined, document };
    const [error] = validate(schema, document, specifiedRules, { maxErrors: 1 });
    if (error) return { ...refused('', error.message), document, rules: () => this.#rules(document) };
    const operation = getOperationAST(document, operationName);
    if (!operation) return { ...refused('OperationName', 'no such operation'), document };
    const { errors } = getVariableValues(schema, operation.variableDefinitions ?? [], variables ?? {}, { maxErrors: 1 });
    if (errors) return { ...refused('Variables', errors[0].message), document };
    return { accepted: true, document, operation };
  }

  // The names of the rules that a document breaks.
  #rules(document) {
    const broken = specifiedRules.filter((rule) => validate(this.schema, document, [rule], { maxErrors: 1 }).length > 0);
    return broken.map(({ name }) => name.replace(/Rule$/, '')).join(' ');
  }
}

// Whether a selection of the operation's root has a directive, also in fragments.
function hasConditions({ selectionSet }, document, seen = new Set()) {
  return selectionSet.selections.some((selection) => {
    if (selection.directives.length > 0) return true;
    if (selection.kind === Kind.INLINE_FRAGMENT) return hasConditions(selection, document, seen);
    if (selection.kind === Kind.FIELD || seen.has(selection.name.value)) return false;
    seen.add(selection.name.value);
    const fragment = document.definitions.find(({ kind, name }) => kind === Kind.FRAGMENT_DEFINITION && name.value === selection.name.value);
    return fragment !== undefined && hasConditions(fragment, document, seen);
  });
}

// Which kind of operation a request asks for, as far as its text tells; a query when it does not.
export function kindOf({ operation, document }, text) {
  if (operation) return operation.operation;
  const operations = document?.definitions.filter(({ kind }) => kind === Kind.OPERATION_DEFINITION);
  const kinds = operations ? operations.map(({ operation: kind }) => kind) : (text.match(/\b(mutation|subscription)\b/g) ?? []);
  if (kinds.includes('mutation')) return 'mutation';
  return kinds.includes('subscription') ? 'subscription' : 'query';
}
