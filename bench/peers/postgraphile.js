// PostGraphile over the tables as they are, with the function of postgraphile.sql as its mutation.

import { createServer } from 'node:http'
import { grafserv } from 'postgraphile/grafserv/node'
import { postgraphile } from 'postgraphile'
import { makePgService } from 'postgraphile/adaptors/pg'
import { PostGraphileAmberPreset } from 'postgraphile/presets/amber'
import { CONNECTIONS, databaseUrl, run } from './peer.js'

run(async (port) => {
  const preset = {
    extends: [PostGraphileAmberPreset],
    pgServices: [
      makePgService({
        connectionString: databaseUrl,
        schemas: ['public'],
        poolConfig: { max: CONNECTIONS, idleTimeoutMillis: 0 },
      }),
    ],
    grafserv: { graphqlPath: '/graphql', graphiql: false, watch: false, websockets: false },
    grafast: { explain: false },
  }
  const server = createServer()
  await postgraphile(preset).createServ(grafserv).addTo(server)
  server.listen(port, '127.0.0.1')
})
