/**
 * The operations a Gemma is made of, one by one, on any device. Shapes are row-major; a matrix product's weight is [out, in]. Every function gives
 * new tensors, runs off the JavaScript thread and in the order of the calls. On 'cuda' a promise settles when the work is queued: synchronize() or
 * toArray() waits for it.
 */

import { awaitNative, callSite, type CallSite, invalid } from '../errors.js'
import { native } from '../loader.js'
import { choice, describe, integer, number, readOptions, tokenIds } from '../options.js'
import { completeSampling, samplingReaders, type SamplingSettings } from '../sampling.js'
import { type DeviceChoice, resolveDevice } from '../devices.js'
import { inOrder } from './order.js'
import { KvCache, Tensor } from './tensor.js'

const actReader = choice('f32', 'bf16')
const finite = number(-Infinity, Infinity)

interface Call {
  tensors: (Tensor | undefined)[]
  cache?: KvCache
  numbers?: number[]
  ids?: Int32Array
  dtype?: 'f32' | 'bf16'
}

async function run(site: CallSite, name: string, device: Tensor['device'], call: Call): Promise<Tensor[]> {
  const handles = call.tensors.map((t) => t?.handle ?? null)
  return inOrder(device, async () => {
    const made = await awaitNative(site, () =>
      native().op(name, device, handles, call.cache?.handle ?? null, call.numbers ?? [], call.ids ?? new Int32Array(0), call.dtype ?? 'f32'))
    return made.map((handle) => new Tensor(handle))
  })
}

function tensor(value: unknown, name: string): Tensor {
  if (value instanceof Tensor) return value
  throw invalid(`${name} must be a Tensor, received ${describe(value)}`)
}

const one = async (tensors: Promise<Tensor[]>): Promise<Tensor> => (await tensors)[0]!

export interface RmsNormOptions {
  /** Default 1e-6. */
  eps?: number
  /** Added to the weight: 1 for Gemma's weights as checkpoints hold them, 0 for whole ones (GGUF). Default 1. */
  offset?: number
  /** Of the result. Default 'f32'. */
  dtype?: 'f32' | 'bf16'
}

/** x · (1 / sqrt(mean(x²) + eps)) · (offset + weight) over the last dimension. x f32 [..., dim], weight f32 [dim] → [..., dim]. */
export async function rmsNorm(x: Tensor, weight: Tensor, options?: RmsNormOptions): Promise<Tensor> {
  const site = callSite(rmsNorm)
  const { eps = 1e-6, offset = 1, dtype = 'f32' } = readOptions('rmsNorm', options, { eps: number(0, 1), offset: finite, dtype: actReader })
  return one(run(site, 'rmsNorm', tensor(x, 'rmsNorm: x').device, { tensors: [x, tensor(weight, 'rmsNorm: weight')], numbers: [eps, offset], dtype }))
}

export interface LinearOptions {
  /** f32 [out]: the scales of an i8 weight, whose rows are their numbers times their scale. */
  scales?: Tensor
  /**
   * What an i8 weight does with x: 'none' computes on x as it is, 'token' quantises each row with a scale of its own, a number is the one scale for
   * all. Default 'token'.
   */
  activations?: 'none' | 'token' | number
}

/** x · weightᵀ. x f32 or bf16 [rows, in], weight [out, in] of any dtype but i32 and u8 → f32 [rows, out]. */
export async function linear(x: Tensor, weight: Tensor, options?: LinearOptions): Promise<Tensor> {
  const site = callSite(linear)
  const read = readOptions('linear', options, { scales: tensor, activations: (v, name) => (typeof v === 'number' ? number(0, Infinity, true)(v, name) : choice('none', 'token')(v, name)) })
  const { scales, activations = 'token' } = read
  const inputScale = activations === 'none' ? -1 : activations === 'token' ? 0 : activations
  return one(run(site, 'linear', tensor(x, 'linear: x').device, { tensors: [x, tensor(weight, 'linear: weight'), scales], numbers: [inputScale] }))
}

/**
 * out[m][n] = (Σ a[m][k] · b[n][k]) · (aScales[m] · bScales[n]), the sum exact in int32.
 * a i8 [m, k], aScales f32 [m], b i8 [n, k], bScales f32 [n] → f32 [m, n]. On cuda k must be a multiple of 16.
 */
export async function gemmInt8(a: Tensor, aScales: Tensor, b: Tensor, bScales: Tensor): Promise<Tensor> {
  const site = callSite(gemmInt8)
  const tensors = [tensor(a, 'gemmInt8: a'), tensor(aScales, 'gemmInt8: aScales'), tensor(b, 'gemmInt8: b'), tensor(bScales, 'gemmInt8: bScales')]
  return one(run(site, 'gemmInt8', a.device, { tensors }))
}

/**
 * The seconds of each of `calls` products on the processor, one after another without a trip to JavaScript, as a model has them: the inputs are taken in
 * turn, and all results go to the same memory. An input is what the product takes: for 'linear' x, the weight and an i8 weight's scales, x being
 * quantised row by row; for 'gemmInt8' a, aScales, b and bScales.
 */
export async function timeProducts(product: 'linear' | 'gemmInt8', inputs: ReadonlyArray<readonly Tensor[]>, calls: number): Promise<number[]> {
  const site = callSite(timeProducts)
  choice('linear', 'gemmInt8')(product, 'timeProducts: product')
  integer(1)(calls, 'timeProducts: calls')
  if (!Array.isArray(inputs) || !inputs.every(Array.isArray)) throw invalid(`timeProducts: inputs must be arrays of tensors, received ${describe(inputs)}`)
  const handles = inputs.map((list, i) => list.map((t, j) => tensor(t, `timeProducts: inputs[${i}][${j}]`).handle))
  const device = inputs[0]?.[0]?.device ?? 'cpu'
  if (device === 'cuda') throw invalid("timeProducts: on 'cuda' a product is only queued: time it with synchronize()")
  return inOrder(device, () => awaitNative(site, () => native().timeOp(product, device, handles, product === 'linear' ? [0] : [], calls)))
}

/**
 * The weight [out, in] in the form that a model's weights have on its device, for products with it again and again: laid out once, here, rather than
 * in every product. int8 products have the same bits; those of other types are summed in a model's order rather than in that of plain rows. A tensor of
 * its own, about as large as the weight; where a device or a type has no such form ('cuda', 'reference', f32), it shares the weight's memory.
 */
export async function pack(weight: Tensor): Promise<Tensor> {
  const site = callSite(pack)
  return one(run(site, 'pack', tensor(weight, 'pack: weight').device, { tensors: [weight] }))
}

/**
 * Symmetric int8: q = round(x / scale) to nearest even, ±127; scale = max(|row|, 1e-8) / 127, or the one given.
 * x f32 or bf16 [rows, dim] → { q: i8 [rows, dim], scales: f32 [rows] }.
 */
export async function quantizeRows(x: Tensor, options?: { scale?: number }): Promise<{ q: Tensor; scales: Tensor }> {
  const site = callSite(quantizeRows)
  const { scale = 0 } = readOptions('quantizeRows', options, { scale: number(0, Infinity, true) })
  const [q, scales] = await run(site, 'quantizeRows', tensor(x, 'quantizeRows: x').device, { tensors: [x], numbers: [scale] })
  return { q: q!, scales: scales! }
}

/** Rows of a table times a factor. table [vocab, dim] of any weight dtype (i8 with scales f32 [vocab]) → f32 [ids, dim]. */
export async function embed(ids: ArrayLike<number>, table: Tensor, options?: { scale?: number; scales?: Tensor }): Promise<Tensor> {
  const site = callSite(embed)
  const { scale = 1, scales } = readOptions('embed', options, { scale: finite, scales: tensor })
  const rows = tokenIds(ids instanceof Int32Array ? ids : Array.from(ids), 'embed: ids', tensor(table, 'embed: table').shape[0] ?? 0)
  return one(run(site, 'embed', table.device, { tensors: [table, scales], numbers: [scale], ids: rows }))
}

/** gelu(gate) · up, element by element, with the tanh form of gelu. f32, f32 of one shape → that shape. */
export async function geglu(gate: Tensor, up: Tensor, options?: { dtype?: 'f32' | 'bf16' }): Promise<Tensor> {
  const site = callSite(geglu)
  const { dtype = 'f32' } = readOptions('geglu', options, { dtype: actReader })
  return one(run(site, 'geglu', tensor(gate, 'geglu: gate').device, { tensors: [gate, tensor(up, 'geglu: up')], dtype }))
}

/** x + y, f32 of one shape. */
export async function add(x: Tensor, y: Tensor): Promise<Tensor> {
  const site = callSite(add)
  return one(run(site, 'add', tensor(x, 'add: x').device, { tensors: [x, tensor(y, 'add: y')] }))
}

/** cap · tanh(x / cap), f32. */
export async function softCap(x: Tensor, cap: number): Promise<Tensor> {
  const site = callSite(softCap)
  return one(run(site, 'softCap', tensor(x, 'softCap: x').device, { tensors: [x], numbers: [number(0, Infinity, true)(cap, 'softCap: cap')] }))
}

/** Rotary embedding of pairs (j, j + dim / 2) by position · base^(-2j / dim) / factor. x f32 [tokens, heads, dim] → the same shape. */
export async function rope(x: Tensor, positions: ArrayLike<number>, options?: { base?: number; factor?: number }): Promise<Tensor> {
  const site = callSite(rope)
  const { base = 10_000, factor = 1 } = readOptions('rope', options, { base: number(1, Infinity), factor: number(0, Infinity, true) })
  const ids = tokenIds(positions instanceof Int32Array ? positions : Array.from(positions), 'rope: positions', 1 << 30)
  return one(run(site, 'rope', tensor(x, 'rope: x').device, { tensors: [x], numbers: [base, factor], ids }))
}

export interface AttentionOptions {
  /** Multiplies q · k. Default headDim^-0.5. */
  scale?: number
  /** softcap · tanh(s / softcap) of the scores, as Gemma 2 has it. Default: none. */
  softcap?: number
  /** Keys a query may see, itself included. Default: all earlier ones. */
  window?: number
  /** Position of the first query in the cache. Default: the queries are the last positions. */
  firstPosition?: number
  /** Keys and values that every query sees whatever its window: f32 or bf16 [kvHeads, tokens, headDim]. `q`: the queries as they meet it, like q. */
  prefix?: { k: Tensor; v: Tensor; q?: Tensor }
  /** Ranges [first, end) of positions that see each other whatever the order and window: the tokens of one picture. */
  imageBlocks?: readonly (readonly [number, number])[]
  /** Of the result. Default 'f32'. */
  dtype?: 'f32' | 'bf16'
}

/**
 * Causal attention of grouped heads over a cache: query head h reads key-value head h / (heads / kvHeads).
 * q f32 [tokens, heads, headDim] at consecutive positions, whose keys are in the cache already → [tokens, heads, headDim].
 * On cuda with a bf16 or i8 cache the queries are rounded to bf16.
 */
export async function attention(q: Tensor, cache: KvCache, options?: AttentionOptions): Promise<Tensor> {
  const site = callSite(attention)
  tensor(q, 'attention: q')
  if (!(cache instanceof KvCache)) throw invalid(`attention: cache must be a KvCache, received ${describe(cache)}`)
  const read = readOptions('attention', options, {
    scale: number(0, Infinity, true), softcap: number(0, Infinity, true), window: integer(1), firstPosition: integer(0),
    prefix: prefixReader, imageBlocks: blocksReader, dtype: actReader,
  })
  const { scale = cache.headDim ** -0.5, softcap = 0, window = 0, firstPosition, prefix, imageBlocks = [], dtype = 'f32' } = read
  const tensors = [q, prefix?.k, prefix?.v, prefix?.q], ids = Int32Array.from(imageBlocks.flat())
  // The cache's length counts once the appends before this call have run.
  await inOrder(q.device, async () => {})
  const first = firstPosition ?? cache.length - (q.shape[0] ?? 0)
  return one(run(site, 'attention', q.device, { tensors, cache, numbers: [scale, softcap, window, first], ids, dtype }))
}

function prefixReader(value: unknown, name: string): NonNullable<AttentionOptions['prefix']> {
  const { k, v, q } = readOptions(name, value, { k: tensor, v: tensor, q: tensor })
  if (!k || !v) throw invalid(`${name} needs both k and v`)
  return q ? { k, v, q } : { k, v }
}

function blocksReader(value: unknown, name: string): readonly (readonly [number, number])[] {
  if (!Array.isArray(value)) throw invalid(`${name} must be an array of [first, end] pairs, received ${describe(value)}`)
  return value.map((pair: unknown, i) => {
    if (!Array.isArray(pair) || pair.length !== 2) throw invalid(`${name}[${i}] must be [first, end], received ${describe(pair)}`)
    const first = integer(0)(pair[0], `${name}[${i}][0]`)
    return [first, integer(first)(pair[1], `${name}[${i}][1]`)] as const
  })
}

export interface SampleOptions {
  /** Of each row's random numbers. Default: row r has seed r. */
  seeds?: readonly (number | bigint)[]
  /** The index of the draw: the same seed and counter give the same token on every device. Default 0. */
  counter?: number
}

/** Draws one token per row of f32 logits [rows, vocab] → ids [rows]. `settings`: one for all rows, or one per row; temperature is 1 unless given. */
export async function sample(logits: Tensor, settings: SamplingSettings | readonly SamplingSettings[] = {}, options?: SampleOptions): Promise<Int32Array> {
  const site = callSite(sample)
  const [rows = 0] = tensor(logits, 'sample: logits').shape
  const { counter = 0, seeds = Array.from({ length: rows }, (_, r) => BigInt(r)) } = readOptions('sample', options, { counter: integer(0), seeds: seedsReader })
  const list = Array.isArray(settings) ? (settings as readonly SamplingSettings[]) : Array.from({ length: rows }, () => settings as SamplingSettings)
  if (list.length !== rows || seeds.length !== rows) throw invalid(`sample: ${rows} rows need as many settings and seeds, received ${list.length} and ${seeds.length}`)
  const read = list.map((s) => completeSampling(readOptions('sample', s, { ...samplingReaders }), { temperature: 1 }))
  return inOrder(logits.device, () => awaitNative(site, () => native().sampleOp(logits.handle, read, seeds, counter)))
}

function seedsReader(value: unknown, name: string): bigint[] {
  if (!Array.isArray(value)) throw invalid(`${name} must be an array of integers, received ${describe(value)}`)
  return value.map((seed: unknown, i) => {
    const valid = typeof seed === 'bigint' ? seed >= 0n && seed < 1n << 64n : typeof seed === 'number' && Number.isSafeInteger(seed) && seed >= 0
    if (!valid) throw invalid(`${name}[${i}] must be an integer from 0 to 2^64 - 1, received ${describe(seed)}`)
    return BigInt(seed as number | bigint)
  })
}

/** Resolves when everything called before has finished on the device. Default device 'auto'. */
export async function synchronize(options?: { device?: DeviceChoice }): Promise<void> {
  const site = callSite(synchronize)
  const { device = 'auto' } = readOptions('synchronize', options, { device: choice('reference', 'cpu', 'cuda', 'auto') })
  await run(site, 'synchronize', resolveDevice(device), { tensors: [] })
}
