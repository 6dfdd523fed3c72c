// model.searchCushion, tuneCushion and `lapidary cushion`: from texts to a file that quantising takes.
import assert from 'node:assert/strict'
import fs from 'node:fs'
import path from 'node:path'
import test, { after, before } from 'node:test'
import { loadModel } from 'lapidary'
import { failsWith, golden, program, temporaryFolder, tiny } from './support.mjs'

const file = golden('gemma3-small/validation.txt')
const candidates = Array.from({ length: 40 }, (_, i) => 100 + i)
const stages = [{ tokens: 16, texts: 1, layers: 2, keep: 8 }]
let model, texts
before(async () => {
  model = await loadModel(tiny, { device: 'cpu', precision: 'f32' })
  texts = [fs.readFileSync(file, 'utf8').slice(0, 4000)]
})
after(() => model.close())

const search = (options) => model.searchCushion({ texts, textTokens: 48, textsPerToken: 3, heldOut: 3, maxTokens: 2, candidates, stages, ...options })

test('search, tuning, saving, and quantising with the result', async (t) => {
  const folder = temporaryFolder(t), out = path.join(folder, 'cushion.safetensors'), seen = []
  const found = await search({ rivals: 3, state: path.join(folder, 'state.json'), onProgress: (p) => seen.push(p) })
  assert.equal(found.tokens[0], model.info.bosId)
  assert.equal(found.window, 'pinned')
  const { search: report, rivals } = found.report
  assert.equal(report.sites.length, 6 * 4)
  assert.equal(report.steps[0].tried, 40)
  const sum = (key) => report.sites.reduce((all, site) => all + site[key], 0)
  assert.ok(sum('found') <= sum('init') && sum('init') > 0)
  assert.ok(Math.abs(rivals.bos - sum('init')) <= 1e-9 * rivals.bos && rivals.random.errors.length === 3)
  assert.ok(seen.length > 0 && seen.every(({ done, total }) => done <= total))

  const tuned = await model.tuneCushion(found, { texts, textTokens: 48, steps: 2, every: 1, heldOut: 2, batch: 2, learningRate: 0.01 })
  assert.deepEqual(tuned.tokens, found.tokens)
  assert.equal(tuned.report.tuning.measured.length, 3)
  await tuned.save(out)
  const read = await model.readCushion(out)
  assert.equal(read.fingerprint, tuned.fingerprint)
  const small = await model.quantize({ activations: 'static', calibration: texts, prefix: out, load: false })
  assert.equal(small.report.cushion, tuned.fingerprint)
})

test('quantize finds, trains and calibrates with a cushion in one call', async (t) => {
  const folder = path.join(temporaryFolder(t), 'out'), seen = []
  const search = { textTokens: 48, textsPerToken: 3, heldOut: 3, maxTokens: 2, candidates, stages }, tune = { textTokens: 48, steps: 2, every: 1, heldOut: 2, batch: 2, learningRate: 0.01 }
  const wanted = { activations: 'static', calibration: texts, load: false }
  const small = await model.quantize({ ...wanted, cushion: { search, tune }, onProgress: (p) => seen.push(p) })
  assert.deepEqual([...new Set(seen.map((p) => p.phase))], ['search', 'tuning', 'calibration'])
  for (const { done, total, rate, secondsLeft } of seen) assert.ok(done <= total && rate >= 0 && secondsLeft >= 0)
  const { search: found, tuning } = small.report.cushionReport
  assert.equal(tuning.measured.length, 3)
  // The same as the three calls one after another.
  const first = await model.searchCushion({ texts, ...search }), second = await model.tuneCushion(first, { texts, ...tune })
  assert.deepEqual(found.tokens, first.tokens)
  assert.equal(small.report.cushion, second.fingerprint)
  const apart = await model.quantize({ ...wanted, prefix: second }), alone = await model.quantize({ ...wanted, prefix: first, cushion: { tune: { texts, ...tune } } })
  assert.deepEqual(apart.report.sites, small.report.sites)
  assert.deepEqual([alone.report.cushion, alone.report.sites, apart.report.cushionReport], [second.fingerprint, small.report.sites, null])
  await small.save(folder)
  assert.equal((await model.readCushion(path.join(folder, 'cushion.safetensors'))).fingerprint, second.fingerprint)
  // No token lowers the error a thousandfold.
  const none = await model.quantize({ ...wanted, cushion: { search: { ...search, init: [], tau: 1e-3 }, tune } })
  assert.deepEqual([none.report.cushion, none.report.cushionReport.search.tokens, none.report.cushionReport.tuning], [null, [], undefined])
})

test('a cushion in one call can be stopped in each phase, and its options are checked', async () => {
  const search = { textTokens: 48, textsPerToken: 2, heldOut: 2, maxTokens: 2, candidates: candidates.slice(0, 8), stages }, tune = { textTokens: 48, steps: 2, every: 1, heldOut: 2, batch: 1 }
  for (const wanted of ['search', 'tuning', 'calibration']) {
    const stop = new AbortController(), reason = new Error(`in ${wanted}`)
    const onProgress = ({ phase }) => phase === wanted && stop.abort(reason)
    await assert.rejects(model.quantize({ activations: 'static', calibration: texts, cushion: { search, tune }, load: false, signal: stop.signal, onProgress }), reason)
  }
  for (const [options, pattern] of [
    [{ cushion: {} }, /search or tune is needed/],
    [{ cushion: { search: true } }, /cushion.search needs texts, or calibration texts/],
    [{ cushion: { search: { texts } }, prefix: [2] }, /leave one of them out/],
    [{ cushion: { tune: { texts } } }, /needs a cushion to begin with, as prefix/],
    [{ cushion: { search: { texts, taus: 1 } } }, /cushion: search: unknown option "taus"; did you mean "tau"/],
    [{ cushion: { tune: { onProgress: () => {} } } }, /unknown option "onProgress"/],
  ]) {
    await assert.rejects(model.quantize(options), failsWith('invalid_argument', pattern), JSON.stringify(options))
  }
})

test('a search stops when told, and options are checked', async () => {
  await assert.rejects(search({ signal: AbortSignal.abort(new Error('enough')) }), /enough/)
  await assert.rejects(search({ onProgress: () => { throw new Error('told') } }), /told/)
  await assert.rejects(() => model.searchCushion({}), failsWith('invalid_argument', /texts are needed/))
  await assert.rejects(() => search({ init: [99999] }), failsWith('invalid_argument', /init/))
  await assert.rejects(() => search({ stages: [{ tokens: 0 }] }), failsWith('invalid_argument', /stages/))
  await assert.rejects(() => search({ maxTokens: 1000 }), failsWith('invalid_argument', /max_tokens/))
  await assert.rejects(() => model.tuneCushion(7, { texts }), failsWith('invalid_argument', /cushion must be/))
})

test('lapidary cushion tune and show', async (t) => {
  const folder = temporaryFolder(t), first = path.join(folder, 'a.safetensors'), second = path.join(folder, 'b.safetensors')
  await (await search({})).save(first)
  const text = path.join(folder, 'text.txt')
  fs.writeFileSync(text, texts[0])
  const flags = ['--cushion', first, '--device', 'cpu']
  const tuned = await program(['cushion', 'tune', tiny, ...flags, '--text', text, '--text-tokens', '48', '--held-out', '2', '--steps', '1', '--out', second, '--json'])
  assert.equal(tuned.code, 0, tuned.stderr)
  assert.equal(JSON.parse(tuned.stdout).out, second)
  const shown = await program(['cushion', 'show', tiny, '--cushion', second, '--device', 'cpu'])
  assert.match(shown.stdout, /pinned.*<bos>/)
  assert.equal((await program(['cushion', 'look', tiny])).code, 2)
})

test('lapidary quantize trains the cushion that it calibrates with', async (t) => {
  const folder = temporaryFolder(t), first = path.join(folder, 'a.safetensors'), text = path.join(folder, 'text.txt'), out = path.join(folder, 'out')
  await (await search({})).save(first)
  fs.writeFileSync(text, texts[0])
  const flags = ['quantize', tiny, '--out', out, '--activations', 'static', '--calibration', text, '--device', 'cpu']
  const { code, stdout, stderr } = await program([...flags, '--prefix', first, '--cushion-tune', '--cushion-steps', '1', '--cushion-text-tokens', '48', '--cushion-held-out', '2'])
  assert.equal(code, 0, stderr)
  assert.match(stdout, /cushion trained: cross-entropy through int8 inputs \d+\.\d+ -> \d+\.\d+ nats\n/)
  assert.ok(fs.existsSync(path.join(out, 'cushion.safetensors')))
  for (const more of [['--cushion-steps', '1'], ['--cushion-tune', '--cushion-tau', '0.3'], ['--cushion-state', 'x']]) {
    assert.equal((await program([...flags, ...more])).code, 2, more.join(' '))
  }
  assert.match((await program([...flags, '--cushion-search', '--prefix', first])).stderr, /leave one of them out/)
})
