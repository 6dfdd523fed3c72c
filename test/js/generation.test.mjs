// Everything that one generation can be asked for, on the embedded model.
import assert from 'node:assert/strict'
import test, { after, before } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { estimateMemory, inspect, loadModel } from 'lapidary'
import { failsWith, golden, logSoftmax, testDevice, tiny } from './support.mjs'

let model
before(async () => {
  model = await loadModel(tiny, { device: testDevice })
})
after(() => model.close())

const prompt = 'The whale'
const collect = async (run) => {
  const parts = []
  for await (const part of run) parts.push(part)
  return parts
}

test('the same seed gives the same text, another seed another', async () => {
  const ask = (options) => model.generate(prompt, { maxTokens: 30, temperature: 1, ...options })
  const first = await ask({ seed: 42 }), second = await ask({ seed: 42n }), other = await ask({ seed: 43 })
  assert.equal(first.text, second.text)
  assert.notEqual(first.text, other.text)
  const random = await ask({})
  assert.equal(typeof random.seed, 'number')
  assert.equal((await ask({ seed: random.seed })).text, random.text)
  assert.notEqual((await ask({})).seed, random.seed)
})

test('this model generates greedily unless asked otherwise', async () => {
  const [a, b] = await Promise.all([model.generate(prompt, { maxTokens: 20 }), model.generate(prompt, { maxTokens: 20, temperature: 0 })])
  assert.deepEqual(a.tokens, b.tokens)
})

test('a stream tells what generate gives, part by part', async () => {
  const options = { maxTokens: 25, temperature: 0.8, seed: 5, logprobs: 2 }
  const run = model.stream(prompt, options)
  const parts = await collect(run)
  const whole = await model.generate(prompt, options)
  const result = await run.result
  assert.equal(parts.map((part) => part.text).join(''), whole.text)
  assert.deepEqual(parts.flatMap((part) => part.token ?? []), whole.tokens)
  assert.deepEqual(result.tokens, whole.tokens)
  assert.deepEqual(result.logprobs, whole.logprobs)
  for (const { logprob, top } of parts.filter((part) => part.token !== undefined)) {
    assert.ok(logprob <= 0)
    assert.equal(top.length, 2)
    assert.ok(top[0].logprob >= top[1].logprob)
  }
  assert.equal(result.finishReason, 'length')
})

test('the result alone, without a reader', async () => {
  const { tokens } = await model.stream(prompt, { maxTokens: 400, ignoreEos: true }).result
  assert.equal(tokens.length, 400)
  const { result } = model.stream(prompt, { maxTokens: 5 })
  assert.equal((await result).tokens.length, 5)
})

test('a run has one reader', async () => {
  const run = model.stream(prompt, { maxTokens: 3 })
  await collect(run)
  await assert.rejects(collect(run), failsWith('invalid_argument', /already being read/))
})

test('onToken sees every part; what it throws ends the run', async () => {
  const seen = []
  const { tokens } = await model.generate(prompt, { maxTokens: 10, onToken: ({ token }) => seen.push(token) })
  assert.deepEqual(seen.filter((token) => token !== undefined), tokens)
  const reason = new Error('enough')
  await assert.rejects(model.generate(prompt, { maxTokens: 1000, onToken: () => { throw reason } }), (error) => error === reason)
})

test('stop strings end the text where they begin, however tokens are cut', async () => {
  const { text } = await model.generate(prompt, { maxTokens: 60 })
  const stop = text.slice(20, 26)
  const stopped = await model.generate(prompt, { maxTokens: 60, stop })
  assert.equal(stopped.finishReason, 'stop-sequence')
  assert.equal(stopped.stopSequence, stop)
  assert.equal(stopped.text, text.slice(0, text.indexOf(stop)))
  const parts = await collect(model.stream(prompt, { maxTokens: 60, stop: ['never met', stop] }))
  assert.equal(parts.map((part) => part.text).join(''), stopped.text)
  const notMet = await model.generate(prompt, { maxTokens: 20, stop: `${text.slice(0, 30)}!!` })
  assert.equal(text.startsWith(notMet.text), true)
  assert.equal(notMet.finishReason, 'length')
})

test('stop tokens and end tokens', async () => {
  const { tokens } = await model.generate(prompt, { maxTokens: 30, temperature: 0 })
  const stopAt = tokens[8]
  const stopped = await model.generate(prompt, { maxTokens: 30, temperature: 0, stopTokens: [stopAt] })
  assert.equal(stopped.finishReason, 'stop')
  assert.deepEqual(stopped.tokens, tokens.slice(0, tokens.indexOf(stopAt)))
  const ended = await model.generate(prompt, { maxTokens: 30, logitBias: { 1: 1000 } })
  assert.equal(ended.finishReason, 'stop')
  assert.deepEqual([ended.text, ended.tokens], ['', []])
  const further = await model.generate(prompt, { maxTokens: 4, logitBias: { 1: 1000 }, ignoreEos: true })
  assert.deepEqual(further.tokens, [1, 1, 1, 1])
  assert.equal(further.text, '')
})

test('logit bias and penalties reach the sampler', async () => {
  const biased = await model.generate(prompt, { maxTokens: 5, logitBias: new Map([[300, 1000]]) })
  assert.deepEqual(biased.tokens, [300, 300, 300, 300, 300])
  const fresh = await model.generate(prompt, { maxTokens: 40, presencePenalty: 1000 })
  assert.equal(new Set(fresh.tokens).size, fresh.tokens.length)
  const plain = await model.generate(prompt, { maxTokens: 60 })
  const penalised = await model.generate(prompt, { maxTokens: 60, repetitionPenalty: 1.5 })
  assert.ok(new Set(penalised.tokens).size > new Set(plain.tokens).size)
})

test('a mask hook allows what comes next', async () => {
  const allowed = [400, 500, 600]
  const calls = []
  const { tokens } = await model.generate(prompt, {
    maxTokens: 6,
    temperature: 1,
    seed: 1,
    mask: (generated) => {
      calls.push([...generated])
      return generated.length < 4 ? allowed : null
    },
  })
  assert.ok(tokens.slice(0, 4).every((id) => allowed.includes(id)), String(tokens))
  assert.deepEqual(calls, calls.map((_, i) => tokens.slice(0, i)))
  const bits = new Uint32Array(4096 / 32)
  bits[700 >> 5] = 1 << (700 & 31)
  const mask = async () => {
    await sleep(2)
    return bits
  }
  const forced = await model.generate(prompt, { maxTokens: 3, mask })
  assert.deepEqual(forced.tokens, [700, 700, 700])
  const free = await model.generate(prompt, { maxTokens: 5, mask: () => null })
  assert.deepEqual(free.tokens, (await model.generate(prompt, { maxTokens: 5 })).tokens)
})

test('a mask that allows nothing, or throws, fails that run alone', async () => {
  await assert.rejects(model.generate(prompt, { mask: () => [] }), failsWith('invalid_argument', /no token is allowed/))
  await assert.rejects(model.generate(prompt, { mask: () => [4096] }), failsWith('invalid_argument', /from 0 to 4095, received 4096/))
  await assert.rejects(model.generate(prompt, { mask: () => new Uint32Array(3) }), failsWith('invalid_argument', /128 words, received 3/))
  await assert.rejects(model.generate(prompt, { mask: () => new Uint32Array(128) }), failsWith('invalid_argument'))
  const reason = new Error('hook')
  await assert.rejects(model.generate(prompt, { mask: async () => { throw reason } }), (error) => error === reason)
  assert.equal((await model.generate(prompt, { maxTokens: 2 })).tokens.length, 2)
})

test('an aborted signal rejects with its own reason', async () => {
  const reason = { my: 'reason' }
  const before = AbortSignal.abort(reason)
  await assert.rejects(model.generate(prompt, { signal: before }), (error) => error === reason)
  await assert.rejects(model.logits([[2, 3]], { signal: before }), (error) => error === reason)
  const controller = new AbortController()
  const run = model.stream(prompt, { signal: controller.signal, ignoreEos: true })
  await assert.rejects(async () => {
    for await (const { token } of run) if (token !== undefined) controller.abort(reason)
  }, (error) => error === reason)
  await assert.rejects(run.result, (error) => error === reason)
  const score = new AbortController()
  const scores = model.logits([Array(2000).fill(5)], { signal: score.signal })
  score.abort(reason)
  await assert.rejects(scores, (error) => error === reason)
})

test('abort returns within a step or two', async () => {
  const longest = []
  for (let i = 0; i < 5; i++) {
    const controller = new AbortController()
    const run = model.generate(prompt, { signal: controller.signal, ignoreEos: true, maxTokens: 2000 })
    await sleep(40)
    const start = performance.now()
    controller.abort()
    await assert.rejects(run, { name: 'AbortError' })
    longest.push(performance.now() - start)
  }
  longest.sort((a, b) => a - b)
  assert.ok(longest[2] < 100, `aborts took ${longest.map((ms) => ms.toFixed(1))} ms`)
})

test('leaving the loop ends the run', async () => {
  const run = model.stream(prompt, { ignoreEos: true, maxTokens: 2000 })
  let seen = 0
  for await (const _ of run) if (++seen === 3) break
  const { finishReason, tokens } = await run.result
  assert.equal(finishReason, 'aborted')
  assert.ok(tokens.length < 1000)
})

test('abort() resolves with what there is', async () => {
  const run = model.stream(prompt, { ignoreEos: true, maxTokens: 2000, onToken: () => run.abort() })
  const { finishReason, text } = await run.result
  assert.equal(finishReason, 'aborted')
  assert.ok(text.length > 0)
})

test('a slow reader holds back its own run and no other', async () => {
  let produced = 0
  const run = model.stream(prompt, { ignoreEos: true, maxTokens: 1500, onToken: () => produced++ })
  const iterator = run[Symbol.asyncIterator]()
  await iterator.next()
  await model.generate(prompt, { maxTokens: 500, ignoreEos: true })
  await sleep(300)
  assert.ok(produced < 600, `${produced} tokens were produced for a reader that took one`)
  assert.ok(produced >= 100)
  await iterator.return()
})

test('token ids are taken as they are, text gets BOS once', async () => {
  const { tokenizer } = model
  const ids = [2, ...tokenizer.encode(prompt)]
  const [fromText, fromIds, fromArray, special] = await Promise.all([
    model.generate(prompt, { maxTokens: 8 }),
    model.generate(ids, { maxTokens: 8 }),
    model.generate(Int32Array.from(ids), { maxTokens: 8 }),
    model.generate(`<bos>${prompt}`, { maxTokens: 8, special: true }),
  ])
  for (const other of [fromIds, fromArray, special]) {
    assert.deepEqual(other.tokens, fromText.tokens)
    assert.equal(other.usage.promptTokens, fromText.usage.promptTokens)
  }
  const literal = await model.generate(`<bos>${prompt}`, { maxTokens: 1 })
  assert.ok(literal.usage.promptTokens > ids.length)
})

test('a full context ends with length', async (t) => {
  const short = await loadModel(tiny, { device: testDevice, contextTokens: 40 })
  t.after(() => short.close())
  const { finishReason, usage } = await short.generate(prompt, { ignoreEos: true })
  assert.equal(finishReason, 'length')
  assert.ok(usage.promptTokens + usage.generatedTokens >= 40 && usage.promptTokens + usage.generatedTokens <= 41)
  await assert.rejects(short.generate(Array(41).fill(5)), failsWith('invalid_argument', /40/))
})

test('too little memory fails that request and leaves the model usable', async (t) => {
  const small = await loadModel(tiny, { device: testDevice, kvLimitBytes: 1_500_000, prefixCache: 0, precision: 'f32' })
  t.after(() => small.close())
  await assert.rejects(small.generate(Array(2000).fill(5), { maxTokens: 1 }), failsWith('out_of_memory'))
  assert.equal((await small.generate(prompt, { maxTokens: 3 })).tokens.length, 3)
})

test('options out of place are refused with a suggestion', async () => {
  for (const [options, pattern] of [
    [{ maxToken: 5 }, /generate: unknown option "maxToken"; did you mean "maxTokens"\?/],
    [{ max_tokens: 5 }, /did you mean "maxTokens"\?/],
    [{ colour: 5 }, /unknown option "colour"; known are temperature, /],
    [{ maxTokens: 0 }, /maxTokens must be an integer of at least 1, received 0/],
    [{ maxTokens: '5' }, /received "5"/],
    [{ seed: -1 }, /seed/],
    [{ stop: '' }, /empty string/],
    [{ stop: [5] }, /stop\[0\] must be a string/],
    [{ signal: {} }, /AbortSignal/],
    [{ mask: [1] }, /mask must be a function/],
    [{ logitBias: { 5000: 1 } }, /5000/],
    [{ stopTokens: [5000] }, /5000/],
  ]) await assert.rejects(model.generate(prompt, options), failsWith('invalid_argument', pattern))
  for (const bad of [[], [1.5], [4096], [-1], ['a'], 7, null]) await assert.rejects(model.generate(bad), failsWith('invalid_argument', /generate: prompt/))
  assert.throws(() => model.stream(prompt, 5), failsWith('invalid_argument', /options must be an object/))
  await assert.rejects(model.logits([[1], []]), failsWith('invalid_argument', /sequences\[1\]/))
  await assert.rejects(model.logits([1, 2]), failsWith('invalid_argument', /sequences\[0\] must be an array/))
  assert.deepEqual(await model.logits([]), [])
})

test('loading: options, progress, signal, bad paths', async () => {
  for (const [options, pattern] of [
    [{ device: 'gpu' }, /device must be one of 'reference', 'cpu', 'cuda', 'auto', received "gpu"/],
    [{ devcie: 'cpu' }, /loadModel: unknown option "devcie"; did you mean "device"\?/],
    [{ precision: 'int4' }, /precision/],
    [{ threads: 0 }, /threads/],
    [{ prefillChunk: 100, maxBatchTokens: 50 }, /maxBatchTokens \(50\) must be at least prefillChunk \(100\)/],
  ]) await assert.rejects(loadModel(tiny, options), failsWith('invalid_argument', pattern))
  await assert.rejects(loadModel('/no/such/model'), failsWith('bad_file', /no\/such\/model/))
  await assert.rejects(loadModel(5), failsWith('invalid_argument', /path must be a string/))
  const told = []
  const loaded = await loadModel(tiny, { onProgress: (progress) => told.push(progress) })
  await loaded.close()
  assert.ok(told.length > 0)
  assert.equal(told.at(-1).phase, 'weights')
  assert.equal(told.at(-1).loaded, told.at(-1).total)
  const reason = new Error('no more')
  await assert.rejects(loadModel(tiny, { signal: AbortSignal.abort(reason) }), (error) => error === reason)
  const controller = new AbortController()
  const loading = loadModel(tiny, { signal: controller.signal })
  controller.abort(reason)
  await assert.rejects(loading, (error) => error === reason)
  await assert.rejects(loadModel(tiny, { onProgress: () => { throw reason } }), (error) => error === reason)
})

test('cuda without a device says why', async () => {
  const { devices } = await import('lapidary')
  const cuda = devices().find((device) => device.kind === 'cuda')
  if (cuda?.available) return
  await assert.rejects(loadModel(tiny, { device: 'cuda' }), failsWith('cuda', /not available: .+use 'cpu' or 'auto'/))
  const auto = await loadModel(tiny, { device: 'auto' })
  assert.equal(auto.device, 'cpu')
  await auto.close()
})

test('after close everything is refused, and close may be called again', async () => {
  const closing = await loadModel(tiny)
  const chat = closing.chat()
  const run = closing.stream(prompt, { ignoreEos: true })
  await run[Symbol.asyncIterator]().next()
  const tooLate = closing.stream(prompt)
  await Promise.all([closing.close(), closing.close()])
  assert.equal((await run.result).finishReason, 'aborted')
  await assert.rejects(tooLate.result, failsWith('disposed'))
  await assert.rejects(closing.generate(prompt), failsWith('disposed'))
  await assert.rejects(closing.logits([[1]]), failsWith('disposed'))
  await assert.rejects(closing.hiddenStates([1]), failsWith('disposed'))
  assert.throws(() => closing.memory(), failsWith('disposed'))
  assert.throws(() => closing.chat(), failsWith('disposed'))
  assert.throws(() => chat.send('x'), failsWith('disposed'))
  await chat.close()
  await closing[Symbol.asyncDispose]()
})

test('a model without a tokenizer takes ids and refuses text', async (t) => {
  const bare = await loadModel(golden('gemma3-tiny'), { device: testDevice })
  t.after(() => bare.close())
  assert.equal(bare.tokenizer, null)
  await assert.rejects(bare.generate('text'), failsWith('unsupported', /no tokenizer/))
  assert.throws(() => bare.chat(), failsWith('unsupported', /no tokenizer/))
  const { tokens, text } = await bare.generate([1, 2, 3], { maxTokens: 4, ignoreEos: true })
  assert.equal(tokens.length, 4)
  assert.equal(text, '')
})

test('the estimate and the real use of memory', async () => {
  const contextTokens = 1024
  const estimate = await estimateMemory(tiny, { contextTokens, sequences: 2, precision: 'bf16' })
  assert.equal(estimate.kvBytes, 2 * estimate.kvBytesPerSequence)
  assert.equal(estimate.totalBytes, estimate.weightBytes + estimate.kvBytes + estimate.scratchBytes)
  const running = await loadModel(tiny, { device: testDevice, contextTokens, prefixCache: 0 })
  const run = running.stream(Array(1000).fill(5), { maxTokens: 20, ignoreEos: true })
  let most = 0
  for await (const _ of run) most = Math.max(most, running.memory().kvBytes)
  await running.close()
  assert.ok(most > 0 && most <= estimate.kvBytesPerSequence, `${most} bytes used, ${estimate.kvBytesPerSequence} estimated`)
  await assert.rejects(estimateMemory(tiny, { sequence: 2 }), failsWith('invalid_argument', /did you mean "sequences"/))
})

test('inspect tells facts and tensors without loading', async () => {
  const { info, tensors } = await inspect(tiny)
  assert.equal(info.family, 'gemma3')
  const embedding = tensors.find(({ name }) => name.endsWith('embed_tokens.weight'))
  assert.deepEqual(embedding.shape, [4096, 256])
  assert.equal(embedding.bytes, 4096 * 256 * 2)
  assert.ok(tensors.every(({ dtype }) => dtype.toLowerCase() === 'bf16'))
  await assert.rejects(inspect('/no/such'), failsWith('bad_file'))
})

test('logprobs are those of the raw logits, whatever the settings', async (t) => {
  const exact = await loadModel(tiny, { device: testDevice, precision: 'f32' })
  t.after(() => exact.close())
  const ids = [2, ...exact.tokenizer.encode(prompt)]
  const { tokens, logprobs } = await exact.generate(ids, { maxTokens: 5, temperature: 0.3, topK: 2, seed: 1, logprobs: true, logitBias: { 7: 3 } })
  const [logits] = await exact.logits([[...ids, ...tokens]])
  for (const [i, { logprob, top }] of logprobs.entries()) {
    const row = logSoftmax(logits.subarray((ids.length - 1 + i) * 4096, (ids.length + i) * 4096))
    assert.ok(Math.abs(logprob - row[tokens[i]]) < 1e-4)
    assert.deepEqual(top, [])
  }
})
