// The block types of GGUF, written: f32 numbers to blocks by the formats' plain rules (no search for better scales, no weights by importance).
// Every function fills `bytes` from `at` with one block of x[i ...].

const bits = new Uint32Array(1), float = new Float32Array(bits.buffer)

/** f32 to the bits of an f16, to nearest even. |x| < 65504; below the smallest normal f16 the steps are 2^-24. */
export function f16Bits(x) {
  float[0] = Math.abs(x)
  const sign = x < 0 ? 0x8000 : 0
  if (float[0] < 2 ** -14) {
    const steps = float[0] * 2 ** 24, below = Math.floor(steps), rest = steps - below
    return sign | (rest > 0.5 || (rest === 0.5 && below & 1) ? below + 1 : below)
  }
  const rounded = bits[0] + 0xfff + ((bits[0] >>> 13) & 1)
  return sign | ((rounded >>> 13) - (112 << 10))
}

function putHalf(bytes, at, x) {
  const half = f16Bits(x)
  bytes[at] = half & 255
  bytes[at + 1] = half >>> 8
}

/** The element of largest magnitude, with its sign. */
function extreme(x, from, count) {
  let most = 0, value = 0
  for (let i = from; i < from + count; i++) {
    const size = Math.abs(x[i])
    if (size > most) {
      most = size
      value = x[i]
    }
  }
  return value
}

function q8_0(x, i, bytes, at) {
  const d = Math.fround(Math.abs(extreme(x, i, 32)) / 127), inverse = d ? 1 / d : 0
  putHalf(bytes, at, d)
  for (let j = 0; j < 32; j++) {
    const scaled = x[i + j] * inverse
    bytes[at + 2 + j] = Math.sign(scaled) * Math.floor(Math.abs(scaled) + 0.5)
  }
}

function q4_0(x, i, bytes, at) {
  const d = Math.fround(extreme(x, i, 32) / -8), inverse = d ? 1 / d : 0
  putHalf(bytes, at, d)
  const level = (v) => Math.min(15, Math.trunc(v * inverse + 8.5))
  for (let j = 0; j < 16; j++) bytes[at + 2 + j] = level(x[i + j]) | (level(x[i + j + 16]) << 4)
}

function q5_0(x, i, bytes, at) {
  const d = Math.fround(extreme(x, i, 32) / -16), inverse = d ? 1 / d : 0
  putHalf(bytes, at, d)
  const level = (v) => Math.min(31, Math.trunc(v * inverse + 16.5))
  let high = 0
  for (let j = 0; j < 16; j++) {
    const a = level(x[i + j]), b = level(x[i + j + 16])
    bytes[at + 6 + j] = (a & 15) | ((b & 15) << 4)
    high |= ((a >> 4) << j) | ((b >> 4) << (j + 16))
  }
  for (let j = 0; j < 4; j++) bytes[at + 2 + j] = high >>> (8 * j)
}

/** Eight sub-blocks of 32: x = scale · q − minimum, scale and minimum in 6 bits of the block's own two. */
function q4_k(x, i, bytes, at) {
  const scales = new Float32Array(8), minima = new Float32Array(8)
  for (let s = 0; s < 8; s++) {
    let low = 0, high = 0
    for (let j = i + 32 * s; j < i + 32 * (s + 1); j++) {
      low = Math.min(low, x[j])
      high = Math.max(high, x[j])
    }
    scales[s] = (high - low) / 15
    minima[s] = -low
  }
  const d = Math.max(...scales) / 63, dMin = Math.max(...minima) / 63
  putHalf(bytes, at, d)
  putHalf(bytes, at + 2, dMin)
  const packed = bytes.subarray(at + 4, at + 16).fill(0), levels = new Uint8Array(256)
  for (let s = 0; s < 8; s++) {
    const sc = d ? Math.round(scales[s] / d) : 0, mn = dMin ? Math.round(minima[s] / dMin) : 0
    if (s < 4) {
      packed[s] |= sc
      packed[s + 4] |= mn
    } else {
      packed[s + 4] |= (sc & 15) | ((mn & 15) << 4)
      packed[s - 4] |= (sc >> 4) << 6
      packed[s] |= (mn >> 4) << 6
    }
    const inverse = sc ? 1 / (d * sc) : 0
    for (let j = 32 * s; j < 32 * (s + 1); j++) levels[j] = Math.max(0, Math.min(15, Math.round((x[i + j] + dMin * mn) * inverse)))
  }
  for (let pair = 0; pair < 4; pair++) {
    for (let j = 0; j < 32; j++) bytes[at + 16 + 32 * pair + j] = levels[64 * pair + j] | (levels[64 * pair + 32 + j] << 4)
  }
}

/** Sixteen sub-blocks of 16: x = d · scale · q, scale a signed byte, q from −32 to 31. */
function q6_k(x, i, bytes, at) {
  const scales = new Float32Array(16)
  for (let s = 0; s < 16; s++) scales[s] = extreme(x, i + 16 * s, 16) / -32
  const d = extreme(scales, 0, 16) / -128, levels = new Uint8Array(256)
  for (let s = 0; s < 16; s++) {
    const scale = d ? Math.max(-128, Math.min(127, Math.round(scales[s] / d))) : 0
    bytes[at + 192 + s] = scale
    const inverse = scale ? 1 / (d * scale) : 0
    for (let j = 16 * s; j < 16 * (s + 1); j++) levels[j] = Math.max(-32, Math.min(31, Math.round(x[i + j] * inverse))) + 32
  }
  putHalf(bytes, at + 208, d)
  for (let half = 0; half < 2; half++) {
    for (let l = 0; l < 32; l++) {
      const [a, b, c, e] = [0, 32, 64, 96].map((step) => levels[128 * half + step + l])
      bytes[at + 64 * half + l] = (a & 15) | ((c & 15) << 4)
      bytes[at + 64 * half + 32 + l] = (b & 15) | ((e & 15) << 4)
      bytes[at + 128 + 32 * half + l] = (a >> 4) | ((b >> 4) << 2) | ((c >> 4) << 4) | ((e >> 4) << 6)
    }
  }
}

/** Code in the file, numbers and bytes of a block, and how one is made. bf16 is copied as it is. */
export const types = {
  f32: { code: 0, elements: 1, bytes: 4 },
  bf16: { code: 30, elements: 1, bytes: 2 },
  q4_0: { code: 2, elements: 32, bytes: 18, block: q4_0 },
  q5_0: { code: 6, elements: 32, bytes: 22, block: q5_0 },
  q8_0: { code: 8, elements: 32, bytes: 34, block: q8_0 },
  q4_k: { code: 12, elements: 256, bytes: 144, block: q4_k },
  q6_k: { code: 14, elements: 256, bytes: 210, block: q6_k },
}

/** All of the table in a type, as bytes. */
export function encodeTable(table, type) {
  const { elements, bytes, block } = types[type]
  if (type === 'f32') return new Uint8Array(table.numbers.buffer)
  if (type === 'bf16') return new Uint8Array(table.halves.buffer)
  const out = new Uint8Array((table.numbers.length / elements) * bytes)
  for (let i = 0, at = 0; i < table.numbers.length; i += elements, at += bytes) block(table.numbers, i, out, at)
  return out
}
