// kvCache: what an int8 cache costs and saves, and that it keeps every promise of the others.
import assert from 'node:assert/strict'
import fs from 'node:fs'
import path from 'node:path'
import test from 'node:test'
import { estimateMemory, loadModel } from 'lapidary'
import { assertSameBits, failsWith, golden, program, temporaryFolder, testDevice, tiny } from './support.mjs'

const text = fs.readFileSync(golden('gemma3-small/validation.txt'), 'utf8')
const open = (options) => loadModel(tiny, { device: testDevice, ...options })

test('an int8 cache is half of bf16, and near f32', async (t) => {
  const [f32, int8, bf16] = await Promise.all([open({ precision: 'f32' }), open({ precision: 'f32', kvCache: 'int8' }), open({ precision: 'f32', kvCache: 'bf16' })])
  const passage = [text.slice(0, 20000)]
  const [a, b] = await Promise.all([int8.divergence(f32, passage), bf16.divergence(f32, passage)])
  t.diagnostic(`KL to f32: int8 cache ${a.meanKl.toExponential(2)}, bf16 cache ${b.meanKl.toExponential(2)}`)
  assert.ok(a.meanKl > 0 && a.meanKl < 2e-3 && a.agreement > 0.98, `int8: KL ${a.meanKl}, agreement ${a.agreement}`)
  assert.ok(b.meanKl > 0 && b.meanKl < a.meanKl, `bf16: KL ${b.meanKl}`)
  await Promise.all([f32, int8, bf16].map((model) => model.close()))
  const [small, large] = await Promise.all(['int8', 'bf16'].map((kvCache) => estimateMemory(tiny, { kvCache })))
  const share = small.kvBytes / large.kvBytes
  assert.ok(share > 0.5 && share < 0.6, `share ${share}`)
})

test('a conversation saved with an int8 cache goes on with the same words, and only there', async (t) => {
  const file = path.join(temporaryFolder(t), 'chat')
  const options = { maxTokens: 12, temperature: 0, ignoreEos: true }
  // Log-probabilities, since a small model's words may not tell what it has forgotten.
  const ask = async (chat) => {
    const { text, logprobs } = await chat.send('And what of the other stones?', { ...options, logprobs: 2 }).result
    return { text, logprobs }
  }
  const model = await open({ kvCache: 'int8' }), chat = model.chat()
  await chat.send('Tell me of the stones by the river, and of who found them.', options).result
  await chat.save(file)
  const wanted = await ask(chat)
  assert.equal(wanted.logprobs.length, options.maxTokens)
  await model.close()
  const again = await open({ kvCache: 'int8', prefillChunk: 7 })
  assert.deepEqual(await ask(await again.loadChat(file)), wanted)
  await again.close()
  const other = await open({})
  await assert.rejects(other.loadChat(file), failsWith('bad_file', /saved with precision i8, the model is loaded with bf16/))
  await other.close()
})

test('chunks and reused prefixes do not show through an int8 cache', async () => {
  const long = text.slice(0, 1500)
  const options = { maxTokens: 8, temperature: 0, ignoreEos: true, logprobs: 3 }
  const [plain, keeping] = await Promise.all([open({ kvCache: 'int8', prefixCache: 0, prefillChunk: 19 }), open({ kvCache: 'int8', prefixCache: 2 })])
  await keeping.generate(long.slice(0, 1200), { maxTokens: 1 })
  const [want, got] = await Promise.all([plain.generate(long, options), keeping.generate(long, options)])
  assert.ok(got.usage.cachedTokens > 100 && want.usage.cachedTokens === 0, JSON.stringify(got.usage))
  assert.equal(got.text, want.text)
  const ids = plain.tokenizer.encode(long)
  const [[a], [b]] = await Promise.all([plain.logits([ids]), keeping.logits([ids])])
  assertSameBits(b, a, 'logits')
  await Promise.all([plain.close(), keeping.close()])
})

test('the option is checked, and the command line has it', async () => {
  await assert.rejects(open({ kvCache: 'int4' }), failsWith('invalid_argument', /kvCache must be one of 'f32', 'bf16', 'int8'/))
  const flags = ['generate', tiny, '--prompt', 'Once', '--max-tokens', '4', '--temperature', '0', '--device', testDevice]
  const { code, stderr } = await program([...flags, '--kv-cache', 'int8'])
  assert.equal(code, 0, stderr)
  assert.equal((await program([...flags, '--kv-cache', 'int4'])).code, 2)
})
