// The JavaScript thread stays free: delays of the event loop during load, prefill and decode, in a process of its own.
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import path from 'node:path'
import test from 'node:test'
import { fileURLToPath } from 'node:url'

test('the event loop is never held up for 5 ms', (t) => {
  const script = path.join(path.dirname(fileURLToPath(import.meta.url)), 'event-loop.mjs')
  // A busy machine delays every process now and then: the best of a few runs is the library's own share.
  const best = {}
  const held = () => Object.entries(best).filter(([phase, ms]) => phase !== 'idle' && !(ms < 5))
  for (let i = 0; i < 6 && (i === 0 || held().length > 0); i++) {
    const seen = JSON.parse(execFileSync(process.execPath, [script, 'measure'], { encoding: 'utf8' }))
    for (const [phase, ms] of Object.entries(seen)) best[phase] = Math.min(best[phase] ?? Infinity, ms)
  }
  if (held().length > 0 && best.idle >= 5) return t.skip(`this machine is too busy: it held up even an idle process, by ${best.idle} ms`)
  assert.deepEqual(held(), [], JSON.stringify(best))
})
