// Mercurius with its JIT compiler and its loaders.

import Fastify from 'fastify'
import mercurius from 'mercurius'
import { byId, connect, createTask, members, query, run, typeDefs } from './peer.js'

run(async (port) => {
  const pool = connect()
  const app = Fastify({ logger: false })
  app.register(mercurius, {
    schema: typeDefs,
    jit: 1,
    resolvers: {
      Query: {
        agent: async (_, { id }) => (await query(pool, 'agent', id))[0],
        circle: async (_, { id }) => (await query(pool, 'circle', id))[0],
        circles: async (_, { first }) => ({ nodes: await query(pool, 'circles', first) }),
      },
      Mutation: { createTask: (_, { input }) => createTask(pool, input) },
    },
    loaders: {
      Circle: {
        // All fields of a batch are the same field of the document, so `first` is the same.
        members: (queries) => members(pool, queries.map(({ obj }) => obj.id), queries[0].params.first),
      },
      Agent: { model: (queries) => byId(pool, 'models', queries.map(({ obj }) => obj.modelId)) },
      Model: { provider: (queries) => byId(pool, 'providers', queries.map(({ obj }) => obj.providerId)) },
    },
  })
  await app.listen({ host: '127.0.0.1', port })
})
