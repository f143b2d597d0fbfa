// GraphQL Yoga with graphql-jit and DataLoader.

import { createServer } from 'node:http'
import { useGraphQlJit } from '@envelop/graphql-jit'
import DataLoader from 'dataloader'
import { createSchema, createYoga } from 'graphql-yoga'
import { byId, connect, createTask, members, query, run, typeDefs } from './peer.js'

run((port) => {
  const pool = connect()
  const yoga = createYoga({
    graphiql: false,
    landingPage: false,
    logging: false,
    plugins: [useGraphQlJit()],
    context: () => ({
      members: new DataLoader((keys) => members(pool, keys.map(({ id }) => id), keys[0].first), { cache: false }),
      models: new DataLoader((ids) => byId(pool, 'models', ids)),
      providers: new DataLoader((ids) => byId(pool, 'providers', ids)),
    }),
    schema: createSchema({
      typeDefs,
      resolvers: {
        Query: {
          agent: async (_, { id }) => (await query(pool, 'agent', id))[0],
          circle: async (_, { id }) => (await query(pool, 'circle', id))[0],
          circles: async (_, { first }) => ({ nodes: await query(pool, 'circles', first) }),
        },
        Mutation: { createTask: (_, { input }) => createTask(pool, input) },
        Circle: { members: ({ id }, { first }, context) => context.members.load({ id, first }) },
        Agent: { model: ({ modelId }, _, context) => modelId && context.models.load(modelId) },
        Model: { provider: ({ providerId }, _, context) => context.providers.load(providerId) },
      },
    }),
  })
  createServer(yoga).listen(port, '127.0.0.1')
})
