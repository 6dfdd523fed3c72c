// loadModel's `weights`: what conversion at load does to memory, to scores and to what the estimate says.
import assert from 'node:assert/strict'
import test from 'node:test'
import { estimateMemory, loadModel } from 'lapidary'
import { assertSameBits, failsWith, meanKl, testDevice, tiny } from './support.mjs'

const prompt = 'Fellow-citizens of the Senate and of the House of Representatives'

test('int8 weights are half of bf16 ones, and as good', async () => {
  const logits = {}, bytes = {}
  let vocab = 0
  for (const weights of ['as-is', 'bf16', 'int8']) {
    const model = await loadModel(tiny, { device: testDevice, weights })
    vocab = model.tokenizer.size
    ;[logits[weights]] = await model.logits([model.tokenizer.encode(prompt)])
    bytes[weights] = model.memory().weightBytes
    assert.equal((await estimateMemory(tiny, { weights })).weightBytes, bytes[weights])
    await model.close()
  }
  assert.equal(bytes.bf16, bytes['as-is'])
  assert.ok(bytes.int8 < 0.52 * bytes.bf16, `${bytes.int8} of ${bytes.bf16}`)
  assertSameBits(logits.bf16, logits['as-is'], 'the file holds bf16')
  const kl = meanKl(logits['as-is'], logits.int8, vocab)
  assert.ok(kl > 0 && kl < 0.01, `mean KL ${kl}`)
})

test('a wrong kind of weights is refused', async () => {
  await assert.rejects(loadModel(tiny, { weights: 'int4' }), failsWith('invalid_argument', /'as-is', 'bf16', 'int8'/))
})
