/** How the next token is drawn: the settings, their ranges, and the distribution that they give. */

import { callNative, invalid } from './errors.js'
import { native } from './loader.js'
import type { NativeSampling } from './native.js'
import { type Reader, describe, integer, number, readOptions, tokenIds } from './options.js'

/** Applied in this order: logit bias, penalties, token mask, temperature, top-k, top-p, min-p, softmax. */
export interface SamplingSettings {
  /** 0 takes the likeliest token always; higher is more varied. Default: the model's own; 0 when the model says nothing and nothing below narrows the choice, else 1. */
  temperature?: number
  /** Keep the k likeliest tokens; 0 keeps all. Default: the model's own, else 0. */
  topK?: number
  /** Keep the likeliest tokens that together reach this probability; 1 keeps all. Default: the model's own, else 1. */
  topP?: number
  /** Keep tokens at least this likely, relative to the likeliest; 0 keeps all. Default 0. */
  minP?: number
  /** Divides (or multiplies, if negative) the logits of tokens seen before, prompt included; 1 is off. Default 1. */
  repetitionPenalty?: number
  /** Subtracted once from the logits of tokens generated before. Default 0. */
  presencePenalty?: number
  /** Subtracted for every time a token was generated before. Default 0. */
  frequencyPenalty?: number
  /** Added to the raw logits of single tokens: `{ 106: -5 }` or a Map; -Infinity forbids a token. */
  logitBias?: Readonly<Record<number, number>> | ReadonlyMap<number, number>
}

/** The part of the settings that a model's generation config may give. */
export interface SamplingDefaults {
  readonly temperature?: number
  readonly topK?: number
  readonly topP?: number
}

const logitBias: Reader<Array<readonly [number, number]>> = (value, name) => {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw invalid(`${name} must be a Map or an object from token id to number, received ${describe(value)}`)
  }
  const entries: Iterable<[unknown, unknown]> = value instanceof Map ? value : Object.entries(value)
  return Array.from(entries, ([key, bias]) => {
    const id = Number(key)
    if (!Number.isInteger(id) || id < 0) throw invalid(`${name} has a key that is no token id: ${describe(key)}`)
    if (typeof bias !== 'number' || Number.isNaN(bias) || bias === Infinity) {
      throw invalid(`${name} of token ${id} must be a number or -Infinity, received ${describe(bias)}`)
    }
    return [id, bias] as const
  })
}

export interface SamplingReaders {
  readonly temperature: Reader<number>
  readonly topK: Reader<number>
  readonly topP: Reader<number>
  readonly minP: Reader<number>
  readonly repetitionPenalty: Reader<number>
  readonly presencePenalty: Reader<number>
  readonly frequencyPenalty: Reader<number>
  readonly logitBias: Reader<Array<readonly [number, number]>>
}

export const samplingReaders: SamplingReaders = {
  temperature: number(0, Infinity),
  topK: integer(0, 2 ** 31 - 1),
  topP: number(0, 1, true),
  minP: number(0, 1),
  repetitionPenalty: number(0, Infinity, true),
  presencePenalty: number(-Infinity, Infinity),
  frequencyPenalty: number(-Infinity, Infinity),
  logitBias,
}

type ReadSampling = { [K in keyof SamplingReaders]?: ReturnType<SamplingReaders[K]> }

/** Complete settings from what was given and what the model suggests. */
export function completeSampling(read: ReadSampling, defaults: SamplingDefaults = {}): NativeSampling {
  const modelSamples = Object.keys(defaults).length > 0
  const narrowed = read.topK !== undefined || read.topP !== undefined || read.minP !== undefined
  return {
    temperature: read.temperature ?? defaults.temperature ?? (modelSamples || narrowed ? 1 : 0),
    topK: read.topK ?? defaults.topK ?? 0,
    topP: read.topP ?? defaults.topP ?? 1,
    minP: read.minP ?? 0,
    repetitionPenalty: read.repetitionPenalty ?? 1,
    presencePenalty: read.presencePenalty ?? 0,
    frequencyPenalty: read.frequencyPenalty ?? 0,
    logitBias: read.logitBias ?? [],
  }
}

/**
 * The distribution over the vocabulary that the sampler draws from; sums to 1. Temperature is 1 unless given, everything else off.
 * `history` holds the tokens so far; presence and frequency penalties count all of them.
 */
export function probabilities(logits: Float32Array, settings: SamplingSettings = {}, history: ArrayLike<number> = []): Float32Array {
  if (!(logits instanceof Float32Array) || logits.length === 0) {
    throw invalid(`probabilities: logits must be a Float32Array that is not empty, received ${describe(logits)}`)
  }
  const sampling = completeSampling(readOptions('probabilities', settings, { ...samplingReaders }), { temperature: 1 })
  const ids = tokenIds(history instanceof Int32Array ? history : Array.from(history), 'probabilities: history', logits.length)
  return callNative(() => native().probabilities(logits, sampling, ids, 0))
}
