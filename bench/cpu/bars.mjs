// What the project wants of the CPU backend, and what a report shows of it. A bar that this machine cannot measure is listed as such.

/** How many times llama.cpp's speed a figure must reach on an instruction set; 1 where nothing more is wanted. */
function least(set, model, format, figure) {
  const prefill = figure.startsWith('prefill')
  if (figure.startsWith('first token')) return 1
  if (format === 'int8') {
    if (!prefill) return set === 'avx2' ? 1.5 : 1.25
    if (set === 'amx') return model === '270M' ? 6 : figure.includes('2048') ? 7 : 8
    return set === 'avx512vnni' || set === 'avx512bf16' ? 4 : set === 'avx2' || set === 'avxvnni' ? 2 : 1
  }
  if (format === 'bf16') return prefill && set === 'amx' ? 12 : 1
  if (prefill) return set === 'avx2' || set === 'avxvnni' ? 2 : 4
  return format === 'q4_k_m' ? 1 : 1.1
}
const instructionSets = {
  avx2: 'the AVX2 path',
  avxvnni: 'the AVX-VNNI path',
  avx512bw: 'the AVX-512 path without VNNI',
  avx512vnni: 'the VNNI path',
  avx512bf16: 'bf16 dot products',
  amx: 'AMX tiles, int8 and bf16',
}
/** Figures that are speed. */
const held = /^(prefill|decode|first token)/

/** [{ bar, state: 'met' | 'missed' | 'unmeasured', value, reason }] of a report, made with `used` on a processor that has `present`. */
export function judge({ kernels, comparisons, used, present }) {
  const out = []
  for (const [name, what] of Object.entries(instructionSets)) {
    const bar = `${what} (${name}) beside llama.cpp`
    if (!present.includes(name)) out.push({ bar, state: 'unmeasured', reason: `this processor has no ${name}, or hides it` })
    else if (name !== used) out.push({ bar, state: 'unmeasured', reason: `run again with --cpu ${name}` })
    else out.push(...ratioBars(name, comparisons))
  }
  return [...out, ...kernelBars(used, kernels), ...comparisons.filter(({ format, ours }) => format === 'int8' && ours).flatMap(modelBars)]
}

const atLeast = (bar, value, bound) => ({ bar: `${bar}: at least ${bound}`, state: value >= bound ? 'met' : 'missed', value })
const atMost = (bar, value, bound) => ({ bar: `${bar}: at most ${bound}`, state: value <= bound ? 'met' : 'missed', value })

function ratioBars(name, comparisons) {
  if (comparisons.every(({ ratios }) => Object.keys(ratios).length === 0)) {
    return [{ bar: `${instructionSets[name]} (${name}) beside llama.cpp`, state: 'unmeasured', reason: 'no --llama FOLDER was given' }]
  }
  return comparisons.flatMap(({ model, format, ratios }) =>
    Object.entries(ratios).filter(([figure]) => held.test(figure)).map(([figure, value]) =>
      atLeast(`${name}, ${model} ${format}, ${figure}, times llama.cpp`, value, least(name, model, format, figure))))
}

/** int8 products of the models' shapes: the share of the read bandwidth for few rows, of the arithmetic for many; the least of the shapes. */
function kernelBars(set, kernels) {
  const shares = (rows, key) => (kernels?.results ?? []).filter(({ subject, name }) => subject === 'gemm-int8' && name.endsWith(`, m = ${rows}`)).map((r) => r[key])
  const bars = [[1, 'shareOfBandwidth', 0.95], [16, 'shareOfBandwidth', 0.85], [512, 'shareOfPeak', 0.6]]
  return bars.flatMap(([rows, key, bound]) => {
    const all = shares(rows, key), of = key === 'shareOfPeak' ? 'int8 peak' : 'read bandwidth'
    return all.length ? [atLeast(`${set}, int8 product of ${rows} row${rows > 1 ? 's' : ''}, share of the ${of}, least of ${all.length} shapes`, Math.min(...all), bound)] : []
  })
}

/** What is wanted of our int8 path by itself. */
function modelBars({ model, ours: { figures, instructionSet: set, weightBytes, memory } }) {
  const value = (name) => figures[name]?.spread.median, name = `${set}, ${model} int8`
  const decode = Object.keys(figures).map((key) => [Number(/^decode after (\d+)$/.exec(key)?.[1]), key]).filter(([at]) => at > 0).sort(([a], [b]) => a - b)
  const [, short] = decode[0] ?? [], [, long] = decode.at(-1) ?? []
  const together = Object.keys(figures).map((key) => /^decode, (\d+) after/.exec(key)).find(Boolean)
  const out = []
  if (short && figures[short].share) out.push(atLeast(`${name}, ${short}, share of the read bandwidth`, figures[short].share, 0.9))
  if (decode.length > 1) out.push(atMost(`${name}, what ${long} loses beside ${short}`, 1 - value(long) / value(short), 0.08))
  if (together && short && together[1] === '8') out.push(atLeast(`${name}, ${together.input}, times one sequence`, value(together.input) / value(short), 5))
  if (model === '1B') {
    out.push(atMost(`${name}, ready after, ms`, value('load, ms'), 1500), atMost(`${name}, first token of 16, ms`, value('first token, ms'), 100))
    if (memory?.readyBytes) out.push(atMost(`${name}, resident once ready, beside the weights`, memory.readyBytes / weightBytes, 1.2))
  }
  return out
}
