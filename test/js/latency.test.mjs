// The JavaScript thread stays free: delays of the event loop during load, prefill and decode, in a process of its own.
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import path from 'node:path'
import test from 'node:test'
import { fileURLToPath } from 'node:url'

test('the event loop is never held up for 5 ms', () => {
  const script = path.join(path.dirname(fileURLToPath(import.meta.url)), 'event-loop.mjs')
  // A machine busy with other work delays every process now and then: the best of three is the library's own.
  let best = { max: Infinity }
  for (let i = 0; i < 3 && best.max >= 5; i++) {
    const seen = JSON.parse(execFileSync(process.execPath, [script, 'measure'], { encoding: 'utf8' }))
    if (seen.max < best.max) best = seen
  }
  assert.ok(best.max < 5, JSON.stringify(best))
})
