// Compares the `data` of two answers: `node check.js EXPECTED ACTUAL`
//
// Each server has its own form of ids, times, cursors and memberships; the values have to be the same.

import { deepStrictEqual } from 'node:assert'
import { readFileSync } from 'node:fs'

const ALPHABET = '0123456789abcdefghjkmnpqrstvwxyz'

function uuid(digits) {
  const bits = [...digits].reduce((bits, digit) => bits * 32n + BigInt(ALPHABET.indexOf(digit)), 0n)
  return bits.toString(16).padStart(32, '0').replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-')
}

function normalize(value) {
  if (typeof value === 'string') {
    const id = /^[a-z]+_([0-9a-hjkmnp-tv-z]{26})$/.exec(value)
    if (id) return uuid(id[1])
    return /^\d{4}-\d\d-\d\dT/.test(value) ? new Date(value).toISOString() : value
  }
  if (Array.isArray(value)) return value.map(normalize)
  if (value === null || typeof value !== 'object') return value
  const { endCursor, userErrors, ...fields } = value
  if (userErrors?.length) throw new Error(JSON.stringify(userErrors))
  if (fields.createTask) fields.createTask.task.id = 'new'
  // PostGraphile has the membership as the node of the edge.
  if (fields.node?.agent) {
    const { agent, ...membership } = fields.node
    return normalize({ membership, node: agent })
  }
  return Object.fromEntries(Object.entries(fields).map(([name, field]) => [name, normalize(field)]))
}

const [expected, actual] = process.argv.slice(2).map((path) => {
  const { data, errors } = JSON.parse(readFileSync(path, 'utf8'))
  if (errors || !data) throw new Error(`${path}: ${JSON.stringify(errors)}`)
  return normalize(data)
})
deepStrictEqual(actual, expected)
