// loadModel's `weights`: what conversion at load does to memory, to scores and to what the estimate says.
import assert from 'node:assert/strict'
import test from 'node:test'
import { estimateMemory, loadModel } from 'lapidary'
import { failsWith, logSoftmax, testDevice, tiny } from './support.mjs'

const prompt = 'Fellow-citizens of the Senate and of the House of Representatives'

test('int8 weights are half of bf16 ones, and as good', async () => {
  const scores = {}
  for (const weights of ['as-is', 'bf16', 'int8']) {
    const model = await loadModel(tiny, { device: testDevice, weights })
    const ids = model.tokenizer.encode(prompt)
    const [logits] = await model.logits([ids])
    const vocab = logits.length / ids.length
    scores[weights] = { rows: ids.map((_, r) => logSoftmax(logits.subarray(r * vocab, r * vocab + vocab))), bytes: model.memory().weightBytes }
    assert.equal((await estimateMemory(tiny, { weights })).weightBytes, scores[weights].bytes)
    await model.close()
  }
  const { rows: exact, bytes } = scores['as-is']
  assert.equal(scores.bf16.bytes, bytes)
  assert.ok(scores.int8.bytes < 0.52 * bytes, `${scores.int8.bytes} of ${bytes}`)
  assert.deepEqual(scores.bf16.rows, exact)
  const kl = exact.map((p, r) => p.reduce((s, lp, i) => s + Math.exp(lp) * (lp - scores.int8.rows[r][i]), 0))
  const mean = kl.reduce((a, b) => a + b) / kl.length
  assert.ok(mean > 0 && mean < 0.01, `mean KL ${mean}`)
})

test('a wrong kind of weights is refused', async () => {
  await assert.rejects(loadModel(tiny, { weights: 'int4' }), failsWith('invalid_argument', /'as-is', 'bf16', 'int8'/))
})
