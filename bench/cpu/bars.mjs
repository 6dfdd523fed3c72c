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

/** [{ bar, state: 'met' | 'missed' | 'unmeasured', value, reason }] of comparisons, made with `used` on a processor that has `present`. */
export function judge({ comparisons, used, present }) {
  const out = []
  for (const [name, what] of Object.entries(instructionSets)) {
    const bar = `${what} (${name}) beside llama.cpp`
    if (!present.includes(name)) out.push({ bar, state: 'unmeasured', reason: `this processor has no ${name}, or hides it` })
    else if (name !== used) out.push({ bar, state: 'unmeasured', reason: `run again with --cpu ${name}` })
    else out.push(...ratioBars(name, comparisons))
  }
  return out
}

function ratioBars(name, comparisons) {
  if (comparisons.every(({ ratios }) => Object.keys(ratios).length === 0)) {
    return [{ bar: `${instructionSets[name]} (${name}) beside llama.cpp`, state: 'unmeasured', reason: 'no --llama FOLDER was given' }]
  }
  return comparisons.flatMap(({ model, format, ratios }) =>
    Object.entries(ratios).filter(([figure]) => held.test(figure)).map(([figure, value]) => {
      const times = least(name, model, format, figure)
      return { bar: `${name}, ${model} ${format}, ${figure}: at least ${times} times llama.cpp`, state: value >= times ? 'met' : 'missed', value }
    }))
}
