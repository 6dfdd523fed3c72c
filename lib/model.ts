/** A loaded model: scores, generation, chats, and its lifetime. */

import { type CallSite, LapidaryError, awaitNative, callNative, callSite, invalid } from './errors.js'
import {
  type ActivationOptions, type Activations, type ChoiceScores, type DivergenceByPosition, type EvaluationOptions, type EvaluationText,
  type LikelihoodByPosition, type Question, type WindowOptions, activationReaders, checkQuestions, choiceScores, defaultWindow, divergenceOf,
  evaluationReaders, likelihood, nativeWindow, questionIds, textIds, windowReaders,
} from './evaluation.js'
import { Chat, type ChatOptions, type RestoreOptions, restoreChat } from './conversation.js'
import { type GenerateOptions, type GenerateResult, readGeneration } from './generation.js'
import type { ModelInfo } from './info.js'
import type { NativeLoadOptions, NativeModel } from './native.js'
import { type ReadOptions, describe, readOptions, signal, string, tokenIds } from './options.js'
import { type CushionPlan, type QuantizeOptions, type QuantizeReport, QuantizedOf, completeQuantize, phase, quantizeReaders, readCalibration } from './quantize.js'
import {
  Cushion, type CushionSearchOptions, type CushionTuneOptions, completeSearch, completeTune, searchReaders, tuneReaders,
} from './cushion.js'
import { Run, type RunPlan, disposed } from './run.js'
import { Tokenizer } from './tokenizer.js'
import { abortable, watched } from './work.js'

export interface MemoryUse {
  readonly weightBytes: number
  readonly kvBytes: number
  /** 0: no limit. */
  readonly kvLimitBytes: number
  readonly scratchBytes: number
}

export interface ScoreOptions {
  /** Aborts within one step; the promise rejects with the signal's reason. */
  signal?: AbortSignal
}

const scoreReaders = { signal }

/** What matrix products read. */
export type Precision = 'f32' | 'bf16' | 'int8'

/** Where a model came from, and how it was loaded. */
export interface Origin {
  readonly path: string
  readonly options: NativeLoadOptions
}

/** What quantize gives. */
export type Quantized = QuantizedOf<Model>

export class Model {
  readonly #native: NativeModel
  readonly #origin: Origin
  /** null when the model's files hold none: token ids work, text does not. */
  readonly tokenizer: Tokenizer | null
  readonly info: ModelInfo
  /** 'reference', 'cpu' or 'cuda'. */
  readonly device: string
  /** The precision that it computes in: what was asked for, or the default for its weights. */
  readonly precision: Precision
  #closing: Promise<void> | null = null

  /** @internal */
  constructor(model: NativeModel, origin: Origin) {
    this.#native = model
    this.#origin = origin
    this.tokenizer = model.tokenizer && new Tokenizer(model.tokenizer)
    this.info = model.info
    this.device = model.device
    this.precision = model.precision as Precision
  }

  /** The logits after every token of every sequence: one array [tokens * vocab] per sequence, row-major. */
  async logits(sequences: ReadonlyArray<readonly number[] | Int32Array>, options?: ScoreOptions): Promise<Float32Array[]> {
    const site = callSite(this.logits)
    const model = this.#open()
    const { signal: abort } = readOptions('logits', options, scoreReaders)
    const checked = sequenceIds('logits', sequences, this.info.vocab)
    if (checked.length === 0) return []
    return abortable(site, abort, () => model.logits(checked))
  }

  /**
   * The natural logarithm of the probability of each token but the first, given all before it: one array [tokens - 1] per sequence. Far
   * cheaper than logits(), which hands over the whole vocabulary.
   */
  async logProbabilities(sequences: ReadonlyArray<readonly number[] | Int32Array>, options?: ScoreOptions): Promise<Float32Array[]> {
    const site = callSite(this.logProbabilities)
    const model = this.#open()
    const { signal: abort } = readOptions('logProbabilities', options, scoreReaders)
    const checked = sequenceIds('logProbabilities', sequences, this.info.vocab)
    if (checked.length === 0) return []
    return abortable(site, abort, () => model.logProbabilities(checked))
  }

  /**
   * What flows between layers, one array [tokens * hidden] each: the scaled embeddings, then the residual stream after every
   * layer; the last one is after the final norm.
   */
  async hiddenStates(ids: readonly number[] | Int32Array, options?: ScoreOptions): Promise<Float32Array[]> {
    const site = callSite(this.hiddenStates)
    const model = this.#open()
    const { signal: abort } = readOptions('hiddenStates', options, scoreReaders)
    const checked = someTokens(ids, 'hiddenStates: ids', this.info.vocab)
    return abortable(site, abort, () => model.hiddenStates(checked))
  }

  /** How well the model predicts texts, read in windows that each begin with BOS (which the cushion may hold). */
  async perplexity(texts: readonly EvaluationText[], options?: WindowOptions): Promise<LikelihoodByPosition> {
    const site = callSite(this.perplexity)
    const read = readOptions('perplexity', options, windowReaders)
    const ids = await this.#textIds('perplexity', texts)
    const figures = await watched(site, read, (tell) => this.#open().textLikelihood(ids, nativeWindow(read, this.info.maxPositions), tell))
    return { ...likelihood(figures), within: likelihood(figures.within), beyond: likelihood(figures.beyond) }
  }

  /** How far this model is from a reference with the same vocabulary: both read the texts together. */
  async divergence(reference: Model, texts: readonly EvaluationText[], options?: WindowOptions): Promise<DivergenceByPosition> {
    const site = callSite(this.divergence)
    if (!(reference instanceof Model)) throw invalid(`divergence: reference must be a model, received ${describe(reference)}`)
    const read = readOptions('divergence', options, windowReaders)
    const ids = await this.#textIds('divergence', texts)
    const window = nativeWindow(read, Math.min(this.info.maxPositions, reference.info.maxPositions))
    const figures = await watched(site, read, (tell) => this.#open().divergence(reference.#open(), ids, window, tell))
    return { ...divergenceOf(figures), within: divergenceOf(figures.within), beyond: divergenceOf(figures.beyond) }
  }

  /** How likely each choice is to follow its question's prompt. Which answer that means is the caller's to say: the likeliest, or per byte. */
  async scoreChoices(questions: readonly Question[], options?: EvaluationOptions): Promise<ChoiceScores[]> {
    const site = callSite(this.scoreChoices)
    const read = readOptions('scoreChoices', options, evaluationReaders)
    const checked = checkQuestions('scoreChoices', questions)
    this.#open()
    const ids = await questionIds('scoreChoices', checked, this.#needTokenizer('scoreChoices'))
    const sums = await watched(site, read, (tell) => this.#open().choiceLikelihoods(ids, tell))
    return checked.map((question, i) => choiceScores(question, sums[i]!))
  }

  /** What enters the matrix products of every layer while texts are read: ranges, outliers and the tokens they stand on. */
  async activations(texts: readonly EvaluationText[], options?: ActivationOptions): Promise<Activations> {
    const site = callSite(this.activations)
    const read = readOptions('activations', options, activationReaders)
    const ids = await this.#textIds('activations', texts)
    const window = read.window ?? defaultWindow(this.info.maxPositions)
    return watched(site, read, (tell) => this.#open().activations(ids, window, tell)) as Promise<Activations>
  }

  /** This model in int8, made from its file: see QuantizeOptions. What static scales need is measured on this model, which goes on as it is. */
  async quantize(options?: QuantizeOptions): Promise<Quantized> {
    const site = callSite(this.quantize)
    const read = readOptions('quantize', options, quantizeReaders)
    const { path, options: loading } = this.#origin
    const complete = completeQuantize(read, this.info.vocab, defaultWindow(this.info.maxPositions), loading.threads)
    const wanted = complete.activations === 'static' || complete.smooth >= 0
    const texts = wanted ? await this.#textIds('quantize', await readCalibration(read.calibration!)) : []
    const began = performance.now()
    const made = read.cushion ? await this.#makeCushion(site, read, read.cushion) : null
    if (made) complete.cushion = made.tokens.length > 0 ? made.native : false
    const native = await watched(site, phase('calibration', read), (tell) => this.#open().quantize(path, texts, complete, tell))
    const { weights, activations, embedding, smooth } = complete
    const report = {
      scheme: activations === 'none' ? 'w8' : 'w8a8', weights, activations, embedding, smooth: smooth < 0 ? null : smooth, ...native.report,
      cushionReport: made?.report ?? null,
      seconds: (performance.now() - began) / 1000,
    } as QuantizeReport
    const result = new QuantizedOf<Model>(native, report, { ...loading, weights: 'as-is' }, (made) => new Model(made, this.#origin))
    if (read.load !== false) await result.loadAt(site, read)
    return result
  }

  /** What `cushion` of quantize asks for; its report has both parts. Without tokens when the search found none. */
  async #makeCushion(site: CallSite, read: ReadOptions<typeof quantizeReaders>, { search, tune }: CushionPlan): Promise<Cushion> {
    const { path } = this.#origin
    const textsOf = async (own: CushionPlan['tune']): Promise<Int32Array[]> => this.#textIds('quantize', await readCalibration(own?.texts ?? read.calibration!))
    let cushion: Cushion | null = null
    if (search) {
      const texts = await textsOf(search), options = completeSearch(search, this.info, path)
      cushion = new Cushion(await watched(site, phase('search', read), (tell) => this.#open().searchCushion(texts, options, tell)))
      if (!tune || cushion.tokens.length === 0) return cushion
    }
    const from: Cushion = cushion ?? (read.prefix instanceof Cushion ? read.prefix : await this.readCushion(read.prefix as string))
    const texts = await textsOf(tune), options = completeTune(tune!, this.info, from.tokens.length, path)
    const tuned = await watched(site, phase('tuning', read), (tell) => this.#open().tuneCushion(path, from.native, texts, options, tell))
    return new Cushion(tuned, from.report)
  }

  /** The tokens of a cushion that makes these texts err least under one int8 scale per place: hours for a large model, so see `state`. */
  async searchCushion(options: CushionSearchOptions): Promise<Cushion> {
    const site = callSite(this.searchCushion)
    const read = readOptions('searchCushion', options, searchReaders)
    if (read.texts === undefined) throw invalid('searchCushion: texts are needed')
    const complete = completeSearch(read, this.info, this.#origin.path)
    const texts = await this.#textIds('searchCushion', await readCalibration(read.texts))
    return new Cushion(await watched(site, read, (tell) => this.#open().searchCushion(texts, complete, tell)))
  }

  /** A cushion, or the file of one, trained so that these texts lose less through int8 inputs. The model must be on the processor. */
  async tuneCushion(cushion: Cushion | string, options: CushionTuneOptions): Promise<Cushion> {
    const site = callSite(this.tuneCushion)
    const read = readOptions('tuneCushion', options, tuneReaders)
    if (read.texts === undefined) throw invalid('tuneCushion: texts are needed')
    const from = typeof cushion === 'string' ? await this.readCushion(cushion) : cushion
    if (!(from instanceof Cushion)) throw invalid(`tuneCushion: cushion must be a cushion or the path of one, received ${describe(cushion)}`)
    const { path } = this.#origin
    const complete = completeTune(read, this.info, from.tokens.length, path)
    const texts = await this.#textIds('tuneCushion', await readCalibration(read.texts))
    return new Cushion(await watched(site, read, (tell) => this.#open().tuneCushion(path, from.native, texts, complete, tell)))
  }

  /** The cushion in a file, which must be of this model's shape. */
  async readCushion(file: string): Promise<Cushion> {
    const site = callSite(this.readCushion)
    const path = string(file, 'readCushion: file')
    return new Cushion(await watched(site, {}, () => this.#open().readCushion(path)))
  }

  /** Continues a prompt: text begins with BOS, once; token ids are taken as they are. */
  async generate(prompt: string | readonly number[] | Int32Array, options?: GenerateOptions): Promise<GenerateResult> {
    return new Run(this.#plan('generate', callSite(this.generate), prompt, options)).result
  }

  /** The same as a run to iterate over, part by part. */
  stream(prompt: string | readonly number[] | Int32Array, options?: GenerateOptions): Run {
    return new Run(this.#plan('stream', callSite(this.stream), prompt, options))
  }

  /** A conversation in the model's own turn format. */
  chat(options?: ChatOptions): Chat {
    return new Chat({ native: this.#open(), tokenizer: this.#needTokenizer('chat'), info: this.info }, options)
  }

  /** A conversation saved with `chat.save`, ready to go on without computing anything again. */
  async loadChat(path: string, options?: RestoreOptions): Promise<Chat> {
    const site = callSite(this.loadChat)
    const model = this.#open()
    const file = string(path, 'loadChat: path')
    return restoreChat({ native: model, tokenizer: this.#needTokenizer('loadChat'), info: this.info }, options, () => awaitNative(site, () => model.restore(file)))
  }

  memory(): MemoryUse {
    const model = this.#open()
    return callNative(() => model.memory())
  }

  /** Stops everything that runs on the model and frees it; resolves when native work has stopped. May be called again. */
  close(): Promise<void> {
    this.#closing ??= awaitNative(callSite(this.close), () => this.#native.close())
    return this.#closing
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  #open(): NativeModel {
    if (this.#closing) throw disposed('model')
    return this.#native
  }

  #textIds(owner: string, texts: readonly EvaluationText[]): Promise<Int32Array[]> {
    this.#open()
    return textIds(owner, texts, this.info.vocab, () => this.#needTokenizer(owner))
  }

  #needTokenizer(what: string): Tokenizer {
    if (this.tokenizer) return this.tokenizer
    throw new LapidaryError('unsupported', `${what}: the model's files hold no tokenizer; put tokenizer.json beside them, or use token ids`)
  }

  #plan(owner: string, site: CallSite, prompt: unknown, options: GenerateOptions | undefined): RunPlan {
    const model = this.#open()
    const generation = readGeneration(owner, options, this.info.defaults)
    if (typeof prompt !== 'string') {
      const ids = someTokens(prompt, `${owner}: prompt`, this.info.vocab)
      return { native: model, generation, site, sequence: null, prepare: async () => ids }
    }
    const tokenizer = this.#needTokenizer(`${owner} from text`)
    const prepare = async (): Promise<Int32Array> => {
      const ids = withBos(tokenizer, await tokenizer.encodeParts([{ text: prompt, special: generation.special }]))
      if (ids.length === 0) throw invalid(`${owner}: prompt must not be empty`)
      return ids
    }
    return { native: model, generation, site, sequence: null, prepare }
  }
}

function sequenceIds(owner: string, sequences: unknown, vocab: number): Int32Array[] {
  if (!Array.isArray(sequences)) throw invalid(`${owner}: sequences must be an array of arrays of token ids, received ${describe(sequences)}`)
  return sequences.map((ids: unknown, i) => someTokens(ids, `${owner}: sequences[${i}]`, vocab))
}

function someTokens(value: unknown, name: string, vocab: number): Int32Array {
  const ids = tokenIds(value, name, vocab)
  if (ids.length === 0) throw invalid(`${name} must hold at least one token id`)
  return ids
}

/** Ids with BOS in front, exactly once, where the vocabulary wants it. */
function withBos(tokenizer: Tokenizer, ids: readonly number[]): Int32Array {
  const { addBos, bosId } = tokenizer
  const missing = addBos && bosId >= 0 && ids[0] !== bosId ? 1 : 0
  const out = new Int32Array(ids.length + missing).fill(bosId, 0, missing)
  out.set(ids, missing)
  return out
}
