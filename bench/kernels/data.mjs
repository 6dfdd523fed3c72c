// Gemma's shapes, and numbers for them that repeat from run to run.
//
// Numbers are k / 64 with -128 <= k < 128: exact in f32 and in bf16, products too, so plain arithmetic on the host has the kernel's own inputs.
// Large arrays repeat one block of a prime length: no two rows are alike, and they are made at the speed of copying.

/** Gemma 3: the sizes of a layer. 270M is what --quick runs. */
const models = {
  '270M': { label: '270M', hidden: 640, ffn: 2048, heads: 4, kvHeads: 1, headDim: 256, window: 512 },
  '1B': { label: '1B', hidden: 1152, ffn: 6912, heads: 4, kvHeads: 1, headDim: 256, window: 512 },
  '4B': { label: '4B', hidden: 2560, ffn: 10240, heads: 8, kvHeads: 4, headDim: 256, window: 1024 },
  '27B': { label: '27B', hidden: 5376, ffn: 21504, heads: 32, kvHeads: 16, headDim: 128, window: 1024 },
}

export const modelsOf = (session) => (session.quick ? [models['270M']] : [models['1B'], models['4B']])
/** The ones to run attention at: head_dim 256, and the 128 of the largest. */
export const attentionModelsOf = (session) =>
  session.quick ? [models['270M'], { ...models['27B'], label: '27B / 8', heads: 4, kvHeads: 2, window: 128 }] : [models['1B'], models['4B'], models['27B']]

/** A layer's matrix products: [out, in]. */
export function matricesOf(session) {
  return modelsOf(session).flatMap((m) => [
    { label: `${m.label} qkv`, n: (m.heads + 2 * m.kvHeads) * m.headDim, k: m.hidden },
    { label: `${m.label} gate_up`, n: 2 * m.ffn, k: m.hidden },
    { label: `${m.label} down`, n: m.hidden, k: m.ffn },
  ])
}

function random(seed) {
  let state = Math.imul(seed, 0x9e3779b1) >>> 0
  return () => {
    state = (state + 0x6d2b79f5) >>> 0
    let t = Math.imul(state ^ (state >>> 15), state | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return (t ^ (t >>> 14)) >>> 0
  }
}

/** Repeats the first `period` elements of the array to its end. */
function repeat(array, period) {
  for (let filled = Math.min(period, array.length); filled < array.length; filled *= 2) array.copyWithin(filled, 0, Math.min(filled, array.length - filled))
  return array
}

const period = 65_521

export function numbers(count, seed) {
  const next = random(seed), out = new Float32Array(count)
  for (let i = 0; i < Math.min(count, period); i++) out[i] = ((next() >>> 24) - 128) / 64
  return repeat(out, period)
}

/** −127 … 127. */
export function int8s(count, seed) {
  const next = random(seed), out = new Int8Array(count)
  for (let i = 0; i < Math.min(count, period); i++) out[i] = (next() % 255) - 127
  return repeat(out, period)
}

/** 1/1024 … 2/1024, all f32 bits in use. */
export function scales(count, seed) {
  const next = random(seed)
  return Float32Array.from({ length: count }, () => (1 + next() / 2 ** 32) / 1024)
}

/** About normal with deviation 3, none repeated: logits. */
export function bells(count, seed) {
  const next = random(seed), uniform = () => next() / 2 ** 31 - 1
  return Float32Array.from({ length: count }, () => 3 * (uniform() + uniform() + uniform()))
}

const blockBytes = { q8_0: 34, q4_0: 18 }

/** Rows of GGUF blocks of 32: an f16 scale of 2^-4 … 2^-7, then the numbers. */
function blocks(dtype, count, seed) {
  const size = blockBytes[dtype], next = random(seed), out = new Uint8Array(count * size), distinct = Math.min(count, 4093)
  for (let b = 0; b < distinct; b++) {
    for (let i = 2; i < size; i++) out[b * size + i] = next() >>> 24
    out[b * size] = 0
    out[b * size + 1] = (11 - (next() >>> 30)) << 2 // the high byte of an f16 whose exponent is 11 - 15 - (0 … 3)
  }
  return repeat(out, distinct * size)
}

function dequantized(dtype, bytes, row, k) {
  const size = blockBytes[dtype], out = new Float64Array(k)
  for (let i = 0; i < k; i++) {
    const block = (row * k + i - (i % 32)) / 32 * size, j = i % 32
    const d = 2 ** ((bytes[block + 1] >> 2) - 15)
    if (dtype === 'q8_0') out[i] = d * ((bytes[block + 2 + j] << 24) >> 24)
    else out[i] = d * ((j < 16 ? bytes[block + 2 + j] & 15 : bytes[block + 2 + j - 16] >> 4) - 8)
  }
  return out
}

/** A weight [n, k] of f32, bf16, i8, q8_0 or q4_0: what Tensor.from takes, its bytes in memory, and any row as plain numbers (i8: unscaled). */
export function weight(dtype, n, k, seed) {
  if (dtype in blockBytes) {
    const data = blocks(dtype, (n * k) / 32, seed)
    return { data, bytes: data.length, row: (r) => dequantized(dtype, data, r, k) }
  }
  const data = dtype === 'i8' ? int8s(n * k, seed) : numbers(n * k, seed)
  return { data, bytes: n * k * { f32: 4, bf16: 2, i8: 1 }[dtype], row: (r) => data.subarray(r * k, (r + 1) * k) }
}

export function dot(a, b) {
  let sum = 0
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i]
  return sum
}

/** Symmetric int8 as docs/numerics.md has it, in f32 arithmetic: { q, scale }. */
export function quantized(row) {
  const f = Math.fround
  let most = 0
  for (const x of row) most = Math.max(most, Math.abs(x))
  const scale = f(Math.max(most, f(1e-8)) / 127), inverse = f(1 / scale)
  const q = Int8Array.from(row, (x) => {
    const y = f(x * inverse), down = Math.floor(y), rest = y - down
    const nearest = rest > 0.5 || (rest === 0.5 && down % 2 !== 0) ? down + 1 : down
    return Math.max(-127, Math.min(127, nearest))
  })
  return { q, scale }
}
