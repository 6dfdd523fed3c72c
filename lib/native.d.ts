/**
 * The exact exports of the native addon. lib/loader.ts loads it; a test compares these names with the real ones.
 * Everything takes and gives plain values; every failure is an Error with a `code` of lapidary's own (see lib/errors.ts).
 * "Promise" work runs off the JavaScript thread.
 */

export interface NativeDevice {
  /** 'cpu' | 'cuda' */
  readonly kind: string
  /** The processor's name. */
  readonly name: string
  readonly available: boolean
  /** Why it is not available, else ''. */
  readonly reason: string
  /** CPU: the instruction set in use. */
  readonly instructionSet: string
  readonly instructionSets: readonly string[]
  readonly cores: number
  readonly memoryBytes: number
}

export interface NativePeaks {
  readonly bandwidth: number
  readonly f32: number
  readonly int8: number
  readonly bf16: number
  readonly cacheBytes: number
}

export interface NativeLoadOptions {
  /** 'reference' | 'cpu' | 'cuda' ('auto' is decided in TypeScript) */
  device: string
  /** 'f32' | 'bf16' | 'int8', or '' for int8 where that makes a difference, else bf16 */
  precision: string
  /** 'as-is' | 'bf16' | 'int8' */
  weights: string
  /** 'f32' | 'bf16' | 'int8', or '' for what the precision says */
  kvCache: string
  threads: number
  /** 0 = the model's own. */
  contextTokens: number
  /** 0 = what suits the weights. */
  prefillChunk: number
  maxBatchTokens: number
  maxSequences: number
  kvLimitBytes: number
  prefixCache: number
}

export interface NativeModelInfo {
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
  /** Keys a local layer's query sees, itself included; 0 when no layer is local. */
  readonly window: number
  readonly localLayers: number
  readonly bosId: number
  readonly eosIds: readonly number[]
  readonly notes: readonly string[]
  readonly fileBytes: number
  readonly defaults: { readonly temperature?: number; readonly topK?: number; readonly topP?: number }
}

/** One stretch of text; `special` says whether control tokens written in it are parsed as such. */
export interface NativeTextPart {
  text: string
  special: boolean
}

export interface NativeTokenizer {
  encode(parts: NativeTextPart[]): number[]
  encodeAsync(parts: NativeTextPart[]): Promise<number[]>
  decode(ids: ArrayLike<number>, special: boolean): string
  /** Many texts in one call, off the thread. */
  encodeBatch(texts: NativeTextPart[][]): Promise<number[][]>
  readonly size: number
  readonly bosId: number
  readonly eosId: number
  readonly padId: number
  readonly unkId: number
  readonly addBos: boolean
  readonly chatTemplate: string
  piece(id: number): string
  /** -1 when the vocabulary has no such piece. */
  find(piece: string): number
  isControl(id: number): boolean
  /** Incremental decoding; push and flush join to decode(). */
  stream(special: boolean): { push(id: number): string; flush(): string }
}

export interface NativeSampling {
  temperature: number
  topK: number
  topP: number
  minP: number
  repetitionPenalty: number
  presencePenalty: number
  frequencyPenalty: number
  logitBias: ReadonlyArray<readonly [number, number]>
}

export interface NativeRunRequest {
  /** Int32Array of token ids, appended to the sequence. */
  prompt: Int32Array
  sequence: NativeSequence | null
  sampling: NativeSampling
  seed: bigint
  maxTokens: number
  ignoreEos: boolean
  stopIds: number[]
  stopStrings: string[]
  /** -1 = none; n >= 0: the chosen token's and the n likeliest. */
  topLogprobs: number
  masked: boolean
}

export interface NativeTokenEvent {
  id: number
  text: string
  logprob: number
  top: Array<{ id: number; logprob: number }>
}

export interface NativeOutcome {
  reason: 'stop' | 'length' | 'stop-sequence' | 'aborted'
  stopSequence: string
  promptTokens: number
  cachedTokens: number
  generatedTokens: number
  queueMs: number
  prefillMs: number
  decodeMs: number
}

/** What a run tells, in order, on the JavaScript thread; calls pile up tokens that were ready. */
export type NativeRunEvent =
  | { kind: 'tokens'; tokens: NativeTokenEvent[] }
  | { kind: 'mask'; generated: number[] }
  | { kind: 'finish'; outcome: NativeOutcome }
  | { kind: 'error'; error: Error & { code: string } }

export interface NativeRun {
  abort(): void
  acknowledge(tokens: number): void
  /** Bit i % 32 of word i / 32 allows token i; empty allows all. */
  provideMask(bits: Uint32Array): void
}

export interface NativeSequence {
  readonly length: number
  readonly bytes: number
  tokens(): number[]
  fork(): NativeSequence
  rewind(length: number): void
  save(path: string): Promise<void>
  /** Frees the cache now; later use is a 'disposed' error. */
  close(): void
}

export type NativeProgress = (done: number, total: number) => void

export interface NativeEvaluation<T> {
  result: Promise<T>
  abort(): void
}

export interface NativeWindowOptions {
  /** Tokens of the text, BOS aside. */
  window: number
  /** 0: the largest. */
  stride: number
  /** null: where BOS stands before every window. */
  firstTokens: boolean | null
}

export type NativeByPosition<T> = T & { within: T; beyond: T }

export interface NativeLikelihood {
  tokens: number
  nats: number
}

export interface NativeDivergence {
  tokens: number
  meanKl: number
  p99Kl: number
  maxKl: number
  agreement: number
  referenceNats: number
  nats: number
}

export interface NativeSiteStatistics {
  layer: number
  /** 'attn_in' | 'o_in' | 'mlp_in' | 'down_in' */
  site: string
  max: number
  meanTokenMax: number
  medianTokenMax: number
  p90: number
  median: number
  maxOverMedian: number
  tokenRatio: number
  notFinite: number
  spikes: Array<{ text: number; position: number; id: number; channel: number; value: number }>
}

export interface NativeQuantizeOptions {
  /** 'channel' | 'tensor' */
  weights: string
  /** 'token' | 'tensor' | 'static' | 'none' */
  activations: string
  /** 'absmax' | 'percentile' | 'mse' */
  clip: string
  /** Negative: off. */
  smooth: number
  embedding: boolean
  window: number
  threads: number
  /** A cushion, its file, token ids, true: the model's own; false: none. */
  cushion: string | Int32Array | NativeCushion | boolean
}

export interface NativeQuantized {
  readonly report: {
    calibrationTokens: number
    cushion: string | null
    sites: Array<{ layer: number; site: string; max: number; tokenRatio: number; clip: number; scale: number }>
  }
  save(path: string, onProgress: NativeProgress | null): NativeEvaluation<undefined>
  load(options: NativeLoadOptions, onProgress: NativeProgress | null): NativeEvaluation<NativeModel>
}

export interface NativeSearchOptions {
  /** 'pinned' | 'native' */
  window: string
  init: Int32Array
  /** Empty: the vocabulary. */
  candidates: Int32Array
  maxTokens: number
  tau: number
  textTokens: number
  texts: number
  heldOut: number
  rows: number
  stages: Array<{ tokens: number; texts: number; layers: number; keep: number }>
  seed: number
  modelId: string
  /** '': none. */
  stateFile: string
  rivals: number
}

export interface NativeTuneOptions {
  steps: number
  batch: number
  textTokens: number
  heldOut: number
  every: number
  patience: number
  calibrationTexts: number
  lambda: number
  /** 'literal' | 'straight-through' | 'through-scale' */
  gradient: string
  learningRate: number
  warmup: number
  clip: number
  seed: number
  modelId: string
  /** '': none. */
  stateFile: string
}

export interface NativeCushion {
  readonly tokens: number[]
  readonly window: string
  readonly fingerprint: string
  /** JSON. */
  readonly report: string
  save(path: string): NativeEvaluation<undefined>
}

export interface NativeModel {
  readonly info: NativeModelInfo
  /** Closed with the model. */
  readonly tokenizer: NativeTokenizer | null
  readonly device: string
  /** 'f32' | 'bf16' | 'int8' */
  readonly precision: string
  generate(request: NativeRunRequest, onEvent: (event: NativeRunEvent) => void): NativeRun
  /** Each result [tokens * vocab], row-major. The run handle aborts. */
  logits(sequences: Int32Array[]): { result: Promise<Float32Array[]>; abort(): void }
  logProbabilities(sequences: Int32Array[]): { result: Promise<Float32Array[]>; abort(): void }
  /** layers + 1 results [tokens * hidden]. */
  hiddenStates(ids: Int32Array): { result: Promise<Float32Array[]>; abort(): void }
  /** Over all tokens scored, and those before and from the local window on. */
  textLikelihood(texts: Int32Array[], options: NativeWindowOptions, onProgress: NativeProgress | null): NativeEvaluation<NativeByPosition<NativeLikelihood>>
  /** KL(reference || this model). */
  divergence(reference: NativeModel, texts: Int32Array[], options: NativeWindowOptions, onProgress: NativeProgress | null): NativeEvaluation<NativeByPosition<NativeDivergence>>
  /** Log-probabilities, one per choice. */
  choiceLikelihoods(questions: Array<{ prompt: Int32Array; choices: Int32Array[] }>, onProgress: NativeProgress | null): NativeEvaluation<number[][]>
  activations(texts: Int32Array[], window: number, onProgress: NativeProgress | null): NativeEvaluation<{ tokens: number; sites: NativeSiteStatistics[] }>
  /** `path`: where this model was loaded from. */
  quantize(path: string, texts: Int32Array[], options: NativeQuantizeOptions, onProgress: NativeProgress | null): NativeEvaluation<NativeQuantized>
  searchCushion(texts: Int32Array[], options: NativeSearchOptions, onProgress: NativeProgress | null): NativeEvaluation<NativeCushion>
  /** `path`: where this model was loaded from. */
  tuneCushion(path: string, cushion: NativeCushion, texts: Int32Array[], options: NativeTuneOptions, onProgress: NativeProgress | null): NativeEvaluation<NativeCushion>
  readCushion(path: string): NativeEvaluation<NativeCushion>
  newSequence(): NativeSequence
  restore(path: string): Promise<NativeSequence>
  memory(): { weightBytes: number; kvBytes: number; kvLimitBytes: number; scratchBytes: number }
  /** Resolves when native work has stopped; idempotent. */
  close(): Promise<void>
}

export interface NativeEstimate {
  weightBytes: number
  kvBytesPerSequence: number
  kvBytes: number
  scratchBytes: number
  totalBytes: number
}

export interface NativeTensorFact {
  name: string
  dtype: string
  shape: number[]
  bytes: number
}

export interface NativeTensor {
  readonly shape: number[]
  readonly dtype: string
  readonly device: string
  readonly packed: boolean
  /** The elements' bytes. */
  read(): Promise<ArrayBuffer>
  dispose(): void
}

export interface NativeKvCache {
  readonly length: number
  append(k: NativeTensor, v: NativeTensor): Promise<void>
  dispose(): void
}

export interface NativeAddon {
  /** `data`: exactly the tensor's bytes; null: zeros. */
  tensor(device: string, dtype: string, shape: number[], data: NodeJS.TypedArray | null): Promise<NativeTensor>
  kvCache(device: string, dtype: string, kvHeads: number, headDim: number): Promise<NativeKvCache>
  /** One operation by name; what tensors, numbers and ids mean is that operation's. */
  op(name: string, device: string, tensors: Array<NativeTensor | null>, cache: NativeKvCache | null, numbers: number[], ids: Int32Array, dtype: string): Promise<NativeTensor[]>
  /** The seconds of each of `calls` calls, the inputs taken in turn. */
  timeOp(name: string, device: string, inputs: NativeTensor[][], numbers: number[], calls: number): Promise<number[]>
  sampleOp(logits: NativeTensor, settings: NativeSampling[], seeds: bigint[], counter: number): Promise<Int32Array>
  version(): string
  devices(): NativeDevice[]
  /** Operations and bytes a second, measured for so many seconds each; 0: not there, or not known. */
  cpuPeaks(seconds: number): Promise<NativePeaks>
  loadModel(path: string, options: NativeLoadOptions, onProgress: ((done: number, total: number) => void) | null): Promise<NativeModel>
  loadTokenizer(path: string): Promise<NativeTokenizer>
  inspect(path: string): Promise<{ info: NativeModelInfo; tensors: NativeTensorFact[] }>
  estimateMemory(path: string, options: NativeLoadOptions, sequences: number): Promise<NativeEstimate>
  /** The distribution that the sampler draws from. */
  probabilities(logits: Float32Array, sampling: NativeSampling, history: Int32Array, promptTokens: number): Float32Array
  /** Draws `count` tokens with counters 0 .. count - 1. */
  draw(logits: Float32Array, sampling: NativeSampling, history: Int32Array, promptTokens: number, seed: bigint, count: number): Int32Array
  /** Atomic; dtype F32 or I32 by the array's type. */
  writeSafetensors(path: string, tensors: Array<{ name: string; shape: number[]; data: Float32Array | Int32Array }>, metadata: Record<string, string>): Promise<void>
}
