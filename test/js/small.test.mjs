// The embedded model against the reference implementation: greedy text, logits, scores of held-out windows.
import assert from 'node:assert/strict'
import test, { after, before } from 'node:test'
import { loadModel } from 'lapidary'
import { assertClose, golden, logSumExp, meanKl, readJson, readSafetensors, testDevice, tiny } from './support.mjs'

const expected = readSafetensors(golden('gemma3-small/expected.safetensors'))
const { samples } = readJson(golden('gemma3-small/expected.json'))
let model
before(async () => {
  model = await loadModel(tiny, { device: testDevice, precision: 'f32' })
})
after(() => model.close())

test('greedy text', async () => {
  const results = await Promise.all(samples.map(({ prompt }) => model.generate(prompt, { maxTokens: 200, temperature: 0, ignoreEos: true })))
  for (const [i, { text, tokens, usage }] of results.entries()) {
    assert.deepEqual(tokens, [...expected[`text${i}.greedy`].data], samples[i].prompt)
    assert.equal(text, samples[i].greedy)
    assert.equal(usage.promptTokens, expected[`text${i}.prompt`].data.length)
    assert.equal(usage.generatedTokens, 200)
  }
})

test('prompts as text begin with BOS once', () => {
  for (const [i, { prompt }] of samples.entries()) assert.deepEqual([2, ...model.tokenizer.encode(prompt)], [...expected[`text${i}.prompt`].data])
})

test('logits in f32 and bf16', async (t) => {
  const half = await loadModel(tiny, { device: testDevice, precision: 'bf16' })
  t.after(() => half.close())
  const vocab = model.info.vocab
  for (let i = 0; i < samples.length; i++) {
    const ids = [expected[`text${i}.ids`].data]
    const truth = expected[`text${i}.last8_logits_f32`].data
    const [exact] = await model.logits(ids), [rounded] = await half.logits(ids)
    assertClose(exact.subarray(-8 * vocab), truth, 1e-4, `text ${i}`)
    const ours = meanKl(truth, rounded.subarray(-8 * vocab), vocab), theirs = meanKl(truth, expected[`text${i}.last8_logits_bf16`].data, vocab)
    assert.ok(ours <= 1.5 * theirs + 1e-6, `text ${i}: KL ${ours}, the reference's own ${theirs}`)
  }
})

test('summed nats of 64 windows', async () => {
  const { data, shape: [count, width] } = expected['perplexity.windows']
  for (let first = 0; first < count; first += 8) {
    const windows = Array.from({ length: 8 }, (_, i) => data.subarray((first + i) * width, (first + i + 1) * width))
    const logits = await model.logits(windows.map((window) => window.subarray(0, -1)))
    for (const [i, window] of windows.entries()) {
      let nats = 0
      for (let at = 0; at + 1 < width; at++) {
        const row = logits[i].subarray(at * 4096, (at + 1) * 4096)
        nats += logSumExp(row) - row[window[at + 1]]
      }
      const want = expected['perplexity.nats'].data[first + i]
      assert.ok(Math.abs(nats - want) <= 1e-4 * want, `window ${first + i}: ${nats} nats, expected ${want}`)
    }
  }
})

test('facts of the model', () => {
  assert.deepEqual(
    { family: model.info.family, layers: model.info.layers, vocab: model.info.vocab, window: model.info.window, localLayers: model.info.localLayers },
    { family: 'gemma3', layers: 6, vocab: 4096, window: 64, localLayers: 5 },
  )
  assert.equal(model.info.parameters, 6757376)
  assert.deepEqual(model.info.defaults, {})
})
