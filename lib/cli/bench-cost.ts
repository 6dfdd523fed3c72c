/** What a model costs at least: bytes that must be read for one token, operations of a prompt, and the time that a machine's peaks allow. */

import type { Inspection, ModelInfo, Precision, TensorFact } from '../index.js'
import type { Peaks } from '../ops/index.js'

export type WeightsChoice = 'as-is' | 'bf16' | 'int8'
/** Which peak bounds a product. */
export type Unit = 'f32' | 'bf16' | 'int8'

export interface Cost {
  /** Weights of all matrices, the head's once and an embedding that is not the head's not at all. */
  readonly weightBytes: number
  /** Weights of matrices that every token of a prompt meets, by the peak that bounds their products. */
  readonly body: Readonly<Record<Unit, number>>
  /** Weights of the head, which only a token to be sampled from meets. */
  readonly head: number
  readonly headUnit: Unit
  readonly info: ModelInfo
  readonly kvElementBytes: number
}

const isEmbedding = (name: string): boolean => /(^|\.)embed_tokens\.weight$|^token_embd\.weight$/.test(name)
const isHead = (name: string): boolean => /(^|\.)lm_head\.weight$|^output\.weight$/.test(name)
const isVision = (name: string): boolean => /vision_tower|vision_model|multi_?modal_projector/.test(name)
const wide = new Set(['f32', 'f16', 'bf16', 'i8'])

const elements = ({ shape }: TensorFact): number => shape.reduce((a, b) => a * b, 1)

/** Bytes of a matrix once it is loaded. */
function loadedBytes(tensor: TensorFact, weights: WeightsChoice): number {
  if (weights === 'int8') return elements(tensor) + 4 * tensor.shape[0]!
  return weights === 'bf16' && tensor.dtype.toLowerCase() !== 'i8' ? 2 * elements(tensor) : tensor.bytes
}

/** Blocks are multiplied as integers where inputs may be rounded; bf16 weights by bf16 products where inputs are bf16. */
function unitOf(tensor: TensorFact, weights: WeightsChoice, precision: Precision): Unit {
  const dtype = tensor.dtype.toLowerCase()
  if (weights === 'int8' || (weights === 'as-is' && dtype === 'i8')) return 'int8'
  if (precision === 'f32') return 'f32'
  if (weights === 'bf16' || dtype === 'bf16') return 'bf16'
  return wide.has(dtype) ? 'f32' : 'int8'
}

export function costOf({ info, tensors }: Inspection, weights: WeightsChoice, precision: Precision): Cost {
  const matrices = tensors.filter(({ name, shape }) => shape.length === 2 && !isVision(name))
  const head = matrices.find(({ name }) => isHead(name)) ?? matrices.find(({ name }) => isEmbedding(name))
  const layers = matrices.filter(({ name }) => !isHead(name) && !isEmbedding(name))
  const body: Record<Unit, number> = { f32: 0, bf16: 0, int8: 0 }
  let weightBytes = head ? loadedBytes(head, weights) : 0
  for (const tensor of layers) {
    body[unitOf(tensor, weights, precision)] += elements(tensor)
    weightBytes += loadedBytes(tensor, weights)
  }
  const headUnit = head ? unitOf(head, weights, precision) : 'f32'
  return { weightBytes, body, head: head ? elements(head) : 0, headUnit, info, kvElementBytes: precision === 'f32' ? 4 : 2 }
}

/** Sums over all layers of f(the most keys that a query of the layer sees). */
function overLayers(info: ModelInfo, f: (limit: number) => number): number {
  return info.localLayers * f(info.window || Infinity) + (info.layers - info.localLayers) * f(Infinity)
}

/** Bytes read for one token of one sequence whose cache holds so many positions: all weights, and the keys and values that it sees. */
export function decodeBytes(cost: Cost, positions: number): number {
  return cost.weightBytes + kvBytes(cost, positions)
}

export function kvBytes({ info, kvElementBytes }: Cost, positions: number): number {
  return overLayers(info, (limit) => Math.min(positions, limit)) * 2 * info.kvHeads * info.headDim * kvElementBytes
}

/** Operations on a prompt, a multiplication and an addition being two: products with weights, the head once, and attention's scores and values. */
export function promptOperations(cost: Cost, tokens: number): Record<Unit, number> {
  const { info, body } = cost
  // Of the queries 0 … tokens − 1, query t sees min(t + 1, limit) keys.
  const pairs = (limit: number): number => {
    const growing = Math.min(tokens, limit)
    return (growing * (growing + 1)) / 2 + (tokens - growing) * (limit === Infinity ? 0 : limit)
  }
  const operations = { f32: 2 * tokens * body.f32, bf16: 2 * tokens * body.bf16, int8: 2 * tokens * body.int8 }
  operations[cost.headUnit] += 2 * cost.head
  operations.f32 += 4 * info.heads * info.headDim * overLayers(info, pairs)
  return operations
}

/** The shortest time in seconds that the peaks allow for these operations; bf16 may be widened to f32, which some processors do faster than their bf16 products. */
export function leastSeconds(operations: Readonly<Record<Unit, number>>, peaks: Peaks): number {
  return operations.f32 / peaks.f32 + operations.bf16 / Math.max(peaks.bf16 ?? 0, peaks.f32) + operations.int8 / peaks.int8
}
