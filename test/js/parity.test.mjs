// Logits, hidden states and greedy text of the golden checkpoints, on every device of this machine, from every file format.
import assert from 'node:assert/strict'
import fs from 'node:fs'
import path from 'node:path'
import test from 'node:test'
import { loadModel } from 'lapidary'
import { assertClose, assertSameBits, checkpoints, golden, meanKl, readSafetensors, temporaryFolder, testDevice } from './support.mjs'

for (const device of new Set(['reference', 'cpu', testDevice])) {
  for (const name of checkpoints) {
    const expected = readSafetensors(golden(name, 'expected.safetensors'))
    const keys = Object.keys(expected).filter((key) => /^case\d+\.ids$/.test(key)).map((key) => key.slice(0, -4)).sort()
    const sequences = keys.map((key) => [...expected[`${key}.ids`].data])

    test(`${name} on ${device}, f32`, async (t) => {
      const model = await loadModel(golden(name), { device, precision: 'f32' })
      t.after(() => model.close())
      assert.equal(model.device, device)
      const together = await model.logits(sequences)
      for (const [i, key] of keys.entries()) {
        assertClose(together[i], expected[`${key}.logits_f32`].data, 1e-4, `${key} logits`)
        const [alone] = await model.logits([Int32Array.from(sequences[i])])
        assertSameBits(alone, together[i], `${key} alone and in a batch`)
      }
      const hidden = await model.hiddenStates(sequences[2])
      assert.equal(hidden.length, model.info.layers + 1)
      for (const [layer, states] of hidden.entries()) assertClose(states, expected[`case2.hidden${layer}`].data, 1e-4, `hidden ${layer}`)
      const want = [...expected['greedy.continuation'].data]
      const { tokens, finishReason } = await model.generate(expected['greedy.prompt'].data, { maxTokens: want.length, temperature: 0, ignoreEos: true })
      assert.deepEqual(tokens, want)
      assert.equal(finishReason, 'length')
    })

    test(`${name} on ${device}, bf16`, async (t) => {
      const model = await loadModel(golden(name), { device, precision: 'bf16' })
      t.after(() => model.close())
      const got = await model.logits(sequences)
      for (const [i, key] of keys.entries()) {
        const truth = expected[`${key}.logits_f32`]
        const ours = meanKl(truth.data, got[i], truth.shape[1])
        const theirs = meanKl(truth.data, expected[`${key}.logits_bf16`].data, truth.shape[1])
        assert.ok(ours <= 1.5 * theirs + 1e-6, `${key}: KL ${ours}, the reference's own ${theirs}`)
      }
    })
  }
}

for (const name of checkpoints) {
  test(`${name}: the keys of published config files give the same model`, async (t) => {
    const folder = temporaryFolder(t)
    fs.copyFileSync(golden(name, 'config.hub.json'), path.join(folder, 'config.json'))
    fs.symlinkSync(golden(name, 'model.safetensors'), path.join(folder, 'model.safetensors'))
    const ids = [[...readSafetensors(golden(name, 'expected.safetensors'))['case2.ids'].data]]
    const models = await Promise.all([folder, golden(name)].map((at) => loadModel(at, { device: testDevice, precision: 'f32' })))
    const [a, b] = await Promise.all(models.map((model) => model.logits(ids)))
    assertSameBits(a[0], b[0], 'logits')
    await Promise.all(models.map((model) => model.close()))
  })

  const folder = golden('gguf', name)
  for (const file of fs.readdirSync(folder).filter((entry) => entry.endsWith('.gguf'))) {
    test(`${file}: logits on the dequantized weights`, async (t) => {
      const expected = readSafetensors(path.join(folder, 'expected.safetensors'))
      const key = file.slice(0, -'.gguf'.length)
      const model = await loadModel(path.join(folder, file), { device: testDevice, precision: 'f32' })
      t.after(() => model.close())
      const [got] = await model.logits([expected[`${key}.ids`].data])
      assertClose(got, expected[`${key}.logits_f32`].data, 1e-4, file)
    })
  }
}

test('a multimodal checkpoint runs its text part and says so', async (t) => {
  const expected = readSafetensors(golden('gemma3-vision-tiny/expected.safetensors'))
  const model = await loadModel(golden('gemma3-vision-tiny'), { device: testDevice, precision: 'f32' })
  t.after(() => model.close())
  assert.match(model.info.notes.join('\n'), /vision/i)
  const [logits] = await model.logits([[...expected.ids.data].slice(0, 4)])
  assert.equal(logits.length, 4 * model.info.vocab)
  assert.ok(logits.every(Number.isFinite))
})
