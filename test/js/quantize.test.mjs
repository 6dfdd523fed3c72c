// model.quantize and `lapidary quantize`: what is saved is what was measured, and nothing is written that would ruin the model.
import assert from 'node:assert/strict'
import fs from 'node:fs'
import path from 'node:path'
import test, { after, before } from 'node:test'
import { inspect, loadModel } from 'lapidary'
import { assertSameBits, failsWith, golden, program, readSafetensors, temporaryFolder, testDevice, tiny } from './support.mjs'

const file = golden('gemma3-small/validation.txt')
const load = { device: testDevice, precision: 'f32' }
let model, text
before(async () => {
  model = await loadModel(tiny, load)
  text = fs.readFileSync(file, 'utf8')
})
after(() => model.close())

test('static scales and smoothing: saved and loaded again, the result gives the same logits, near those of the original', async (t) => {
  const folder = path.join(temporaryFolder(t), 'out'), seen = []
  const quantized = await model.quantize({ activations: 'static', smooth: 0.5, calibration: [text.slice(0, 4000), text.slice(4000, 6000)], onProgress: (p) => seen.push(p) })
  const { report } = quantized
  assert.deepEqual([report.scheme, report.weights, report.activations, report.smooth, report.embedding, report.cushion], ['w8a8', 'channel', 'static', 0.5, false, null])
  assert.ok(report.calibrationTokens > 1000)
  assert.equal(report.sites.length, 6 * 4)
  for (const { max, clip, scale } of report.sites) {
    assert.ok(clip >= 0.5 && clip <= 1)
    assert.ok(Math.abs(scale - (clip * max) / 127) <= 1e-6 * scale)
  }
  assert.deepEqual([...new Set(seen.map((p) => p.phase))], ['calibration', 'loading'])
  for (const { done, total, rate, secondsLeft } of seen) assert.ok(done <= total && rate >= 0 && secondsLeft >= 0)
  assert.equal(seen.filter((p) => p.phase === 'calibration').at(-1).secondsLeft, 0)

  const { meanKl, agreement } = await quantized.model.divergence(model, [text.slice(6000, 12000)])
  assert.ok(meanKl > 0 && meanKl < 0.02, `KL ${meanKl}`)
  assert.ok(agreement > 0.9, `agreement ${agreement}`)
  await quantized.save(folder)
  const back = await loadModel(folder, load)
  const ids = model.tokenizer.encode(text.slice(0, 300))
  const [[wanted], [got]] = await Promise.all([quantized.model.logits([ids]), back.logits([ids])])
  assertSameBits(got, wanted, 'logits')
  assert.equal(back.tokenizer.decode(ids), model.tokenizer.decode(ids))
  assert.match(back.info.notes.join(), /calibrated scales/)
  await Promise.all([back.close(), quantized.model.close()])
})

test('a prefix stands before every text, and its scales belong to it', async (t) => {
  const folder = path.join(temporaryFolder(t), 'out')
  const quantized = await model.quantize({ activations: 'static', calibration: [text.slice(0, 2000)], prefix: [model.info.bosId, 5], load: false })
  assert.throws(() => quantized.model, failsWith('disposed', /await load/))
  await quantized.save(folder)
  assert.match(quantized.report.cushion, /^[0-9a-f]{16}$/)
  assert.equal(JSON.parse(fs.readFileSync(path.join(folder, 'config.json'), 'utf8')).lapidary.cushion, quantized.report.cushion)
  const [loaded, back] = await Promise.all([quantized.load(), loadModel(folder, load)])
  assert.equal(await quantized.load(), loaded)
  const [[a], [b]] = await Promise.all([loaded.logits([[7, 8, 9]]), back.logits([[7, 8, 9]])])
  assertSameBits(a, b, 'logits')
  await Promise.all([loaded.close(), back.close()])
  // A cushion of its own file is what was saved.
  const again = await model.quantize({ activations: 'static', calibration: [text.slice(0, 2000)], prefix: path.join(folder, 'cushion.safetensors'), load: false })
  assert.deepEqual(again.report.sites, quantized.report.sites)
  fs.rmSync(path.join(folder, 'cushion.safetensors'))
  await assert.rejects(loadModel(folder, load), failsWith('bad_file', /cushion\.safetensors is not beside it/))
})

test('per-tensor dynamic inputs are measured, saved and loaded again', async (t) => {
  const folder = path.join(temporaryFolder(t), 'out')
  if (testDevice === 'cuda') return assert.rejects(model.quantize({ activations: 'tensor' }), failsWith('unsupported', /load the model with device 'cpu'/))
  const quantized = await model.quantize({ weights: 'tensor', activations: 'tensor' })
  assert.deepEqual([quantized.report.weights, quantized.report.activations, quantized.report.sites], ['tensor', 'tensor', []])
  const [{ meanKl }, { perplexity }] = await Promise.all([quantized.model.divergence(model, [text.slice(0, 6000)]), quantized.model.perplexity([text.slice(0, 6000)])])
  assert.ok(meanKl > 1e-4 && meanKl < 0.1 && perplexity > 1, `KL ${meanKl}, perplexity ${perplexity}`)
  await quantized.save(folder)
  const back = await loadModel(folder, load), ids = model.tokenizer.encode(text.slice(0, 300)), other = [...ids].reverse()
  const [[wanted], [got, ...rest], [alone]] = await Promise.all([quantized.model.logits([ids]), back.logits([ids, other]), back.logits([other])])
  assertSameBits(got, wanted, 'logits')
  assertSameBits(rest[0], alone, 'logits in company')
  const { stdout, stderr, code } = await program(['eval', folder, '--text', file, '--against', tiny, '--max-tokens', '1000', '--device', testDevice, '--json'])
  assert.equal(code, 0, stderr)
  assert.ok(JSON.parse(stdout).text.divergence.meanKl > 1e-4, stdout)
  await Promise.all([quantized.model.close(), back.close()])
})

test('what does not fit is refused', async (t) => {
  const folder = temporaryFolder(t)
  for (const [options, pattern] of [
    [{ activations: 'row' }, /activations must be/],
    [{ activations: 'static' }, /needs calibration texts/],
    [{ smooth: 0.5 }, /smooth needs calibration texts/],
    [{ smooth: 1.5, calibration: ['x'] }, /smooth must be a finite number/],
    [{ scheme: 'w8', activations: 'token' }, /does not go with/],
    [{ scheme: 'w8', smooth: 0.5 }, /of no use/],
    [{ clip: 'mse' }, /clip is for activations 'static'/],
    [{ weight: 'channel' }, /unknown option "weight"; did you mean "weights"/],
    [{ activations: 'static', calibration: [''] }, /calibration texts are needed/],
    [{ activations: 'static', calibration: '/no/such/file' }, /calibration: ENOENT/],
    [{ activations: 'static', calibration: ['x'], prefix: [1e9] }, /prefix\[0\] must be a token id/],
  ]) {
    await assert.rejects(model.quantize(options), failsWith('invalid_argument', pattern), JSON.stringify(options))
  }
  const quantized = await model.quantize({ scheme: 'w8', load: false })
  fs.writeFileSync(path.join(folder, 'x'), '')
  await assert.rejects(quantized.save(folder), failsWith('invalid_argument', /is there already/))
  await quantized.save(path.join(folder, 'w8'))
  const small = await loadModel(path.join(folder, 'w8'), load)
  await assert.rejects(small.quantize(), failsWith('unsupported', /is quantised already/))
  await small.close()
})

test('aborting and throwing callbacks leave nothing', async (t) => {
  const folder = temporaryFolder(t), out = path.join(folder, 'out'), reason = new Error('enough')
  const stop = new AbortController()
  const onProgress = () => stop.abort(reason)
  await assert.rejects(model.quantize({ activations: 'static', calibration: [text.slice(0, 20000)], window: 64, signal: stop.signal, onProgress }), reason)
  await assert.rejects(model.quantize({ signal: stop.signal }), reason)
  const quantized = await model.quantize({ load: false })
  await assert.rejects(quantized.save(out, { signal: stop.signal }), reason)
  await assert.rejects(quantized.save(out, { onProgress() { throw reason } }), reason)
  assert.deepEqual(fs.readdirSync(folder), [])
})

test('lapidary quantize writes what it has verified', async (t) => {
  const folder = path.join(temporaryFolder(t), 'out')
  const flags = ['--activations', 'static', '--calibration', file, '--verify', '--max-tokens', '2000', '--device', testDevice]
  const { stdout, stderr, code } = await program(['quantize', tiny, '--out', folder, ...flags, '--json'])
  assert.equal(code, 0, stderr)
  assert.equal(stderr, '')
  const { out, report, divergence } = JSON.parse(stdout)
  assert.equal(out, folder)
  assert.equal(report.activations, 'static')
  assert.ok(divergence.meanKl < 0.05 && divergence.tokens === 2000, stdout)
  assert.match((await inspect(folder)).info.notes.join(), /int8 weights/)
  for (const args of [['quantize', tiny], ['quantize', tiny, '--out', folder, '--verify'], ['quantize', tiny, '--out', folder, '--max-kl', '1']]) {
    assert.equal((await program(args)).code, 2, args.join(' '))
  }
  const again = await program(['quantize', tiny, '--out', folder])
  assert.equal(again.code, 1)
  assert.match(again.stderr, /is there already/)
})

/** The same function with one huge row: up_proj's rows times 2^k, down_proj's columns over it. */
function withHugeRow(folder) {
  const from = path.join(tiny, 'model.safetensors'), bytes = fs.readFileSync(from)
  const headerBytes = Number(bytes.readBigUInt64LE(0)), header = JSON.parse(bytes.subarray(8, 8 + headerBytes).toString())
  const shift = (name, index, power) => {
    const at = 8 + headerBytes + header[name].data_offsets[0] + 2 * index
    const half = bytes.readUInt16LE(at)
    if (half & 0x7f80) bytes.writeUInt16LE(half + power * 0x80, at)
  }
  for (let layer = 0; layer < 6; layer++) {
    const up = `model.layers.${layer}.mlp.up_proj.weight`, down = `model.layers.${layer}.mlp.down_proj.weight`
    const [ffn, hidden] = header[up].shape
    for (let i = 0; i < hidden; i++) {
      shift(up, 3 * hidden + i, 10)
      shift(down, i * ffn + 3, -10)
    }
  }
  fs.cpSync(tiny, folder, { recursive: true })
  fs.writeFileSync(path.join(folder, 'model.safetensors'), bytes)
}

test('lapidary quantize refuses to write a ruined model', async (t) => {
  const folder = temporaryFolder(t), source = path.join(folder, 'huge'), out = path.join(folder, 'out')
  withHugeRow(source)
  const flags = ['--activations', 'none', '--verify', '--text', file, '--max-tokens', '1000', '--precision', 'f32', '--device', testDevice]
  const { stdout, stderr, code } = await program(['quantize', source, '--out', out, '--weights', 'tensor', ...flags])
  assert.equal(code, 1, stdout)
  assert.match(stdout, /over 1000 tokens: KL \d+\.\d+ nats/)
  assert.match(stderr, /not written: a mean KL above 0\.05/)
  assert.ok(!fs.existsSync(out))
  const fine = await program(['quantize', source, '--out', out, ...flags])
  assert.equal(fine.code, 0, fine.stderr)
  assert.ok(readSafetensors(path.join(out, 'model.safetensors'))['model.layers.0.mlp.up_proj.weight_scale'].shape[0] > 1)
})
