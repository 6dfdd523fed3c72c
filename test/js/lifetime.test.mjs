// Loading and closing again and again, in one thread and in many; ends of the process at bad moments.
import assert from 'node:assert/strict'
import { execFileSync, spawnSync } from 'node:child_process'
import test from 'node:test'
import { Worker } from 'node:worker_threads'
import { root, tiny } from './support.mjs'

const long = Boolean(process.env.LAPIDARY_LONG)

/** MB that a process grows from cycle `from` of load and close to the last. */
function growth(from, cycles, between = '') {
  const script = `
    import { loadModel } from 'lapidary'
    const rss = () => { gc(); return process.memoryUsage.rss() }
    let before
    for (let i = 1; i <= ${cycles}; i++) {
      const model = await loadModel(${JSON.stringify(tiny)}, { device: 'cpu', threads: 1 })
      ${between}
      await model.close()
      if (i === ${from}) before = rss()
    }
    console.log((rss() - before) / 1e6)`
  // --no-opt: V8's optimising compiler takes some 5 MB once, whenever it first runs.
  return Number(execFileSync(process.execPath, ['--expose-gc', '--no-opt', '--input-type=module', '-e', script], { cwd: root, encoding: 'utf8' }))
}

test('loading and closing does not grow the process', { timeout: 600_000 }, () => {
  const grown = growth(50, long ? 1000 : 250)
  assert.ok(grown < 5, `${grown} MB`)
})

test('nor does what happens in between', { timeout: 600_000 }, () => {
  const between = `await model.generate('The whale', { maxTokens: 3 }); await model.logits([[1, 2, 3]]); const c = model.chat(); await c.send('x', { maxTokens: 2 }).result; c.fork()`
  const cycles = long ? 500 : 150
  // The allocator keeps fragments of what closed models held, some tens of MB in all; one vocabulary left behind per cycle would be hundreds.
  const grown = growth(150, 150 + cycles, between)
  assert.ok(grown < 25 + 0.1 * cycles, `${grown} MB in ${cycles} cycles`)
})

test('worker threads load and close, some of them rudely', { timeout: 600_000 }, async () => {
  const count = long ? 50 : 12
  const code = `
    const { parentPort, workerData } = require('node:worker_threads')
    const { loadModel } = require('lapidary')
    loadModel(workerData.tiny, { device: 'cpu', threads: 1 }).then(async (model) => {
      const { text } = await model.generate('The whale', { maxTokens: 8 })
      if (workerData.rude) model.generate('The whale', { ignoreEos: true })
      else await model.close()
      parentPort.postMessage(text)
      if (workerData.rude) process.exit(0)
    })`
  const texts = new Set()
  for (let at = 0; at < count; at += 5) {
    await Promise.all(Array.from({ length: Math.min(5, count - at) }, (_, i) => new Promise((resolve, reject) => {
      const worker = new Worker(code, { eval: true, workerData: { tiny, rude: (at + i) % 3 === 2 } })
      worker.on('message', (text) => texts.add(text))
      worker.on('error', reject)
      worker.on('exit', resolve)
    })))
  }
  assert.equal(texts.size, 1)
})

for (const [name, code] of Object.entries({
  'with a model open': 'await loadModel(tiny)',
  'during a load': 'loadModel(tiny)',
  'during a run': "const m = await loadModel(tiny); m.generate('The', { ignoreEos: true }); await new Promise((r) => setTimeout(r, 30)); process.exit(0)",
  'inside a token callback': "const m = await loadModel(tiny); m.generate('The', { ignoreEos: true, onToken: () => process.exit(0) })",
  'with a chat open': "const m = await loadModel(tiny); const c = m.chat(); await c.send('x', { maxTokens: 2 }).result",
  'with large results alive': "const m = await loadModel(tiny); globalThis.kept = await m.logits(Array.from({ length: 8 }, () => Array(256).fill(5))); await m.close()",
  'while scores are computed': 'const m = await loadModel(tiny); m.logits([Array(2000).fill(5)]); setTimeout(() => process.exit(0), 20)',
})) {
  test(`the process ends by itself, without a crash: ${name}`, () => {
    const script = `import { loadModel } from 'lapidary'; const tiny = ${JSON.stringify(tiny)}; ${code}`
    const { status, signal, stderr } = spawnSync(process.execPath, ['--input-type=module', '-e', script], { cwd: root, encoding: 'utf8', timeout: 60_000 })
    assert.deepEqual({ status, signal }, { status: 0, signal: null }, stderr)
  })
}
