// What graphql-js answers to a query over the server's own data. The data comes from the server field by field, by plain
// queries without aliases, fragments to merge, directives and variables; everything else is left to graphql-js.
import { astFromValue, execute, getNamedType, GraphQLError, isAbstractType, isLeafType, print, visit } from 'graphql';

// Values that change between requests.
const VOLATILE = ['rateLimit', 'eventBusStats', 'health', 'dashboard', 'sessions', 'revocationStats', 'auditLog', 'lastLoginAt', '__schema', '__type'];

// The plain queries do not determine the response.
class NotComparable extends Error {}

export class Answers {
  #known = new Map();

  constructor(server, schema) {
    Object.assign(this, { server, schema });
  }

  isStable(document) {
    let isStable = true;
    visit(document, { Field: ({ name }) => void (isStable &&= !VOLATILE.includes(name.value)) });
    return isStable;
  }

  // What the answer differs in, from what graphql-js answers; undefined when it does not, or cannot be compared.
  async difference({ document, variables, operationName }, parsed, body) {
    let notComparable;
    const resolve = async (...of) => {
      try {
        return await this.#resolve(...of);
      } catch (error) {
        if (error instanceof NotComparable) notComparable = error;
        throw error;
      }
    };
    const { data = null, errors = [] } = await execute({
      schema: this.schema,
      document: parsed,
      variableValues: variables,
      operationName,
      fieldResolver: resolve,
      typeResolver: ({ __typename }) => __typename,
    });
    if (notComparable) return { notComparable: notComparable.message };
    const [expected, actual] = [data, body.data].map((answer) => JSON.stringify(answer));
    if (expected !== actual) return { what: 'data', expected, actual };
    const [missed, found] = [errors, body.errors ?? []].map((list) => JSON.stringify(places(data, list)));
    if (missed !== found) return { what: 'errors', expected: missed, actual: found };
    return undefined;
  }

  async #resolve(source, args, _, info) {
    const { fieldName, returnType, parentType } = info;
    if (source && Object.hasOwn(source, fieldName)) return source[fieldName];
    const field = parentType.getFields()[fieldName];
    const given = field.args.filter(({ name }) => args[name] !== undefined);
    const literals = given.map(({ name, type }) => `${name}: ${print(astFromValue(args[name], type))}`);
    const call = literals.length > 0 ? `${fieldName}(${literals.join(', ')})` : fieldName;
    const selection = this.#selection(returnType);
    if (parentType === this.schema.getQueryType()) return this.#ask(`{ ${call}${selection} }`, [fieldName]);
    const around = `{ node(id: ${JSON.stringify(source.id)}) { ... on ${parentType.name} {`;
    if (!isLeafType(getNamedType(returnType)) || literals.length > 0) return this.#ask(`${around} ${call}${selection} } } }`, ['node', fieldName]);
    // All that an object says of itself is asked for at once.
    const leaves = Object.values(parentType.getFields()).filter(({ type, args: { length } }) => length === 0 && isLeafType(getNamedType(type)));
    return this.#ask(`${around} ${leaves.map(({ name }) => name).join(' ')} } } }`, ['node', fieldName]);
  }

  // All of a value up to the next objects that have an id of their own, of which the id suffices.
  #selection(type) {
    const named = getNamedType(type);
    if (isLeafType(named)) return '';
    const isNode = named.getInterfaces().some(({ name }) => name === 'Node');
    if (isNode || isAbstractType(named)) return ' { __typename id }';
    const fields = Object.values(named.getFields()).filter(({ args }) => args.length === 0);
    return ` { __typename ${fields.map((field) => field.name + this.#selection(field.type)).join(' ')} }`;
  }

  // The value at the path of a plain query, or its error.
  async #ask(document, path) {
    if (!this.#known.has(document)) this.#known.set(document, this.server.send({ document }));
    const { data, errors = [] } = await this.#known.get(document);
    const isHere = (error) => JSON.stringify(error.path) === JSON.stringify(path);
    const [error] = errors.filter(isHere);
    if (error) throw new GraphQLError(error.message);
    const value = path.reduce((holder, key) => holder?.[key], data);
    if (value === undefined || errors.some((other) => other.path?.length > path.length)) throw new NotComparable(`${document}: ${JSON.stringify({ data, errors }).slice(0, 300)}`);
    return value;
  }
}

// Where the data is null because of an error. Which of several errors that meet in one place is told is left open.
function places(data, errors) {
  const found = errors.map(({ path = [] }) => {
    let here = data;
    let depth = 0;
    while (here !== null && here !== undefined && depth < path.length) {
      here = here[path[depth]];
      depth += 1;
    }
    return JSON.stringify(path.slice(0, depth));
  });
  return [...new Set(found)].sort();
}
