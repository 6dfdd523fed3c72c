// The same results, bit for bit, whatever the prefill chunk, the thread count, and what else runs.
import assert from 'node:assert/strict'
import fs from 'node:fs'
import path from 'node:path'
import test from 'node:test'
import { loadModel } from 'lapidary'
import { assertSameBits, golden, logSoftmax, readJson, readSafetensors, temporaryFolder, testDevice, tiny } from './support.mjs'

const expected = readSafetensors(golden('gemma3-small/expected.safetensors'))
const prompts = [0, 1, 2, 3].map((i) => [...expected[`text${i}.ids`].data])
const windows = Array.from({ length: 9 }, (_, i) => [...expected['perplexity.windows'].data.subarray(257 * i, 257 * i + 40 + 23 * i)])

async function results(options, sequences = windows.slice(0, 3)) {
  const model = await loadModel(tiny, { device: testDevice, prefixCache: 0, ...options })
  try {
    const logits = await model.logits(sequences)
    const texts = await Promise.all(prompts.map((ids, i) => model.generate(ids, { maxTokens: 24, temperature: 0.9, topK: 50, seed: 7 + i, logprobs: true })))
    return { logits, texts }
  } finally {
    await model.close()
  }
}

function assertSame(got, want, what) {
  for (const [i, logits] of want.logits.entries()) assertSameBits(got.logits[i], logits, `${what}, logits ${i}`)
  for (const [i, { tokens, logprobs }] of want.texts.entries()) {
    assert.deepEqual(got.texts[i].tokens, tokens, `${what}, text ${i}`)
    assert.deepEqual(got.texts[i].logprobs, logprobs, `${what}, logprobs ${i}`)
  }
}

for (const precision of ['f32', 'bf16']) {
  test(`prefill in chunks of 1, 7, 64 and all: ${precision}`, async () => {
    const want = await results({ precision, prefillChunk: 2048 })
    for (const prefillChunk of [1, 7, 64]) assertSame(await results({ precision, prefillChunk }), want, `chunk ${prefillChunk}`)
  })

  test(`1 and 2 threads: ${precision}`, async () => {
    assertSame(await results({ precision, threads: 1 }), await results({ precision, threads: 2 }), 'one thread')
  })

  test(`alone and among eight others: ${precision}`, async (t) => {
    const model = await loadModel(tiny, { device: testDevice, precision, prefixCache: 0 })
    t.after(() => model.close())
    const together = await model.logits(windows)
    for (const [i, window] of windows.entries()) assertSameBits((await model.logits([window]))[0], together[i], `logits ${i}`)
    const ask = (i) => model.generate(windows[i], { maxTokens: 12 + 3 * i, temperature: 1, seed: i, ignoreEos: true })
    const crowd = await Promise.all(windows.map((_, i) => ask(i)))
    for (const i of windows.keys()) assert.deepEqual((await ask(i)).tokens, crowd[i].tokens, `text ${i}`)
  })
}

test('a cached prefix changes nothing but the time', async (t) => {
  const model = await loadModel(tiny, { device: testDevice, precision: 'f32', prefixCache: 2 })
  t.after(() => model.close())
  const ask = () => model.generate(windows[5], { maxTokens: 20, temperature: 1, seed: 3, logprobs: true })
  const first = await ask(), second = await ask()
  assert.equal(first.usage.cachedTokens, 0)
  assert.ok(second.usage.cachedTokens > 0, 'the second run found its prompt in the cache')
  assert.deepEqual(second.tokens, first.tokens)
  assert.deepEqual(second.logprobs, first.logprobs)
})

// The window of the embedded model's local layers is 64.
for (const length of [63, 64, 65, 128, 5 * 64 + 3]) {
  test(`generation across a local window from ${length} tokens equals scoring without a cache`, async (t) => {
    const model = await loadModel(tiny, { device: testDevice, precision: 'f32', prefillChunk: 48 })
    t.after(() => model.close())
    const stream = [...expected['perplexity.windows'].data.subarray(0, length)]
    const { tokens, logprobs } = await model.generate(stream, { maxTokens: 12, temperature: 1, seed: 1, logprobs: 3, ignoreEos: true })
    const [logits] = await model.logits([[...stream, ...tokens]])
    for (const [i, { id, logprob, top }] of logprobs.entries()) {
      const row = logSoftmax(logits.subarray((length - 1 + i) * 4096, (length + i) * 4096))
      assert.equal(id, tokens[i])
      assert.ok(Math.abs(logprob - row[id]) <= 1e-4, `step ${i}: ${logprob}, recomputed ${row[id]}`)
      assert.equal(top.length, 3)
      assert.ok(top.every((entry) => Math.abs(entry.logprob - row[entry.id]) <= 1e-4))
      assert.ok(Math.abs(top[0].logprob - row.reduce((m, x) => Math.max(m, x), -Infinity)) <= 1e-4)
    }
  })
}

test('a context of 20,000 tokens equals scoring without a cache', { skip: !process.env.LAPIDARY_LONG && 'takes minutes; npm test -- --long runs it' }, async (t) => {
  const folder = temporaryFolder(t)
  for (const name of ['model.safetensors', 'tokenizer.json', 'tokenizer_config.json', 'generation_config.json']) fs.symlinkSync(path.join(tiny, name), path.join(folder, name))
  fs.writeFileSync(path.join(folder, 'config.json'), JSON.stringify({ ...readJson(tiny, 'config.json'), max_position_embeddings: 20_480 }))
  const model = await loadModel(folder, { device: testDevice, precision: 'f32', prefillChunk: 250, prefixCache: 0 })
  t.after(() => model.close())
  const stream = Array.from({ length: 20_000 }, (_, i) => expected['perplexity.windows'].data[i % (64 * 257)])
  const { tokens, logprobs } = await model.generate(stream, { maxTokens: 16, temperature: 1, seed: 1, logprobs: true, ignoreEos: true })
  // Other chunks, and every step computed from the first token on.
  for (const i of [0, 7, 15]) {
    const again = await model.generate([...stream, ...tokens.slice(0, i)], { maxTokens: 1, logitBias: { [tokens[i]]: 1000 }, logprobs: true })
    assert.deepEqual(again.tokens, [tokens[i]])
    assert.equal(again.usage.cachedTokens, 0)
    assert.ok(Math.abs(again.logprobs[0].logprob - logprobs[i].logprob) <= 1e-4, `step ${i}: ${again.logprobs[0].logprob}, generated with ${logprobs[i].logprob}`)
  }
  await model.close()
})
