// The option `precision`: what it is by default, and what 'int8' does to prompts of GGUF models.
import assert from 'node:assert/strict'
import fs from 'node:fs'
import path from 'node:path'
import test from 'node:test'
import { loadModel } from 'lapidary'
import { assertSameBits, golden, logSoftmax, readSafetensors, testDevice, tiny } from './support.mjs'

const onCuda = testDevice === 'cuda'
const folders = ['gemma2-tiny', 'gemma3-tiny', 'gemma3-head256']
const files = folders.flatMap((folder) => fs.readdirSync(golden('gguf', folder)).filter((name) => name.endsWith('.gguf')).map((name) => path.join(folder, name)))
const q4 = golden('gguf/gemma3-tiny/gemma3-tiny-Q4_0.gguf')

/** Mean over the rows of KL(want ‖ got), in nats. */
function meanKl(want, got, vocab) {
  let sum = 0
  for (let at = 0; at < want.length; at += vocab) {
    const p = logSoftmax(want.subarray(at, at + vocab)), q = logSoftmax(got.subarray(at, at + vocab))
    for (let i = 0; i < vocab; i++) sum += Math.exp(p[i]) * (p[i] - q[i])
  }
  return sum / (want.length / vocab)
}

async function withModel(file, options, use) {
  const model = await loadModel(file, { device: testDevice, ...options })
  try {
    return await use(model)
  } finally {
    await model.close()
  }
}

test('by default int8 where GGUF blocks gain by it, else bf16', async () => {
  const precisionOf = (file, options) => withModel(file, options, (model) => model.precision)
  assert.equal(await precisionOf(tiny), 'bf16')
  assert.equal(await precisionOf(golden('gguf/gemma3-tiny/gemma3-tiny-f16.gguf')), 'bf16')
  assert.equal(await precisionOf(q4), onCuda ? 'bf16' : 'int8')
  for (const weights of ['int8', 'bf16']) assert.equal(await precisionOf(q4, { weights }), 'bf16')
  for (const precision of ['f32', 'bf16', 'int8']) {
    assert.equal(await precisionOf(q4, { precision }), precision)
    assert.equal(await precisionOf(tiny, { precision }), precision)
  }
})

test('weights that are no blocks compute as in bf16', async () => {
  const ids = Array.from({ length: 70 }, (_, i) => (i * 37 + 5) % 4000)
  const logitsIn = (precision) => withModel(tiny, { precision }, async (model) => (await model.logits([ids]))[0])
  assertSameBits(await logitsIn('int8'), await logitsIn('bf16'), 'logits')
})

for (const file of files) {
  test(`${file}: in int8 near f32`, async (t) => {
    const expected = readSafetensors(golden('gguf', path.dirname(file), 'expected.safetensors'))
    const key = path.basename(file, '.gguf'), ids = expected[`${key}.ids`].data
    const truth = expected[`${key}.logits_f32`].data
    assert.ok(ids.length >= 32, 'a long span')
    const kl = await withModel(golden('gguf', file), { precision: 'int8' }, async (model) => meanKl(truth, (await model.logits([ids]))[0], model.info.vocab))
    t.diagnostic(`KL ${kl.toExponential(2)} over ${ids.length} tokens`)
    assert.ok(kl <= 0.01, `KL ${kl}`)
  })
}

test('in int8 a prompt has the same bits alone, in company and in any chunks; short ones those of bf16', { skip: onCuda }, async () => {
  const prompt = (length, seed) => Array.from({ length }, (_, i) => (i * 37 + seed * 101 + 5) % 500)
  const prompts = [31, 32, 33, 70, 130, 5].map(prompt)
  const options = { precision: 'int8', prefixCache: 0 }
  const alone = await withModel(q4, options, async (model) => {
    const together = await model.logits(prompts)
    for (const [i, ids] of prompts.entries()) assertSameBits((await model.logits([ids]))[0], together[i], `${ids.length} tokens`)
    const ask = (i) => model.generate(prompts[i], { maxTokens: 6 + 5 * i, temperature: 1, seed: i, ignoreEos: true, logprobs: true })
    const crowd = await Promise.all(prompts.map((_, i) => ask(i)))
    for (const i of prompts.keys()) {
      const { tokens, logprobs } = await ask(i)
      assert.deepEqual(tokens, crowd[i].tokens, `text ${i}`)
      assert.deepEqual(logprobs, crowd[i].logprobs, `text ${i}`)
    }
    return together
  })
  for (const prefillChunk of [64, 65, 100, 1024]) {
    const chunked = await withModel(q4, { ...options, prefillChunk }, (model) => model.logits(prompts))
    for (const [i, logits] of chunked.entries()) assertSameBits(logits, alone[i], `${prompts[i].length} tokens in chunks of ${prefillChunk}`)
  }
  const inBf16 = await withModel(q4, { ...options, precision: 'bf16' }, (model) => model.logits(prompts))
  for (const [i, ids] of prompts.entries()) assert.equal(inBf16[i].every((x, at) => x === alone[i][at]), ids.length < 32, `${ids.length} tokens`)
})
