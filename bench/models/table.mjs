// The random numbers that all weights are taken from. A tensor is a stretch of one table of blocks of 256 numbers that repeats, begun anew at another
// block with every repetition; so a table is quantised once per type and a tensor of any type is copies of its parts.

/** Numbers in one block: the longest block of a format; shorter ones divide it. */
export const blockElements = 256

/** Of every weight: with Gemma's norms around each product, any size near the usual keeps activations and logits of order 1. */
const deviation = 0.03

function hash(x) {
  x = Math.imul(x ^ (x >>> 16), 0x7feb352d)
  x = Math.imul(x ^ (x >>> 15), 0x846ca68b)
  return (x ^ (x >>> 16)) >>> 0
}

const hashText = (text, seed) => [...text].reduce((h, c) => hash(h ^ c.codePointAt(0)), hash(seed))

const bits = new Uint32Array(1), float = new Float32Array(bits.buffer)

/** The bits of x as bf16, rounded to nearest even. x is finite. */
export function bf16Bits(x) {
  float[0] = x
  return (bits[0] + 0x7fff + ((bits[0] >>> 16) & 1)) >>> 16
}

/** bf16 numbers, about normal: as bits, and as the same numbers in f32. */
export function makeTable(seed, blocks) {
  const count = blocks * blockElements, halves = new Uint16Array(count), numbers = new Float32Array(count), words = new Uint32Array(numbers.buffer)
  // By the sum of four random bytes, whose mean is 510 and whose deviation is 147.8.
  const values = Uint16Array.from({ length: 1021 }, (_, sum) => bf16Bits(((sum - 510) / 147.8) * deviation))
  let state = hash(seed) | 1
  for (let i = 0; i < count; i++) {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    halves[i] = values[(state & 255) + ((state >>> 8) & 255) + ((state >>> 16) & 255) + (state >>> 24)]
    words[i] = halves[i] << 16
  }
  return { seed, blocks, halves, numbers }
}

/** The stretches of the table that make up a tensor of so many elements: [first block, elements] one after another. */
export function* stretches(table, name, elements) {
  const start = hashText(name, table.seed)
  for (let left = elements, turn = 0; left > 0; turn++) {
    const first = hash(start + turn) % table.blocks
    const count = Math.min(left, (table.blocks - first) * blockElements)
    yield [first, count]
    left -= count
  }
}
