// What the peers of bench/compare.sh share: `node NAME.js DATABASE_URL PORT`
//
// One process per processor (node:cluster). The processes share 20 connections to PostgreSQL, as many as the server's
// pool has.

import cluster from 'node:cluster'
import { randomUUID } from 'node:crypto'
import { availableParallelism } from 'node:os'
import pg from 'pg'

const WORKERS = availableParallelism()
export const CONNECTIONS = Math.ceil(20 / WORKERS)
export const [databaseUrl, port] = process.argv.slice(2)

/** Runs `serve`, which listens on the port, in each process. */
export async function run(serve) {
  if (!cluster.isPrimary) return serve(Number(port))
  let listening = 0
  cluster.on('listening', () => {
    if (++listening === WORKERS) console.log(`listening on http://127.0.0.1:${port}`)
  })
  cluster.on('exit', () => process.exit(1))
  for (let i = 0; i < WORKERS; i++) cluster.fork()
}

// Times stay text: `2026-01-05 09:00:00+00` becomes RFC 3339.
pg.types.setTypeParser(pg.types.builtins.TIMESTAMPTZ, (text) => text.replace(' ', 'T') + ':00')

/** The pool of this process, with idle connections kept. */
export function connect() {
  return new pg.Pool({ connectionString: databaseUrl, max: CONNECTIONS, idleTimeoutMillis: 0 })
}

/** The schema of Mercurius and Yoga: the part of the server's schema that the workloads use. */
export const typeDefs = /* GraphQL */ `
  type Query {
    agent(id: ID!): Agent
    circle(id: ID!): Circle
    circles(first: Int = 20): CircleConnection!
  }
  type Mutation {
    createTask(input: CreateTaskInput!): TaskPayload!
  }
  type CircleConnection { nodes: [Circle!]! }
  type Circle { id: ID! name: String! members(first: Int = 20): MemberConnection! }
  type MemberConnection { edges: [MemberEdge!]! pageInfo: PageInfo! }
  type MemberEdge { membership: Membership! node: Agent! }
  type Membership { role: String! joinedAt: String! }
  type PageInfo { hasNextPage: Boolean! endCursor: String }
  type Agent { id: ID! name: String! status: String! lastActiveAt: String! model: Model }
  type Model { id: ID! displayName: String! provider: Provider! }
  type Provider { id: ID! name: String! isLocal: Boolean! }
  input CreateTaskInput { circleId: ID! title: String! description: String }
  type TaskPayload { task: Task userErrors: [UserError!]! }
  type Task { id: ID! title: String! status: String! version: Int! }
  type UserError { field: String code: String! message: String! }
`

const statements = {
  agent: `SELECT id, name, status, last_active_at AS "lastActiveAt", model_id AS "modelId"
    FROM agents WHERE id = $1`,
  circle: 'SELECT id, name FROM circles WHERE id = $1',
  circles: 'SELECT id, name FROM circles ORDER BY id DESC LIMIT $1',
  members: `SELECT c.id AS "circleId", m.role, m.joined_at AS "joinedAt", a.id, a.name, a.status,
      a.last_active_at AS "lastActiveAt", a.model_id AS "modelId"
    FROM unnest($1::uuid[]) AS c (id)
      CROSS JOIN LATERAL (SELECT id, agent_id, role, joined_at FROM circle_members
        WHERE circle_id = c.id AND is_active ORDER BY joined_at, id LIMIT $2) AS m
      JOIN agents AS a ON a.id = m.agent_id
    ORDER BY c.id, m.joined_at, m.id`,
  models: `SELECT id, display_name AS "displayName", provider_id AS "providerId"
    FROM models WHERE id = ANY($1::uuid[])`,
  providers: 'SELECT id, name, is_local AS "isLocal" FROM providers WHERE id = ANY($1::uuid[])',
  lock: `SELECT owner_id, project_id, require_review FROM circles
    WHERE id = $1 AND status <> 'ARCHIVED' FOR NO KEY UPDATE`,
  task: `INSERT INTO tasks (id, created_at, updated_at, circle_id, title, description, created_by, requires_review)
    VALUES ($1, $2, $2, $3, $4, $5, $6, $7)`,
  event: `INSERT INTO events (id, type, subject_type, subject_id, owner_id, circle_id, project_id, actor_user_id,
      payload, request_id, occurred_at)
    VALUES ($1, 'task.created', 'task', $2, $3, $4, $5, $3, $6, $7, $8)`,
}

/** Runs a prepared statement. */
export async function query(client, name, ...values) {
  return (await client.query({ name, text: statements[name], values })).rows
}

/** The rows of these ids in their order, as a loader needs them. */
export async function byId(client, name, ids) {
  const rows = new Map()
  for (const row of await query(client, name, [...new Set(ids)])) rows.set(row.id, row)
  return ids.map((id) => rows.get(id) ?? null)
}

/** One page of members for each circle. */
export async function members(client, circles, first) {
  const pages = new Map(circles.map((id) => [id, []]))
  for (const row of await query(client, 'members', [...pages.keys()], first + 1)) pages.get(row.circleId).push(row)
  return circles.map((id) => {
    const rows = pages.get(id)
    const hasNextPage = rows.length > first
    if (hasNextPage) rows.length = first
    return {
      edges: rows.map((row) => ({ membership: row, node: row })),
      pageInfo: { hasNextPage, endCursor: rows.at(-1)?.id ?? null },
    }
  })
}

/** A UUID of version 7: sorted by time, as in the server. */
function newId() {
  const time = Date.now().toString(16).padStart(12, '0')
  return `${time.slice(0, 8)}-${time.slice(8)}-7${randomUUID().slice(15)}`
}

export async function createTask(pool, { circleId, title, description }) {
  if (title.length < 1 || title.length > 500) {
    return { task: null, userErrors: [{ field: 'title', code: 'INVALID', message: 'The title is too short or long.' }] }
  }
  const id = newId()
  const now = new Date().toISOString()
  const client = await pool.connect()
  try {
    await client.query('BEGIN')
    const [circle] = await query(client, 'lock', circleId)
    if (!circle) throw new Error('not found')
    const { owner_id: owner, project_id: project, require_review: review } = circle
    await query(client, 'task', id, now, circleId, title, description, owner, review)
    const payload = { v: 1, title, priority: 'MEDIUM', toStatus: 'PENDING', changed: [], version: 1 }
    await query(client, 'event', newId(), id, owner, circleId, project, payload, newId().replaceAll('-', ''), now)
    await client.query('COMMIT')
  } catch (error) {
    await client.query('ROLLBACK')
    throw error
  } finally {
    client.release()
  }
  return { task: { id, title, status: 'PENDING', version: 1 }, userErrors: [] }
}
