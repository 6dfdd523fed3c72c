// Static int8 inputs on a model with token-wise outliers: what is lost, and that a prefix wins it back. The full table is bench/w8a8/main.mjs.
import assert from 'node:assert/strict'
import test from 'node:test'
import { models } from '../../bench/w8a8/models.mjs'
import { study } from '../../bench/w8a8/study.mjs'

test('a model whose first token spikes: one scale per place ruins it, a searched cushion restores it, tuning refines it', async () => {
  const { folder, texts, gap, options } = models.spiky
  const { bars, cells, prefixes, sites, search, tuning, positions } = await study(folder(), await texts(folder()), { ...options, gap, tuned: { PrefixQuant: {} }, rows: ['FP', 'static', 'per-token'] })
  for (const { bar, value, bound, ok } of bars) assert.ok(ok !== false, `${bar}: ${value}, must be ${bound}`)
  assert.equal(bars.length, 10)
  // The effect is there to begin with: a spike of one token, and a model that loses by it.
  assert.ok(cells.static.none.perplexity > 1.5 * cells.FP.none.perplexity)
  assert.ok(cells.static.none.meanKl > 0.1 && cells.static.greedy.meanKl < 0.01)
  const spike = (name) => sites[name].find(({ layer, site }) => layer === 1 && site === 'down_in')
  assert.ok(spike('none').max > 2000 && spike('none').tokenRatio > 100)
  assert.ok(spike('greedy').max < 50 && spike('greedy').tokenRatio < 10)
  assert.ok(prefixes.greedy.length >= 1 && search.greedy < 0.05 * search.none)
  // The search does better than BOS alone, and than the most frequent outliers, whose cushion tuning mends.
  assert.ok(search.greedy < 0.05 * search.BOS && search.greedy < 0.05 * search.PrefixQuant)
  const { start, best } = tuning.PrefixQuant
  assert.ok(best.error < 0.5 && best.quantised < start.quantised - 0.05)
  assert.ok(cells.static['PrefixQuant tuned'].perplexity < 0.95 * cells.static.PrefixQuant.perplexity)
  // Texts without BOS, where the spike falls on an ordinary token: lost far from it too, and no loss behind the cushion.
  assert.ok(positions.static.none.at(-1) > 1.5 * positions.FP.none.at(-1))
})

test('a model that was trained for cross-entropy alone: a searched cushion wins most of the loss back', async () => {
  const { folder, texts, gap, options } = models.natural
  const { bars, cells, search, sites } = await study(folder(), await texts(folder()), { ...options, gap, tuned: {}, rows: ['FP', 'static', 'per-token'] })
  for (const { bar, value, bound, ok } of bars) assert.ok(ok !== false, `${bar}: ${value}, must be ${bound}`)
  assert.equal(bars.length, 6)
  assert.ok(cells.static.none.perplexity > 1.005 * cells.FP.none.perplexity)
  assert.ok(cells.static.none.meanKl > 3 * cells.static.greedy.meanKl && search.greedy < 0.2 * search.none)
  const ratio = (name) => sites[name].find(({ site }) => site === 'down_in').tokenRatio
  assert.ok(ratio('none') > 20 && ratio('greedy') < 0.5 * ratio('none'))
})
