/** From a path to a running model: options with their defaults, and what loading would take. */

import { resolve } from 'node:path'
import { awaitNative, callSite, invalid } from './errors.js'
import { type DeviceChoice, resolveDevice } from './devices.js'
import type { ModelInfo } from './info.js'
import { native } from './loader.js'
import { type Precision, Model } from './model.js'
import type { NativeLoadOptions } from './native.js'
import { callback, choice, integer, readOptions, signal, string } from './options.js'

export interface LoadProgress {
  readonly phase: 'weights'
  /** Bytes. */
  readonly loaded: number
  readonly total: number
}

export interface MemoryOptions {
  /** `'auto'` takes the graphics device when it is usable, else the processor; `'reference'` is slow, plain f32. Default 'auto'. */
  device?: DeviceChoice
  /**
   * Of activations at matrix products, and of the cache where `kvCache` does not say otherwise. 'f32' is exact; 'bf16' is half the memory and faster,
   * and what Gemma was made for; 'int8' is bf16 but for prompts of 32 tokens or more on the processor, whose products with GGUF block weights are of
   * int8 numbers, about twice as fast. Default: 'int8' where that makes a difference, else 'bf16'.
   */
  precision?: Precision
  /**
   * 'as-is' computes on what the file holds; 'bf16' rounds wider and block weights to bf16; 'int8' quantises every matrix at load, with a scale per
   * output channel, and its inputs per token: a quarter of f32's memory, exact integer sums. Default 'as-is'.
   */
  weights?: 'as-is' | 'bf16' | 'int8'
  /**
   * Of cached keys and values. 'int8', a scale per position and head, is half of 'bf16' and costs little; what a cushion holds is never rounded to it.
   * Default: 'f32' beside a precision of 'f32', else 'bf16'.
   */
  kvCache?: 'f32' | 'bf16' | 'int8'
  /** Most tokens of one sequence. Default: what the model was made for; memory is taken as a sequence grows. */
  contextTokens?: number
  /** Most prompt tokens of one sequence in one step: more is faster, less lets others step sooner. Results do not change. Default 256; 512 where `precision` makes weights int8, which it does anew in every step. */
  prefillChunk?: number
  /** Most tokens of all sequences in one step. Default 512, or prefillChunk if that is more. */
  maxBatchTokens?: number
  /** Sequences that run at once; more wait their turn. Default 64. */
  maxSequences?: number
  /** Limit of the memory of conversations; a request beyond it fails alone. Default: none but the machine's. */
  kvLimitBytes?: number
}

export interface LoadOptions extends MemoryOptions {
  /** Threads of the processor's kernels. Default: one per physical core, since two on a core only get in each other's way. */
  threads?: number
  /** Finished sequences kept so that a later prompt with the same beginning need not compute it again. Default 2. */
  prefixCache?: number
  /** Called now and then while weights are read. */
  onProgress?: (progress: LoadProgress) => void
  /** Gives up loading; the promise rejects with the signal's reason. */
  signal?: AbortSignal
}

export interface EstimateOptions extends MemoryOptions {
  /** How many conversations at once. Default 1. */
  sequences?: number
}

export interface MemoryEstimate {
  /** Mapped from the file. */
  readonly weightBytes: number
  /** One sequence with a full context. */
  readonly kvBytesPerSequence: number
  readonly kvBytes: number
  readonly scratchBytes: number
  readonly totalBytes: number
}

export interface TensorFact {
  readonly name: string
  readonly dtype: string
  readonly shape: readonly number[]
  readonly bytes: number
}

export interface Inspection {
  readonly info: ModelInfo
  readonly tensors: readonly TensorFact[]
}

const memoryReaders = {
  device: choice('reference', 'cpu', 'cuda', 'auto'),
  precision: choice('f32', 'bf16', 'int8'),
  weights: choice('as-is', 'bf16', 'int8'),
  kvCache: choice('f32', 'bf16', 'int8'),
  contextTokens: integer(1),
  prefillChunk: integer(1, 1 << 20),
  maxBatchTokens: integer(1, 1 << 20),
  maxSequences: integer(1, 1 << 16),
  kvLimitBytes: integer(1),
}

const loadReaders = {
  ...memoryReaders,
  threads: integer(1, 1024),
  prefixCache: integer(0, 1 << 16),
  onProgress: callback<NonNullable<LoadOptions['onProgress']>>(),
  signal,
}

type ReadLoad = { [K in keyof typeof loadReaders]?: ReturnType<(typeof loadReaders)[K]> }

/** Complete options; 0 and '' leave a choice to the native side where it knows better (cores, the model's context and weights). */
function completeOptions(owner: string, read: ReadLoad): NativeLoadOptions {
  const prefillChunk = read.prefillChunk ?? 0
  const maxBatchTokens = read.maxBatchTokens ?? Math.max(512, prefillChunk)
  if (maxBatchTokens < prefillChunk) {
    throw invalid(`${owner}: maxBatchTokens (${maxBatchTokens}) must be at least prefillChunk (${prefillChunk})`)
  }
  return {
    device: resolveDevice(read.device ?? 'auto'),
    precision: read.precision ?? '',
    weights: read.weights ?? 'as-is',
    kvCache: read.kvCache ?? '',
    threads: read.threads ?? 0,
    contextTokens: read.contextTokens ?? 0,
    prefillChunk,
    maxBatchTokens,
    maxSequences: read.maxSequences ?? 64,
    kvLimitBytes: read.kvLimitBytes ?? 0,
    prefixCache: read.prefixCache ?? 2,
  }
}

/**
 * Loads a Gemma model: a Hugging Face folder, a .safetensors file beside its config.json, or a .gguf file.
 * Weights are mapped, not read through JavaScript, and nothing blocks this thread.
 */
export async function loadModel(path: string, options?: LoadOptions): Promise<Model> {
  const site = callSite(loadModel)
  const file = string(path, 'loadModel: path')
  const { onProgress, signal: abort, ...read } = readOptions('loadModel', options, loadReaders)
  abort?.throwIfAborted()
  const complete = completeOptions('loadModel', read)
  const progress = onProgress ? new Progress(onProgress) : null
  const loading = awaitNative(site, () => native().loadModel(file, complete, progress && ((done, total) => progress.tell(done, total))))
  const loaded = await unlessAborted(abort, loading, (late) => void late.close())
  if (progress?.failure) {
    await loaded.close()
    throw progress.failure.error
  }
  return new Model(loaded, { path: resolve(file), options: complete })
}

/** Passes reports on, at most one every 50 ms and always the last; what the callback throws is kept for the caller. */
class Progress {
  failure: { error: unknown } | null = null
  readonly #report: (progress: LoadProgress) => void
  #last = 0

  constructor(report: (progress: LoadProgress) => void) {
    this.#report = report
  }

  tell(loaded: number, total: number): void {
    const now = performance.now()
    if (this.failure || (loaded < total && now - this.#last < 50)) return
    this.#last = now
    try {
      this.#report({ phase: 'weights', loaded, total })
    } catch (error) {
      this.failure = { error }
    }
  }
}

/** `work`, or the signal's rejection if that comes first; work that finishes too late goes to `discard`. */
async function unlessAborted<T>(abort: AbortSignal | undefined, work: Promise<T>, discard: (late: T) => void): Promise<T> {
  if (!abort) return work
  let onAbort = (): void => {}
  const aborted = new Promise<never>((_, reject) => {
    onAbort = () => {
      work.then(discard, () => {})
      reject(abort.reason)
    }
    abort.addEventListener('abort', onAbort, { once: true })
  })
  try {
    return await Promise.race([work, aborted])
  } finally {
    abort.removeEventListener('abort', onAbort)
  }
}

/** What a model, context and number of conversations will take, before anything is allocated. */
export async function estimateMemory(path: string, options?: EstimateOptions): Promise<MemoryEstimate> {
  const site = callSite(estimateMemory)
  const file = string(path, 'estimateMemory: path')
  const { sequences = 1, ...read } = readOptions('estimateMemory', options, { ...memoryReaders, sequences: integer(1) })
  const complete = completeOptions('estimateMemory', read)
  return awaitNative(site, () => native().estimateMemory(file, complete, sequences))
}

/** The facts of a model's files; no weights are read. */
export async function inspect(path: string): Promise<Inspection> {
  const site = callSite(inspect)
  const file = string(path, 'inspect: path')
  return awaitNative(site, () => native().inspect(file)) as Promise<Inspection>
}
