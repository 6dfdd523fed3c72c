// The benchmarks of whole models: checkpoints that are made up for them load with the same weights in every format, costs are counted as they
// should be, and options, ratios and bars mean what they say.
import assert from 'node:assert/strict'
import path from 'node:path'
import test from 'node:test'
import { loadModel } from 'lapidary'
import { embed, Tensor } from 'lapidary/ops'
import { judge } from '../../bench/cpu/bars.mjs'
import { keepNewest } from '../../bench/cpu/keep.mjs'
import { ggufFormats, typeOf } from '../../bench/models/formats.mjs'
import { encodeTable, f16Bits } from '../../bench/models/quantize.mjs'
import { parametersOf, shapes, tensorsOf } from '../../bench/models/shapes.mjs'
import { makeTable } from '../../bench/models/table.mjs'
import { writeFolder, writeGguf } from '../../bench/models/write.mjs'
import { figuresOf, ratiosOf } from '../../bench/peers/compare.mjs'
import { OptionError, publicPlan, readComparison } from '../../bench/peers/report.mjs'
import { merged, spread } from '../../bench/statistics.mjs'
import { costOf, decodeBytes, leastSeconds, promptOperations } from '../../dist/cli/bench-cost.js'
import { program, relativeError, temporaryFolder, tiny } from './support.mjs'

/** Rows of whole K-blocks, a global layer among local ones, a window that the test's prompt leaves. */
const toys = {
  gemma3: {
    family: 'gemma3', layers: 6, hidden: 256, ffn: 512, heads: 2, kvHeads: 1, headDim: 128, vocab: 1024, positions: 256, window: 8, pattern: 6,
    ropeFactor: 8,
  },
  gemma2: {
    family: 'gemma2', layers: 2, hidden: 256, ffn: 256, heads: 2, kvHeads: 2, headDim: 128, vocab: 1024, positions: 256, window: 8, pattern: 2,
    ropeFactor: 1,
  },
}
const ids = Array.from({ length: 24 }, (_, i) => 500 + ((i * 37) % 500))

async function logitsOf(file, look = () => {}) {
  const model = await loadModel(file, { device: 'cpu', precision: 'f32' })
  try {
    look(model)
    return { logits: (await model.logits([ids]))[0], info: model.info }
  } finally {
    await model.close()
  }
}

// Errors of quantised weights add up over the layers: seen are 0.015, 0.22 and 0.20 of the logits' norm. Any wrong tensor gives about 1.4.
const allowed = { bf16: 1e-6, q8_0: 0.03, q4_0: 0.4, q4_k_m: 0.4 }

for (const [family, shape] of Object.entries(toys)) {
  test(`made-up ${family}: the same model in every format`, async (t) => {
    const folder = temporaryFolder(t), table = makeTable(7, 61)
    writeFolder(path.join(folder, 'hf'), shape, table)
    const { logits: want, info } = await logitsOf(path.join(folder, 'hf'))
    assert.equal(info.parameters, parametersOf(shape))
    assert.equal(want.length, ids.length * shape.vocab)
    assert.ok(want.every(Number.isFinite))
    for (const format of Object.keys(ggufFormats)) {
      const file = path.join(folder, `${format}.gguf`)
      writeGguf(file, shape, table, format, 'toy')
      const got = await logitsOf(file, ({ tokenizer }) => {
        assert.equal(tokenizer.decode(tokenizer.encode('in the Sea, 12\nnow')), 'in the Sea, 12\nnow')
        assert.deepEqual(tokenizer.encode('<start_of_turn>', { special: true }), [family === 'gemma2' ? 106 : 105])
      })
      const error = relativeError(got.logits, want)
      assert.ok(error <= allowed[format], `${format}: relative error ${error}`)
      if (format !== 'bf16') assert.ok(error > allowed[format] / 10, `${format}: relative error ${error}, too small for a quantised file`)
      assert.equal(got.info.localLayers, info.localLayers)
    }
  })
}

test('blocks: read back by the library, as near as the steps of their type allow', async () => {
  const table = makeTable(3, 64), rows = Array.from({ length: 64 }, (_, i) => i)
  // Even steps give an error of step / sqrt(12): 127, 8, 16, 7.5 and 32 steps to the largest of 32, or of 16 in q6_k, which is 2.1 or 1.8 deviations.
  for (const [type, expected] of Object.entries({ q8_0: 0.00505, q4_0: 0.0817, q5_0: 0.0402, q4_k: 0.076, q6_k: 0.0181 })) {
    const weight = await Tensor.from(encodeTable(table, type), [64, 256], { dtype: type, device: 'reference' })
    const error = relativeError(await (await embed(rows, weight)).toArray(), table.numbers)
    assert.ok(error > 0.9 * expected && error < 1.1 * expected, `${type}: relative error ${error}`)
    weight.dispose()
  }
})

test('made-up weights repeat from run to run and differ from seed to seed', () => {
  const [a, b, c] = [makeTable(1, 5), makeTable(1, 5), makeTable(2, 5)]
  assert.deepEqual(a.halves, b.halves)
  assert.notDeepEqual(a.halves, c.halves)
  const mean = a.numbers.reduce((sum, x) => sum + x, 0) / a.numbers.length, square = a.numbers.reduce((sum, x) => sum + x * x, 0) / a.numbers.length
  assert.ok(Math.abs(mean) < 0.003 && Math.abs(Math.sqrt(square) - 0.03) < 0.002, `mean ${mean}, deviation ${Math.sqrt(square)}`)
})

test('true shapes have the true number of parameters, and files the types that public ones mix', () => {
  const counts = { '270M': 268_098_176, '1B': 999_885_952, '4B': 3_880_263_168, 'gemma2-2B': 2_614_341_888 }
  for (const [size, count] of Object.entries(counts)) assert.equal(parametersOf(shapes[size]), count, size)
  const kinds = (size, format) => [...new Set([...tensorsOf(shapes[size])].map((tensor) => typeOf(format, tensor, shapes[size])))].sort()
  assert.deepEqual(kinds('1B', 'q4_0'), ['f32', 'q4_0', 'q8_0'])
  assert.deepEqual(kinds('4B', 'q4_0'), ['f32', 'q4_0', 'q6_k'])
  assert.deepEqual(kinds('1B', 'q4_k_m'), ['f32', 'q4_k', 'q5_0', 'q6_k', 'q8_0'])
  assert.deepEqual(kinds('4B', 'q4_k_m'), ['f32', 'q4_k', 'q6_k'])
})

test('f16: every finite half comes back, and what lies between goes to the nearest, ties to even', () => {
  const value = (half) => {
    const exponent = (half >> 10) & 31, fraction = half & 1023
    return (half & 0x8000 ? -1 : 1) * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : fraction * 2 ** -24)
  }
  for (let half = 0; half < 0x7bff; half++) {
    const here = value(half), next = value(half + 1), middle = (here + next) / 2
    if (f16Bits(here) !== half || f16Bits(-next) !== (0x8000 | (half + 1))) assert.fail(`half ${half}`)
    if (f16Bits(middle) !== half + (half & 1)) assert.fail(`between ${half} and the next`)
    if (f16Bits(here * 0.75 + next * 0.25) !== half || f16Bits(here * 0.25 + next * 0.75) !== half + 1) assert.fail(`near ${half}`)
  }
})

test('costs: what a token reads, what a prompt computes, by hand', () => {
  const info = { layers: 3, localLayers: 2, window: 4, heads: 2, kvHeads: 1, headDim: 8 }
  const tensors = [
    { name: 'model.embed_tokens.weight', dtype: 'BF16', shape: [100, 16], bytes: 3200 },
    { name: 'model.layers.0.mlp.up_proj.weight', dtype: 'BF16', shape: [32, 16], bytes: 1024 },
    { name: 'model.layers.1.mlp.up_proj.weight', dtype: 'Q8_0', shape: [32, 32], bytes: 1088 },
    { name: 'model.layers.0.input_layernorm.weight', dtype: 'BF16', shape: [16], bytes: 32 },
    { name: 'vision_tower.patch.weight', dtype: 'BF16', shape: [9, 9], bytes: 162 },
  ]
  const kept = costOf({ info, tensors }, 'as-is', 'bf16')
  assert.equal(kept.weightBytes, 3200 + 1024 + 1088)
  // Ten positions: two layers see four of them, one sees all; keys and values of one head of 8 in bf16.
  assert.equal(decodeBytes(kept, 10) - kept.weightBytes, (4 + 4 + 10) * 2 * 8 * 2)
  // Queries 0 … 4 see 1 + 2 + 3 + 4 + 4 keys in a window of four, 15 pairs in all without one.
  assert.deepEqual(promptOperations(kept, 5), { bf16: 2 * 5 * 512 + 2 * 1600, int8: 2 * 5 * 1024, f32: 4 * 2 * 8 * (14 + 14 + 15) })
  const quantised = costOf({ info, tensors }, 'int8', 'bf16')
  assert.equal(quantised.weightBytes, 1600 + 4 * 100 + 512 + 4 * 32 + 1024 + 4 * 32)
  assert.deepEqual(quantised.body, { f32: 0, bf16: 0, int8: 1536 })
  assert.deepEqual(costOf({ info, tensors }, 'as-is', 'f32').body, { f32: 1536, bf16: 0, int8: 0 })
  const own = { name: 'lm_head.weight', dtype: 'F32', shape: [100, 16], bytes: 6400 }
  assert.equal(costOf({ info, tensors: [...tensors, own] }, 'as-is', 'bf16').weightBytes, 6400 + 1024 + 1088)
  assert.equal(leastSeconds({ f32: 10, bf16: 20, int8: 30 }, { f32: 5, bf16: null, int8: 10 }), 2 + 4 + 3)
  assert.equal(leastSeconds({ f32: 0, bf16: 20, int8: 0 }, { f32: 5, bf16: 2, int8: 10 }), 4) // widened to f32, which is faster there
})

test('lapidary bench: every figure of a small model, as JSON and as text', async () => {
  const flags = ['--device', 'cpu', '--prefill', '24,40', '--context', '20', '--decode', '6', '--batch', '3', '--repeats', '2', '--no-peaks']
  const { stdout, code, stderr } = await program(['bench', tiny, ...flags, '--weights', 'int8', '--json'])
  assert.equal(code, 0, stderr)
  const report = JSON.parse(stdout)
  assert.equal(report.weights, 'int8')
  assert.deepEqual(report.prefill.map(({ tokens }) => tokens), [24, 40])
  assert.deepEqual(report.batch.map(({ sequences, context }) => [sequences, context]), [[3, 20]])
  assert.ok(report.memory.readyBytes > report.weightBytes)
  assert.ok(report.memory.residentBytes > report.weightBytes && report.weightBytes > report.parameters)
  const rates = [...report.prefill, ...report.decode, ...report.batch].map((figure) => figure.tokensPerSecond)
  for (const figure of [report.loadMs, report.firstTokenMs, ...rates]) {
    assert.ok(figure.low > 0 && figure.low <= figure.median && figure.median <= figure.high && figure.values.length >= 2, JSON.stringify(figure))
  }
  const text = await program(['bench', tiny, '--device', 'cpu', '--prefill', '16', '--context', '', '--repeats', '1'])
  assert.equal(text.code, 0, text.stderr)
  assert.match(text.stdout, /^peaks \(measured\): memory [\d.]+ GB\/s/m)
  assert.match(text.stdout, /^prefill 16 +[\d.]+ tokens\/s .* % of the arithmetic$/m)
  assert.doesNotMatch(text.stdout, /^decode/m)
})

test('lapidary bench: mistakes in the command line', async () => {
  for (const [flags, pattern] of [
    [['--prefill', '12,x'], /--prefill must hold whole numbers from 1 up, received "x"/],
    [['--decode', '0'], /--decode must hold whole numbers/],
    [['--weights', 'int4'], /--weights must be one of/],
    [['--context', '2040', '--decode', '100'], /need 2141 positions, the model has 2048/],
  ]) {
    const { code, stdout, stderr } = await program(['bench', tiny, ...flags])
    assert.deepEqual([code, stdout], [2, ''], flags.join(' '))
    assert.match(stderr, pattern)
  }
})

const defaults = {
  models: '270M,1B', formats: 'int8', precision: 'bf16', prefill: '512', context: '512,4096', decode: '128', batch: '0', threads: '2', rounds: '1',
  repeats: '3', flash: 'both',
}

test('options of a comparison', () => {
  const { models, formats, plan } = readComparison({ ...defaults, cpu: 'avx2' })
  assert.deepEqual([models, formats, plan.contexts, plan.threads], [['270M', '1B'], ['int8'], [512, 4096], 2])
  assert.deepEqual([plan.flash, plan.cpu], [[true, false], 'avx2'])
  const quick = readComparison({ ...defaults, quick: true, decode: '9' }, new Set(['decode']))
  assert.deepEqual([quick.models, quick.plan.prefill, quick.plan.decode, quick.plan.repeats], [['270M'], [128], 9, 1])
  assert.deepEqual(readComparison({ ...defaults, prefill: '' }).plan.prefill, [])
  assert.equal(publicPlan(readComparison({ ...defaults, llama: '/some/where' }).plan).llama, true)
  for (const wrong of [{ models: '3B' }, { formats: 'q2' }, { cpu: 'sse' }, { decode: '-1' }, { context: '5,' }, { batch: 'x' }]) {
    assert.throws(() => readComparison({ ...defaults, ...wrong }), OptionError, JSON.stringify(wrong))
  }
})

test('figures, ratios and bars', () => {
  assert.deepEqual(spread([3, 1, 2, 10]), { median: 2.5, low: 1, high: 10, values: [3, 1, 2, 10] })
  assert.equal(merged([spread([1, 2]), spread([9])]).median, 2)
  const run = (rate, ms, extra) => ({
    prefill: [{ tokens: 512, tokensPerSecond: spread([rate]) }], decode: [{ context: 64, tokensPerSecond: spread([rate]) }], batch: [],
    loadMs: spread([ms]), firstTokenMs: spread([ms]), residentBytes: 5e6, ...extra,
  })
  const theirs = figuresOf(run(100, 30, { api: { decode: { context: 64, tokensPerSecond: spread([50]) } } }))
  const ratios = ratiosOf(figuresOf(run(150, 10)), theirs)
  assert.deepEqual(Object.fromEntries(Object.entries(ratios).map(([name, value]) => [name, Number(value.toFixed(6))])), {
    'prefill 512': 1.5, 'decode after 64': 1.5, 'first token, ms': 3, 'load, ms': 3, 'resident, MB': 1, 'decode after 64, through the API': 3,
  })
  const comparisons = [{ model: '1B', format: 'q4_0', ratios: { 'prefill 512': 0.9, 'decode after 64': 1.2, 'load, ms': 0.1 } }]
  const bars = judge({ comparisons, used: 'avx2', present: ['avx512vnni', 'avx2'] })
  assert.deepEqual(bars.filter(({ state }) => state !== 'unmeasured').map(({ state, value }) => [state, value]), [['missed', 0.9], ['met', 1.2]])
  assert.match(bars.find(({ bar }) => bar.includes('(amx)')).reason, /has no amx/)
  assert.match(bars.find(({ bar }) => bar.includes('(avx512vnni)')).reason, /--cpu avx512vnni/)
  const alone = judge({ comparisons: [{ model: '1B', format: 'q4_0', ratios: {} }], used: 'avx2', present: ['avx2'] })
  assert.ok(alone.every(({ state }) => state === 'unmeasured'))
})

test('bars of the int8 path by itself', () => {
  const product = (rows, shareOfBandwidth, shareOfPeak) => ({ subject: 'gemm-int8', name: `x [1, 2], m = ${rows}`, shareOfBandwidth, shareOfPeak })
  const kernels = { results: [product(1, 0.97, 0.1), product(1, 0.94, 0.1), product(16, 0.9, 0.1), product(512, 0.1, 0.7)] }
  const figure = (value, share) => ({ spread: spread([value]), ...(share ? { share } : {}) })
  const figures = {
    'decode after 512': figure(20, 0.91), 'decode after 4096': figure(18, 0.88), 'decode, 8 after 512': figure(110), 'load, ms': figure(900), 'first token, ms': figure(120),
  }
  const ours = { figures, instructionSet: 'avx2', weightBytes: 1e9, memory: { readyBytes: 1.1e9 } }
  const comparisons = [{ model: '1B', format: 'int8', ratios: {}, ours }]
  const bars = judge({ kernels, comparisons, used: 'avx2', present: ['avx2'] })
  const state = (part) => bars.find(({ bar }) => bar.includes(part)).state
  const seen = ['of 1 row', 'of 16 rows', 'of 512 rows', 'after 512, share of the read', 'loses', 'times one', 'ready after', 'first token', 'once ready'].map(state)
  assert.deepEqual(seen, ['missed', 'met', 'met', 'met', 'missed', 'met', 'met', 'missed', 'met'])
})

test('a report keeps the newest of every part, of one processor alone', () => {
  const last = { processor: 'a', flags: 'x', instructionSet: 'avx2', kernels: { old: true }, models: [{ model: '1B', format: 'int8', at: 1 }, { model: '1B', format: 'bf16', at: 1 }] }
  const next = { ...last, kernels: null, models: [{ model: '1B', format: 'int8', at: 2 }] }
  assert.deepEqual(keepNewest(last, next), { ...next, kernels: { old: true }, models: [{ model: '1B', format: 'bf16', at: 1 }, { model: '1B', format: 'int8', at: 2 }] })
  assert.deepEqual(keepNewest({ ...last, processor: 'b' }, next), next)
  assert.deepEqual(keepNewest({ ...last, instructionSet: 'avx512vnni' }, next), next)
})
