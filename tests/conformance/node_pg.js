// The npm driver `pg` over its features: run by suites/node_pg.py, writes {test: [status, why]}.
'use strict'
const assert = require('assert')
const fs = require('fs')
const { pipeline } = require('stream/promises')
const { Readable } = require('stream')
const pg = require('pg')
const Cursor = require('pg-cursor')
const QueryStream = require('pg-query-stream')
const copy = require('pg-copy-streams')

const PATIENCE_MS = 30_000

async function connected(work, options) {
  const client = new pg.Client(options)
  client.on('error', () => {})
  await client.connect()
  try { return await work(client) } finally { await client.end() }
}

async function fails(promise, code) {
  await assert.rejects(promise, (error) => { assert.strictEqual(error.code, code); return true })
}

const tests = {
  'simple query': () => connected(async (c) => {
    const r = await c.query("SELECT 1 AS one, 'zwei' AS two, NULL AS three")
    assert.deepStrictEqual(r.rows, [{ one: 1, two: 'zwei', three: null }])
    assert.strictEqual(r.command, 'SELECT')
  }),
  'several statements': () => connected(async (c) => {
    const r = await c.query('SELECT 1 AS a; SELECT 2 AS b; SELECT 3 AS c')
    assert.deepStrictEqual(r.map((x) => x.rows[0]), [{ a: 1 }, { b: 2 }, { c: 3 }])
  }),
  'parameters and types': () => connected(async (c) => {
    const r = await c.query(
      'SELECT $1::int4 AS i, $2::text AS t, $3::bool AS b, $4::jsonb AS j, $5::text[] AS a, $6::timestamptz AS w, $7::bytea AS y, $8::int8 AS big',
      [7, 'ü', true, { x: [1] }, ['p', null, 'q"'], new Date(0), Buffer.from([0, 255]), '9007199254740993'])
    assert.deepStrictEqual(r.rows[0], { i: 7, t: 'ü', b: true, j: { x: [1] }, a: ['p', null, 'q"'], w: new Date(0), y: Buffer.from([0, 255]), big: '9007199254740993' })
  }),
  'binary results': () => connected(async (c) => {
    const r = await c.query({ text: 'SELECT $1::int4 AS i, $2::text AS t', values: [7, 'x'], binary: true })
    assert.deepStrictEqual(r.rows, [{ i: 7, t: 'x' }])
  }),
  'named statements': () => connected(async (c) => {
    for (let n = 0; n < 5; n++) {
      const r = await c.query({ name: 'twice', text: 'SELECT $1::int * 2 AS n', values: [n] })
      assert.strictEqual(r.rows[0].n, 2 * n)
    }
    await assert.rejects(c.query({ name: 'twice', text: 'SELECT 1' }), /Prepared statements must be unique/)
  }),
  'named statements of many clients': async () => {
    const pool = new pg.Pool({ max: 12 })
    await Promise.all(Array.from({ length: 200 }, async (_, n) => {
      const r = await pool.query({ name: `s${n % 7}`, text: `SELECT $1::int + ${n % 7} AS n`, values: [n] })
      assert.strictEqual(r.rows[0].n, n + n % 7)
    }))
    await pool.end()
  },
  'row mode array': () => connected(async (c) => {
    const r = await c.query({ text: 'SELECT 1, 2', rowMode: 'array' })
    assert.deepStrictEqual(r.rows, [[1, 2]])
  }),
  'errors keep the connection': () => connected(async (c) => {
    await fails(c.query('SELECT nothing'), '42703')
    await fails(c.query('SELECT $1::int', ['x']), '22P02')
    await fails(c.query('SELEC'), '42601')
    assert.strictEqual((await c.query('SELECT 1 AS one')).rows[0].one, 1)
  }),
  'queued queries': () => connected(async (c) => {
    const all = await Promise.all(Array.from({ length: 100 }, (_, n) => c.query('SELECT $1::int AS n', [n])))
    assert.deepStrictEqual(all.map((r) => r.rows[0].n), Array.from({ length: 100 }, (_, n) => n))
  }),
  'transactions': () => connected(async (c) => {
    await c.query('CREATE TABLE node_tx (n int)')
    await c.query('BEGIN'); await c.query('INSERT INTO node_tx VALUES (1)'); await c.query('ROLLBACK')
    await c.query('BEGIN'); await c.query('INSERT INTO node_tx VALUES ($1)', [2])
    await c.query('SAVEPOINT s'); await fails(c.query('SELECT 1/0'), '22012')
    await fails(c.query('SELECT 1'), '25P02')
    await c.query('ROLLBACK TO s'); await c.query('COMMIT')
    assert.deepStrictEqual((await c.query('TABLE node_tx')).rows, [{ n: 2 }])
    await c.query('DROP TABLE node_tx')
  }),
  'cursor': () => connected(async (c) => {
    await c.query('BEGIN')
    const cursor = c.query(new Cursor('SELECT n FROM generate_series(1, $1::int) n', [250]))
    let seen = 0
    for (let rows; (rows = await cursor.read(100)).length;) seen += rows.length
    await cursor.close(); await c.query('COMMIT')
    assert.strictEqual(seen, 250)
  }),
  'cursor closed early': () => connected(async (c) => {
    const cursor = c.query(new Cursor('SELECT n FROM generate_series(1, 1000) n'))
    assert.strictEqual((await cursor.read(3)).length, 3)
    await cursor.close()
    assert.strictEqual((await c.query('SELECT 1 AS one')).rows[0].one, 1)
  }),
  'query stream': () => connected(async (c) => {
    let sum = 0
    for await (const row of c.query(new QueryStream('SELECT n FROM generate_series(1, 5000) n', [], { batchSize: 64 }))) sum += row.n
    assert.strictEqual(sum, 12_502_500)
  }),
  'copy in and out': () => connected(async (c) => {
    await c.query('CREATE TABLE node_copy (n int, t text)')
    const lines = Array.from({ length: 10_000 }, (_, n) => `${n}\trow ${n}\n`)
    await pipeline(Readable.from(lines), c.query(copy.from('COPY node_copy FROM STDIN')))
    let bytes = ''
    for await (const chunk of c.query(copy.to('COPY (SELECT * FROM node_copy ORDER BY n) TO STDOUT'))) bytes += chunk
    assert.strictEqual(bytes, lines.join(''))
    await assert.rejects(pipeline(Readable.from(['x\ty\n']), c.query(copy.from('COPY node_copy FROM STDIN'))))
    assert.strictEqual((await c.query('SELECT count(*)::int AS n FROM node_copy')).rows[0].n, 10_000)
    await c.query('DROP TABLE node_copy')
  }),
  'listen and notify': () => connected(async (c) => {
    const heard = new Promise((resolve) => c.on('notification', resolve))
    await c.query('LISTEN beds')
    await connected((other) => other.query("SELECT pg_notify('beds', 'free')"))
    const message = await heard
    assert.deepStrictEqual([message.channel, message.payload], ['beds', 'free'])
  }),
  'notices': () => connected(async (c) => {
    const said = new Promise((resolve) => c.on('notice', resolve))
    await c.query("DO $$ BEGIN RAISE NOTICE 'hello'; END $$")
    assert.strictEqual((await said).message, 'hello')
  }),
  'temporary tables': () => connected(async (c) => {
    await c.query('CREATE TEMP TABLE own (n int)')
    await c.query('INSERT INTO own VALUES (1)')
    assert.strictEqual((await c.query('SELECT n FROM own')).rows[0].n, 1)
  }),
  'startup settings': () => connected(async (c) => {
    const r = await c.query("SELECT current_setting('application_name') AS a, current_setting('statement_timeout') AS s, current_setting('work_mem') AS w")
    assert.deepStrictEqual(r.rows[0], { a: 'ward', s: '1234ms', w: '9MB' })
  }, { application_name: 'ward', statement_timeout: 1234, options: '-c work_mem=9MB' }),
  'statement timeout': () => connected((c) => fails(c.query('SELECT pg_sleep(5)'), '57014'), { statement_timeout: 100 }),
  'settings follow the client': async () => {
    const clients = await Promise.all(Array.from({ length: 8 }, async () => { const c = new pg.Client(); await c.connect(); return c }))
    await Promise.all(clients.map((c, n) => c.query(`SET app.number = '${n}'`)))
    for (let round = 0; round < 5; round++) {
      const seen = await Promise.all(clients.map((c) => c.query("SELECT current_setting('app.number') AS n")))
      assert.deepStrictEqual(seen.map((r) => r.rows[0].n), clients.map((_, n) => String(n)))
    }
    await Promise.all(clients.map((c) => c.end()))
  },
  'pool with more clients than it has': async () => {
    const pool = new pg.Pool({ max: 20 })
    const all = await Promise.all(Array.from({ length: 300 }, (_, n) => pool.query('SELECT $1::int AS n, pg_sleep(0.002)', [n])))
    assert.strictEqual(all.reduce((sum, r) => sum + r.rows[0].n, 0), 44_850)
    await pool.end()
  },
  'unknown database': () => fails(connected(() => {}, { database: 'nowhere' }), '3D000'),
  'backend is terminated': async () => {
    const c = new pg.Client()
    await c.connect()
    const lost = new Promise((resolve) => c.on('error', resolve))
    const { rows } = await c.query('SELECT pg_backend_pid() AS pid')
    await connected((other) => other.query('SELECT pg_terminate_backend($1)', [rows[0].pid]))
    // Told at once, or at the next query; then the pool that owned it would take another.
    await Promise.race([lost, c.query('SELECT 1').catch((error) => error), new Promise((r) => setTimeout(r, 2000))])
    await c.end().catch(() => {})
    await connected((other) => other.query('SELECT 1'))
  },
  'wide rows': () => connected(async (c) => {
    const r = await c.query("SELECT repeat('x', 20000000) AS x")
    assert.strictEqual(r.rows[0].x.length, 20_000_000)
    const sent = await c.query('SELECT length($1::text) AS n', ['y'.repeat(10_000_000)])
    assert.strictEqual(sent.rows[0].n, 10_000_000)
  }),
  'empty query': () => connected(async (c) => {
    assert.deepStrictEqual((await c.query('')).rows, [])
    assert.deepStrictEqual((await c.query({ text: '', values: [] })).rows, [])
  }),
}

async function main() {
  const outcomes = {}
  for (const [name, test] of Object.entries(tests)) {
    let timer
    const late = new Promise((_, reject) => { timer = setTimeout(() => reject(new Error('it hangs')), PATIENCE_MS) })
    try {
      await Promise.race([test(), late])
      outcomes[name] = ['pass', '']
    } catch (error) {
      outcomes[name] = ['fail', `${error.code || ''} ${error.message}`]
    }
    clearTimeout(timer)
  }
  fs.writeFileSync(process.argv[2], JSON.stringify(outcomes))
  process.exit(0)
}
main()
