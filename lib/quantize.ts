/** Making a model smaller: int8 weights, int8 inputs. What is read and decided is native; here options become complete and results readable. */

import { readFile } from 'node:fs/promises'
import { Cushion, type CushionReport, type CushionSearchOptions, type CushionTuneOptions, searchReaders, tuneReaders } from './cushion.js'
import { type CallSite, callSite, invalid } from './errors.js'
import type { EvaluationText } from './evaluation.js'
import type { NativeLoadOptions, NativeModel, NativeQuantizeOptions, NativeQuantized } from './native.js'
import { type Reader, type Readers, type ReadOptions, boolean, callback, choice, describe, integer, number, readOptions, signal, string, tokenIds } from './options.js'
import { disposed } from './run.js'
import { watched } from './work.js'

export interface QuantizeProgress {
  /** 'search': work of the cushion's next token; 'tuning': steps; 'calibration': tokens read; 'loading' and 'saving': bytes of the original. */
  readonly phase: 'search' | 'tuning' | 'calibration' | 'loading' | 'saving'
  readonly done: number
  readonly total: number
  /** Done per second, on the average of this phase; 0 at its beginning. */
  readonly rate: number
  /** Of this phase; Infinity while the rate is 0. */
  readonly secondsLeft: number
}

export interface QuantizeWatch {
  /** Called now and then; what it throws ends the work. */
  onProgress?: (progress: QuantizeProgress) => void
  /** Ends the work within one layer, leaving nothing; the promise rejects with the signal's reason. */
  signal?: AbortSignal
}

export interface QuantizeCushion {
  /** As `searchCushion`; `true`: as it does by default. `texts` default to the calibration. Without a search, tuning begins with `prefix`. */
  search?: boolean | Partial<Omit<CushionSearchOptions, keyof QuantizeWatch>>
  /** As `tuneCushion`, which follows a search; the model must be on the processor. */
  tune?: boolean | Partial<Omit<CushionTuneOptions, keyof QuantizeWatch>>
}

export interface QuantizeOptions extends QuantizeWatch {
  /** 'w8a8': weights and inputs of the matrix products in int8; 'w8': weights alone. Default 'w8a8'. */
  scheme?: 'w8a8' | 'w8'
  /** One scale per output channel, or one per matrix, which is coarser. Default 'channel'. */
  weights?: 'channel' | 'tensor'
  /**
   * 'token': a scale per token, taken from it; 'tensor': one taken from all tokens that a sequence has in a step, so that results depend on where
   * chunks of a prompt begin; 'static': one calibrated scale per place; 'none': scheme 'w8'. Default 'token', with 'w8' 'none'.
   */
  activations?: 'token' | 'tensor' | 'static' | 'none'
  /**
   * SmoothQuant's alpha, 0 to 1: how much of the inputs' range moves into the weights, without changing what the model computes. With weights per
   * 'tensor' only the inputs behind norms are smoothed. Default: not at all.
   */
  smooth?: number
  /** Texts that static scales and smoothing are chosen from, or the path of one: a text, or `.jsonl` of objects with `text`. */
  calibration?: readonly EvaluationText[] | string
  /** The largest value that a static scale represents: the largest seen, all but 1 in 10,000, or what errs least. Default 'mse'. */
  clip?: 'absmax' | 'percentile' | 'mse'
  /** Tokens of a calibration text that are read at once. Default 512, or less if the model was made for fewer. */
  window?: number
  /** The embedding too, and a head tied to it; no other program than this one reads such a checkpoint. Default false. */
  embedding?: boolean
  /** What stands before every text from now on: a cushion or its file, token ids to compute one from, or null for none. Default: the model's own. */
  prefix?: Cushion | string | readonly number[] | Int32Array | null
  /** Makes what stands before every text, before anything is calibrated. Instead of `prefix`, unless that is where a tuning begins. */
  cushion?: QuantizeCushion
  /** Load the result too. Default true. */
  load?: boolean
}

export interface SiteScale {
  readonly layer: number
  /** Input of q, k, v; of o; of gate and up; of down. */
  readonly site: 'attn_in' | 'o_in' | 'mlp_in' | 'down_in'
  /** Largest magnitude that was seen, after smoothing. */
  readonly max: number
  /** The same over the median of the tokens' largest: about 1 where no token stands out. */
  readonly tokenRatio: number
  /** The share of `max` that the scale represents; what is larger is clipped. */
  readonly clip: number
  readonly scale: number
}

export interface QuantizeReport {
  readonly scheme: 'w8a8' | 'w8'
  readonly weights: 'channel' | 'tensor'
  readonly activations: 'token' | 'tensor' | 'static' | 'none'
  /** null: off. */
  readonly smooth: number | null
  readonly embedding: boolean
  /** Tokens read, BOS included. */
  readonly calibrationTokens: number
  /** The fingerprint of the cushion that belongs to the result, or null. */
  readonly cushion: string | null
  /** Of the search and the tuning that this call made; null: it made none. A search that finds nothing that helps leaves `cushion` null. */
  readonly cushionReport: CushionReport | null
  /** Of static activations, layer by layer; else empty. */
  readonly sites: readonly SiteScale[]
  /** Of everything but loading. */
  readonly seconds: number
}

const prefix: Reader<Cushion | string | readonly number[] | Int32Array | null> = (value, name) => {
  if (value === null || typeof value === 'string' || Array.isArray(value) || value instanceof Int32Array || value instanceof Cushion) return value
  throw invalid(`${name} must be a cushion or the path of one, token ids or null, received ${describe(value)}`)
}

/** The part's own options, checked; `false` is as good as absent. */
function part<R extends typeof searchReaders | typeof tuneReaders>(readers: R): Reader<ReadOptions<R> | null> {
  const { onProgress: _, signal: __, ...own } = readers
  return (value, name) => (value === false ? null : readOptions(name, value === true ? {} : value, own as Readers) as ReadOptions<R>)
}

const cushionReaders = { search: part(searchReaders), tune: part(tuneReaders) }

export interface CushionPlan {
  readonly search: ReadOptions<typeof searchReaders> | null
  readonly tune: ReadOptions<typeof tuneReaders> | null
}

const cushion: Reader<CushionPlan> = (value, name) => {
  const { search = null, tune = null } = readOptions(name, value, cushionReaders)
  if (!search && !tune) throw invalid(`${name}: search or tune is needed`)
  return { search, tune }
}

const calibration: Reader<readonly EvaluationText[] | string> = (value, name) => {
  if (typeof value === 'string' || Array.isArray(value)) return value
  throw invalid(`${name} must be an array of texts or the path of a file, received ${describe(value)}`)
}

type ReadersOf<T> = { [K in keyof T]-?: Reader<Exclude<T[K], undefined>> }
type QuantizeReaders = ReadersOf<Omit<QuantizeOptions, 'cushion'>> & { cushion: Reader<CushionPlan> }

export const watchReaders: ReadersOf<QuantizeWatch> = { onProgress: callback<NonNullable<QuantizeWatch['onProgress']>>(), signal }

export const quantizeReaders: QuantizeReaders = {
  ...watchReaders,
  scheme: choice('w8a8', 'w8'),
  weights: choice('channel', 'tensor'),
  activations: choice('token', 'tensor', 'static', 'none'),
  smooth: number(0, 1),
  calibration,
  clip: choice('absmax', 'percentile', 'mse'),
  window: integer(1),
  embedding: boolean,
  prefix,
  cushion,
  load: boolean,
}

/** Complete and consistent, or `invalid_argument`. */
export function completeQuantize(read: ReadOptions<typeof quantizeReaders>, vocab: number, window: number, threads: number): NativeQuantizeOptions {
  const scheme = read.scheme ?? (read.activations === 'none' ? 'w8' : 'w8a8')
  const inputs = read.activations ?? (scheme === 'w8' ? 'none' : 'token')
  if ((scheme === 'w8') !== (inputs === 'none')) throw invalid(`quantize: scheme '${scheme}' does not go with activations '${inputs}'`)
  if (read.smooth !== undefined && inputs === 'none') throw invalid('quantize: smooth moves the range of inputs into the weights: of no use where inputs are not quantised')
  if ((inputs === 'static' || read.smooth !== undefined) && read.calibration === undefined) {
    throw invalid(`quantize: ${inputs === 'static' ? "activations 'static'" : 'smooth'} needs calibration texts`)
  }
  if (read.clip !== undefined && inputs !== 'static') throw invalid("quantize: clip is for activations 'static' alone")
  if (read.cushion?.search && read.prefix !== undefined) throw invalid('quantize: cushion.search finds what prefix would give; leave one of them out')
  const tuned = read.cushion && !read.cushion.search
  if (tuned && !(typeof read.prefix === 'string' || read.prefix instanceof Cushion)) throw invalid('quantize: cushion.tune without a search needs a cushion to begin with, as prefix')
  for (const [name, step] of Object.entries(read.cushion ?? {})) {
    if (step && (step.texts ?? read.calibration) === undefined) throw invalid(`quantize: cushion.${name} needs texts, or calibration texts`)
  }
  const before = read.prefix === undefined ? true : read.prefix === null ? false : read.prefix instanceof Cushion ? read.prefix.native : read.prefix
  return {
    weights: read.weights ?? 'channel',
    activations: inputs,
    clip: read.clip ?? 'mse',
    smooth: read.smooth ?? -1,
    embedding: read.embedding ?? false,
    window: read.window ?? window,
    threads,
    cushion: Array.isArray(before) || before instanceof Int32Array ? tokenIds(before, 'quantize: prefix', vocab) : (before as NativeQuantizeOptions['cushion']),
  }
}

/** The texts of a file: the whole of it, or one of each line of a .jsonl. */
export async function readCalibration(given: readonly EvaluationText[] | string): Promise<readonly EvaluationText[]> {
  if (typeof given !== 'string') return given
  const content = await readFile(given, 'utf8').catch((error: Error) => {
    throw invalid(`quantize: calibration: ${error.message}`)
  })
  if (!given.endsWith('.jsonl')) return [content]
  const lines = content.split('\n').filter((line) => line.trim() !== '')
  return lines.map((line, i) => {
    let value: unknown
    try {
      value = JSON.parse(line)
    } catch {
      throw invalid(`quantize: calibration: line ${i + 1} of ${given} is not JSON`)
    }
    return string((value as { text?: unknown } | null)?.text, `quantize: calibration: text in line ${i + 1} of ${given}`)
  })
}

/** Progress of one phase, with its rate; a phase of several rounds begins anew with each. */
export function phase(name: QuantizeProgress['phase'], watch: QuantizeWatch): { signal?: AbortSignal; onProgress?: (progress: { done: number; total: number }) => void } {
  const { onProgress, ...rest } = watch
  if (!onProgress) return rest
  let began = performance.now(), last = 0
  return {
    ...rest,
    onProgress: ({ done, total }) => {
      if (done < last) began = performance.now()
      last = done
      const seconds = (performance.now() - began) / 1000
      const rate = seconds > 0 ? done / seconds : 0
      onProgress({ phase: name, done, total, rate, secondsLeft: done >= total ? 0 : rate > 0 ? (total - done) / rate : Infinity })
    },
  }
}

/** A model in int8: to be saved, and, where it was loaded, to be run and measured; loaded, it is a `Model`. */
export class QuantizedOf<Model> {
  readonly report: QuantizeReport
  readonly #native: NativeQuantized
  readonly #loadOptions: NativeLoadOptions
  readonly #wrap: (native: NativeModel) => Model
  #model: Model | null = null

  /** @internal */
  constructor(native: NativeQuantized, report: QuantizeReport, loadOptions: NativeLoadOptions, wrap: (native: NativeModel) => Model) {
    this.#native = native
    this.report = report
    this.#loadOptions = loadOptions
    this.#wrap = wrap
  }

  /** The int8 model, loaded like the original; closing it is the caller's. */
  get model(): Model {
    if (this.#model) return this.#model
    throw disposed('quantized model (load: false was given; await load())')
  }

  /** Loads the result, straight from the original's file; once, further calls give the same model. */
  async load(options?: QuantizeWatch): Promise<Model> {
    return this.loadAt(callSite(this.load), readOptions('load', options, watchReaders))
  }

  /** @internal */
  async loadAt(site: CallSite, watch: QuantizeWatch): Promise<Model> {
    this.#model ??= this.#wrap(await watched(site, phase('loading', watch), (tell) => this.#native.load(this.#loadOptions, tell)))
    return this.#model
  }

  /**
   * Writes a Hugging Face folder in the compressed-tensors layout, with the tokenizer and, where there is one, the cushion. The folder must not exist
   * or be empty; it appears whole, or not at all.
   */
  async save(folder: string, options?: QuantizeWatch): Promise<void> {
    const site = callSite(this.save)
    const target = string(folder, 'save: folder')
    const watch = readOptions('save', options, watchReaders)
    await watched(site, phase('saving', watch), (tell) => this.#native.save(target, tell))
  }
}
