/** Cushions: keys and values that stand before every text, so that quantisation costs less. Searched and tuned natively; here options become complete. */

import { callSite, invalid } from './errors.js'
import type { EvaluationText } from './evaluation.js'
import type { ModelInfo } from './info.js'
import type { NativeCushion, NativeSearchOptions, NativeTuneOptions } from './native.js'
import { type Reader, type ReadOptions, callback, choice, describe, integer, number, signal, string, tokenIds } from './options.js'
import { type Progress, watched } from './work.js'

export interface CushionWatch {
  /** Called now and then; what it throws ends the work. A search counts the work of the token at hand, tuning its steps. */
  onProgress?: (progress: Progress) => void
  /** Ends the work within one layer; with a state file it can go on later. */
  signal?: AbortSignal
}

/** Candidates are tried on `texts` pieces of `tokens` tokens through the first `layers` layers (0: all); the best `keep` go on. */
export interface ScreenStage {
  tokens: number
  texts: number
  layers?: number
  keep: number
}

export interface CushionSearchOptions extends CushionWatch {
  /** What to quantise well: texts, or the path of one: a text, or `.jsonl` of objects with `text`. */
  texts: readonly EvaluationText[] | string
  /** How local layers see the cushion: always, or like ordinary tokens until it leaves their window. Default 'pinned'. */
  window?: 'pinned' | 'native'
  /** Tokens the cushion begins with. Default: BOS. */
  init?: readonly number[] | Int32Array
  /** Of the cushion at most, `init` included. Default 8. */
  maxTokens?: number
  /** A token is kept when the error falls to this share at most, and on held-out texts too. Default 0.5. */
  tau?: number
  /** Of a text. Default 512, or less if the model was made for fewer. */
  textTokens?: number
  /** Drawn anew for each token. Default 8. */
  textsPerToken?: number
  /** The same throughout. Default 8. */
  heldOut?: number
  /** Default: all candidates on 2 pieces of 64 tokens, the best 1024 on 2 of 512, the best 32 exactly on all texts. */
  stages?: readonly ScreenStage[]
  /** Default: the whole vocabulary. */
  candidates?: readonly number[] | Int32Array
  seed?: number
  /** A file that the search writes and goes on from. */
  state?: string
  /** Compares with BOS alone, with the most frequent outliers, and with so many random prefixes. Default 0: not at all. */
  rivals?: number
}

export interface CushionTuneOptions extends CushionWatch {
  texts: readonly EvaluationText[] | string
  /** Default 160. */
  steps?: number
  /** Texts of a step. Default 4. */
  batch?: number
  /** Of a text. Default 512, or less if the model was made for fewer. */
  textTokens?: number
  /** Default 8. */
  heldOut?: number
  /** Steps between measurements, where scales are calibrated anew. Default 20. */
  every?: number
  /** Measurements in a row without a better one that end the tuning; 0: none do. Default 4. */
  patience?: number
  /** Default 16. */
  calibrationTexts?: number
  /** Weight of the quantisation error, 1 at the start. Default 0.1. */
  lambda?: number
  /** The error's derivative (docs/numerics.md, "Cushions"). Default 'straight-through'. */
  gradient?: 'literal' | 'straight-through' | 'through-scale'
  /** Default 2e-4. */
  learningRate?: number
  /** Steps. Default 10. */
  warmup?: number
  /** Of the gradient's norm; 0: not clipped. Default 0.3. */
  clip?: number
  seed?: number
  /** A file that the tuning writes and goes on from. */
  state?: string
}

export interface CushionSearchStep {
  readonly accepted: boolean
  readonly tried: number
  readonly before: number
  readonly after: number
  readonly heldOutBefore: number
  readonly heldOutAfter: number
  readonly best: ReadonlyArray<{ readonly token: number; readonly error: number }>
}

/** Figures per held-out token, in nats; `error` is the mean squared rounding error, 1 at step 0. */
export interface CushionHeldOut {
  readonly step: number
  readonly quantised: number
  readonly unquantised: number
  readonly error: number
  readonly training: number
}

export interface CushionReport {
  readonly search?: {
    readonly tokens: readonly number[]
    readonly window: 'pinned' | 'native'
    readonly steps: readonly CushionSearchStep[]
    /** Squared rounding errors of the held-out texts: without a cushion, with `init`, with the result. */
    readonly sites: ReadonlyArray<{ readonly layer: number; readonly site: string; readonly none: number; readonly init: number; readonly found: number }>
  }
  /** Of the same texts, in all. */
  readonly rivals?: { readonly bos: number; readonly frequent: { readonly tokens: readonly number[]; readonly error: number }; readonly random: { readonly median: number; readonly errors: readonly number[] } } | null
  readonly tuning?: {
    readonly steps: number
    readonly best: CushionHeldOut
    readonly start: CushionHeldOut
    /** As `unquantised`, without any cushion. */
    readonly noCushion: number
    readonly measured: readonly CushionHeldOut[]
    readonly skipped: number
  }
}

type ReadersOf<T> = { [K in keyof T]-?: Reader<Exclude<T[K], undefined>> }

const ids: Reader<readonly number[] | Int32Array> = (value, name) => {
  if (Array.isArray(value) || value instanceof Int32Array) return value
  throw invalid(`${name} must be token ids, received ${describe(value)}`)
}

const texts: Reader<readonly EvaluationText[] | string> = (value, name) => {
  if (typeof value === 'string' || Array.isArray(value)) return value
  throw invalid(`${name} must be an array of texts or the path of a file, received ${describe(value)}`)
}

const stages: Reader<readonly ScreenStage[]> = (value, name) => {
  if (!Array.isArray(value)) throw invalid(`${name} must be an array of stages, received ${describe(value)}`)
  return value.map((stage: Partial<ScreenStage> | null, i) => ({
    tokens: integer(1)(stage?.tokens, `${name}[${i}].tokens`),
    texts: integer(1)(stage?.texts, `${name}[${i}].texts`),
    layers: integer(0)(stage?.layers ?? 0, `${name}[${i}].layers`),
    keep: integer(1)(stage?.keep, `${name}[${i}].keep`),
  }))
}

const watchReaders: ReadersOf<CushionWatch> = { onProgress: callback<NonNullable<CushionWatch['onProgress']>>(), signal }

export const searchReaders: ReadersOf<CushionSearchOptions> = {
  ...watchReaders,
  texts,
  window: choice('pinned', 'native'),
  init: ids,
  maxTokens: integer(1),
  tau: number(0, 1, true),
  textTokens: integer(2),
  textsPerToken: integer(1),
  heldOut: integer(1),
  stages,
  candidates: ids,
  seed: integer(0),
  state: string,
  rivals: integer(0, 1000),
}

export const tuneReaders: ReadersOf<CushionTuneOptions> = {
  ...watchReaders,
  texts,
  steps: integer(0),
  batch: integer(1),
  textTokens: integer(2),
  heldOut: integer(1),
  every: integer(1),
  patience: integer(0),
  calibrationTexts: integer(1),
  lambda: number(0, Number.MAX_VALUE),
  gradient: choice('literal', 'straight-through', 'through-scale'),
  learningRate: number(0, Number.MAX_VALUE, true),
  warmup: integer(0),
  clip: number(0, Number.MAX_VALUE),
  seed: integer(0),
  state: string,
}

export function completeSearch(read: ReadOptions<typeof searchReaders>, info: ModelInfo, path: string): NativeSearchOptions {
  const maxTokens = read.maxTokens ?? 8
  return {
    window: read.window ?? 'pinned',
    init: read.init ? tokenIds(read.init, 'searchCushion: init', info.vocab) : Int32Array.of(info.bosId),
    candidates: read.candidates ? tokenIds(read.candidates, 'searchCushion: candidates', info.vocab) : new Int32Array(0),
    maxTokens,
    tau: read.tau ?? 0.5,
    textTokens: read.textTokens ?? Math.min(512, info.maxPositions - maxTokens - 1),
    texts: read.textsPerToken ?? 8,
    heldOut: read.heldOut ?? 8,
    rows: 2048,
    stages: (read.stages ?? [{ tokens: 64, texts: 2, keep: 1024 }, { tokens: 512, texts: 2, keep: 32 }]).map((stage) => ({ ...stage, layers: stage.layers ?? 0 })),
    seed: read.seed ?? 0,
    modelId: path,
    stateFile: read.state ?? '',
    rivals: read.rivals ?? 0,
  }
}

export function completeTune(read: ReadOptions<typeof tuneReaders>, info: ModelInfo, cushionTokens: number, path: string): NativeTuneOptions {
  return {
    steps: read.steps ?? 160,
    batch: read.batch ?? 4,
    textTokens: read.textTokens ?? Math.min(512, info.maxPositions - cushionTokens - 1),
    heldOut: read.heldOut ?? 8,
    every: read.every ?? 20,
    patience: read.patience ?? 4,
    calibrationTexts: read.calibrationTexts ?? 16,
    lambda: read.lambda ?? 0.1,
    gradient: read.gradient ?? 'straight-through',
    learningRate: read.learningRate ?? 2e-4,
    warmup: read.warmup ?? 10,
    clip: read.clip ?? 0.3,
    seed: read.seed ?? 0,
    modelId: path,
    stateFile: read.state ?? '',
  }
}

/** Keys and values of a few tokens, for models of the shape it was made with. */
export class Cushion {
  /** What it was computed or tuned from; empty when a search found none that helps. */
  readonly tokens: readonly number[]
  readonly window: 'pinned' | 'native'
  readonly fingerprint: string
  readonly report: CushionReport
  /** @internal */
  readonly native: NativeCushion

  /** @internal */
  constructor(native: NativeCushion, before: CushionReport = {}) {
    this.native = native
    this.tokens = native.tokens
    this.window = native.window as 'pinned' | 'native'
    this.fingerprint = native.fingerprint
    this.report = { ...before, ...(JSON.parse(native.report) as CushionReport) }
  }

  /** Writes the file that `quantize` takes as `prefix`. */
  async save(file: string): Promise<void> {
    const site = callSite(this.save)
    const target = string(file, 'save: file')
    await watched(site, {}, () => this.native.save(target))
  }
}
