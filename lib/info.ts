/** What a model is, as its files say. */

import type { SamplingDefaults } from './sampling.js'

export interface ModelInfo {
  /** 'gemma2' or 'gemma3'. */
  readonly family: string
  readonly parameters: number
  readonly layers: number
  readonly hidden: number
  readonly ffn: number
  readonly vocab: number
  readonly heads: number
  readonly kvHeads: number
  readonly headDim: number
  readonly maxPositions: number
  /** Keys that a local layer's query sees, itself included; 0 when no layer is local. */
  readonly window: number
  readonly localLayers: number
  readonly bosId: number
  /** Tokens that end a generation. */
  readonly eosIds: readonly number[]
  /** What a user should know, one sentence each. */
  readonly notes: readonly string[]
  readonly fileBytes: number
  /** Sampling that the model's generation config asks for; empty: it asks for greedy. */
  readonly defaults: SamplingDefaults
}
