/** What one generation is asked for and what it gives: options read once, results, and their translation for the native side. */

import { randomBytes } from 'node:crypto'
import { invalid } from './errors.js'
import type { NativeOutcome, NativeSampling } from './native.js'
import { type Reader, boolean, callback, describe, integer, readOptions, signal, string } from './options.js'
import { type SamplingDefaults, type SamplingSettings, completeSampling, samplingReaders } from './sampling.js'

export interface TokenLogprob {
  readonly id: number
  /** Natural logarithm of the probability under the raw logits, before any sampling setting. */
  readonly logprob: number
}

/** One step of a stream. */
export interface GeneratedPart {
  /** Whole characters that became certain; '' while a character is incomplete or a stop string may be under way. */
  readonly text: string
  /** The token of this step; absent for text that was held back and comes after the last token. */
  readonly token?: number
  /** With `logprobs`: of the token. */
  readonly logprob?: number
  /** With `logprobs: n`: the n likeliest tokens of this step. */
  readonly top?: readonly TokenLogprob[]
}

export interface Usage {
  readonly promptTokens: number
  /** Of the prompt's tokens, how many were found in a cache. */
  readonly cachedTokens: number
  readonly generatedTokens: number
  readonly queueMs: number
  readonly prefillMs: number
  readonly decodeMs: number
}

/** `stop`: an end token; `length`: maxTokens or the context is full; `stop-sequence`: one of `stop`; `aborted`: stopped from outside. */
export type FinishReason = NativeOutcome['reason']

export interface GenerateResult {
  /** The generated text, without the stop string. */
  readonly text: string
  /** The generated tokens, without the end token. */
  readonly tokens: number[]
  readonly finishReason: FinishReason
  /** The stop string that ended the run. */
  readonly stopSequence?: string
  readonly usage: Usage
  /** Give it again for the same text. */
  readonly seed: number | bigint
  /** With `logprobs`: one entry per token. */
  readonly logprobs?: ReadonlyArray<TokenLogprob & { readonly top: readonly TokenLogprob[] }>
}

/** Ids that may come next, as a list or as bits (bit i % 32 of word i / 32 allows token i); null allows all. */
export type AllowedTokens = Iterable<number> | Uint32Array | null

export interface GenerateOptions extends SamplingSettings {
  /** Most tokens to generate. Default: until the context is full. */
  maxTokens?: number
  /** The same seed, settings and model give the same text. Default: random, told in the result. */
  seed?: number | bigint
  /** Text that ends the run; it is not part of the result. */
  stop?: string | readonly string[]
  /** Tokens that end the run, besides the model's own end tokens. */
  stopTokens?: readonly number[]
  /** true: the log-probability of every token; n: also the n likeliest of every step. Default: none. */
  logprobs?: boolean | number
  /** Go on past end tokens. Default false. */
  ignoreEos?: boolean
  /** Asked before every token which ids may come next; may be async. Costs one trip to JavaScript per token. */
  mask?: (generated: readonly number[]) => AllowedTokens | Promise<AllowedTokens>
  /** Aborts the run within one step; what waits for it rejects with the signal's reason. */
  signal?: AbortSignal
  /** Called with every part as it comes. What it throws ends the run. */
  onToken?: (part: GeneratedPart) => void
  /** Parse control tokens written in the prompt's text ("<start_of_turn>"). Default false: they are plain characters. */
  special?: boolean
}

/** Options read and completed. */
export interface Generation {
  readonly sampling: NativeSampling
  readonly seed: number | bigint
  readonly maxTokens: number
  readonly ignoreEos: boolean
  readonly stopIds: number[]
  readonly stopStrings: string[]
  readonly topLogprobs: number
  readonly mask: GenerateOptions['mask']
  readonly signal: AbortSignal | undefined
  readonly onToken: GenerateOptions['onToken']
  readonly special: boolean
}

const seed: Reader<number | bigint> = (value, name) => {
  if (typeof value === 'bigint' && value >= 0n && value < 1n << 64n) return value
  if (typeof value === 'number' && Number.isSafeInteger(value) && value >= 0) return value
  throw invalid(`${name} must be an integer from 0 to 2^53 - 1, or a bigint below 2^64, received ${describe(value)}`)
}

const stop: Reader<string[]> = (value, name) => {
  const list: unknown[] = Array.isArray(value) ? value : [value]
  return list.map((item, i) => {
    const text = string(item, Array.isArray(value) ? `${name}[${i}]` : name)
    if (text === '') throw invalid(`${name} must not contain an empty string`)
    return text
  })
}

const stopTokens: Reader<number[]> = (value, name) => {
  if (!Array.isArray(value)) throw invalid(`${name} must be an array of token ids, received ${describe(value)}`)
  return value.map((id, i) => integer(0, 2 ** 31 - 1)(id, `${name}[${i}]`))
}

const logprobs: Reader<number> = (value, name) => {
  if (typeof value === 'boolean') return value ? 0 : -1
  return integer(0, 1000)(value, name)
}

const generationReaders = {
  ...samplingReaders,
  maxTokens: integer(1),
  seed,
  stop,
  stopTokens,
  logprobs,
  ignoreEos: boolean,
  mask: callback<NonNullable<GenerateOptions['mask']>>(),
  signal,
  onToken: callback<NonNullable<GenerateOptions['onToken']>>(),
  special: boolean,
}

export function readGeneration(owner: string, options: GenerateOptions | undefined, defaults: SamplingDefaults): Generation {
  const read = readOptions(owner, options, generationReaders)
  return {
    sampling: completeSampling(read, defaults),
    seed: read.seed ?? Number(randomBytes(8).readBigUInt64LE() >> 11n),
    maxTokens: read.maxTokens ?? -1,
    ignoreEos: read.ignoreEos ?? false,
    stopIds: read.stopTokens ?? [],
    stopStrings: read.stop ?? [],
    topLogprobs: read.logprobs ?? -1,
    mask: read.mask,
    signal: read.signal,
    onToken: read.onToken,
    special: read.special ?? false,
  }
}

/** What a mask hook gave, as the native side takes it: empty allows all. */
export function maskBits(allowed: AllowedTokens, vocab: number): Uint32Array {
  if (allowed === null) return new Uint32Array(0)
  const words = Math.ceil(vocab / 32)
  if (allowed instanceof Uint32Array) {
    if (allowed.length === words) return allowed
    throw invalid(`mask: a bit set for ${vocab} tokens has ${words} words, received ${allowed.length}`)
  }
  if (typeof allowed !== 'object' || !(Symbol.iterator in allowed)) {
    throw invalid(`mask must give token ids, a Uint32Array or null, received ${describe(allowed)}`)
  }
  const bits = new Uint32Array(words)
  let any = false
  for (const id of allowed) {
    if (!Number.isInteger(id) || id < 0 || id >= vocab) throw invalid(`mask: allowed ids go from 0 to ${vocab - 1}, received ${describe(id)}`)
    bits[id >>> 5]! |= 1 << (id & 31)
    any = true
  }
  if (!any) throw invalid('mask: no token is allowed; give null to allow all, or end the run with the signal')
  return bits
}
