// What graphql-js says about a request.
import { buildSchema, getOperationAST, GraphQLError, GraphQLScalarType, Kind, parse, specifiedRules, specifiedScalarTypes, validate, valueFromASTUntyped, visit } from 'graphql';
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
    let error;
    try {
      [error] = validate(schema, document, specifiedRules, { maxErrors: 1 });
    } catch {
      // Its rule for subscriptions fails on conditions at the root that need a variable.
      return { accepted: undefined, document };
    }
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

// Which kind of operation a request asks for, as far as its text tells; a query when it does not.
export function kindOf({ operation, document }, text) {
  if (operation) return operation.operation;
  const operations = document?.definitions.filter(({ kind }) => kind === Kind.OPERATION_DEFINITION);
  const kinds = operations ? operations.map(({ operation: kind }) => kind) : (text.match(/\b(mutation|subscription)\b/g) ?? []);
  if (kinds.includes('mutation')) return 'mutation';
  return kinds.includes('subscription') ? 'subscription' : 'query';
}
