// The distribution that tokens are drawn from, against the golden one and against frequencies of draws.
import assert from 'node:assert/strict'
import { createRequire } from 'node:module'
import path from 'node:path'
import test from 'node:test'
import { probabilities } from 'lapidary'
import { failsWith, golden, logSoftmax, readJson, readSafetensors, root } from './support.mjs'

const addon = createRequire(import.meta.url)(path.join(root, 'build/Release/lapidary.node'))
const off = { temperature: 1, topK: 0, topP: 1, minP: 0, repetitionPenalty: 1, presencePenalty: 0, frequencyPenalty: 0, logitBias: [] }

test('golden settings', () => {
  const expected = readSafetensors(golden('sampling/expected.safetensors'))
  for (const { name, temperature, top_k: topK, top_p: topP, min_p: minP, repetition_penalty: repetitionPenalty } of readJson(golden('sampling/expected.json'))) {
    const got = probabilities(expected[`${name}.logits`].data, { temperature, topK, topP, minP, repetitionPenalty }, [...expected[`${name}.history`].data])
    const want = expected[`${name}.probabilities`].data
    assert.equal(got.length, want.length)
    for (let i = 0; i < want.length; i++) assert.ok(Math.abs(got[i] - want[i]) <= 1e-5, `${name} token ${i}: ${got[i]}, expected ${want[i]}`)
  }
})

const logits = Float32Array.from({ length: 50 }, (_, i) => 3 * Math.sin(i * 1.7) + (i % 7) * 0.3)
const sum = (list) => list.reduce((a, b) => a + b, 0)

test('every setting does what it says', () => {
  const plain = Float64Array.from(logSoftmax(logits), Math.exp)
  assert.ok(probabilities(logits).every((p, i) => Math.abs(p - plain[i]) < 1e-6))
  const best = plain.indexOf(Math.max(...plain))
  const greedy = probabilities(logits, { temperature: 0 })
  assert.equal(greedy[best], 1)
  assert.equal(sum(greedy), 1)
  assert.equal(probabilities(logits, { topK: 3 }).filter((p) => p > 0).length, 3)
  assert.equal(probabilities(logits, { logitBias: { [best]: -Infinity } })[best], 0)
  assert.ok(probabilities(logits, { logitBias: new Map([[4, 100]]) })[4] > 0.999)
  const ratio = (settings, history) => probabilities(logits, settings, history)[5] / probabilities(logits, settings, history)[6]
  const before = ratio({}, [])
  assert.ok(Math.abs(ratio({ presencePenalty: 1 }, [5, 5, 5]) / before - Math.exp(-1)) < 1e-4)
  assert.ok(Math.abs(ratio({ frequencyPenalty: 1 }, [5, 5, 5]) / before - Math.exp(-3)) < 1e-4)
})

for (const [name, settings] of Object.entries({ plain: {}, filtered: { temperature: 0.8, topK: 12, topP: 0.95 }, penalised: { repetitionPenalty: 1.3, minP: 0.01 } })) {
  test(`100,000 seeded draws follow the distribution: ${name}`, () => {
    const count = 100_000
    const history = Int32Array.from([1, 2, 3])
    const p = probabilities(logits, settings, history)
    const draws = addon.draw(logits, { ...off, ...settings }, history, 0, 20261123n, count)
    const seen = new Float64Array(logits.length)
    for (const id of draws) seen[id]++
    let chiSquare = 0, cells = 0
    for (const [i, probability] of p.entries()) {
      if (probability === 0) assert.equal(seen[i], 0, `token ${i} cannot be drawn`)
      else if (probability * count >= 5) {
        chiSquare += (seen[i] - probability * count) ** 2 / (probability * count)
        cells++
      }
    }
    // Wilson and Hilferty's normal approximation; 4 standard deviations.
    const k = cells - 1
    const z = ((chiSquare / k) ** (1 / 3) - (1 - 2 / (9 * k))) / Math.sqrt(2 / (9 * k))
    assert.ok(z < 4, `chi-square ${chiSquare} over ${cells} cells`)
    assert.deepEqual(addon.draw(logits, { ...off, ...settings }, history, 0, 20261123n, 100), draws.slice(0, 100))
    assert.notDeepEqual(addon.draw(logits, { ...off, ...settings }, history, 0, 5n, 100), draws.slice(0, 100))
  })
}

test('settings out of range are refused with both sides', () => {
  for (const [settings, pattern] of [
    [{ temperature: -1 }, /temperature must be a finite number of at least 0, received -1/],
    [{ temperature: NaN }, /temperature/],
    [{ topK: 1.5 }, /topK must be an integer of at least 0|topK must be an integer from 0/],
    [{ topP: 0 }, /topP must be a finite number above 0 and at most 1, received 0/],
    [{ minP: 2 }, /minP/],
    [{ repetitionPenalty: 0 }, /repetitionPenalty/],
    [{ logitBias: { x: 1 } }, /logitBias has a key that is no token id: "x"/],
    [{ logitBias: { 1: Infinity } }, /logitBias of token 1/],
    [{ logitBias: { 99: 1 } }, /99/],
    [{ top_k: 5 }, /unknown option "top_k"; did you mean "topK"\?/],
  ]) assert.throws(() => probabilities(logits, settings), failsWith('invalid_argument', pattern))
  assert.throws(() => probabilities([1, 2]), failsWith('invalid_argument', /logits must be a Float32Array/))
  assert.throws(() => probabilities(logits, {}, [50]), failsWith('invalid_argument', /history\[0\] must be a token id from 0 to 49/))
})
