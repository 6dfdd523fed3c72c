/** A loaded model: scores, generation, chats, and its lifetime. */

import { type CallSite, LapidaryError, awaitNative, callNative, callSite, invalid } from './errors.js'
import { Chat, type ChatOptions, type RestoreOptions, restoreChat } from './conversation.js'
import { type GenerateOptions, type GenerateResult, readGeneration } from './generation.js'
import type { ModelInfo } from './info.js'
import type { NativeModel } from './native.js'
import { describe, readOptions, signal, string, tokenIds } from './options.js'
import { Run, type RunPlan, disposed } from './run.js'
import { Tokenizer } from './tokenizer.js'

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

export class Model {
  readonly #native: NativeModel
  /** null when the model's files hold none: token ids work, text does not. */
  readonly tokenizer: Tokenizer | null
  readonly info: ModelInfo
  /** 'reference', 'cpu' or 'cuda'. */
  readonly device: string
  #closing: Promise<void> | null = null

  /** @internal */
  constructor(model: NativeModel) {
    this.#native = model
    this.tokenizer = model.tokenizer && new Tokenizer(model.tokenizer)
    this.info = model.info
    this.device = model.device
  }

  /** The logits after every token of every sequence: one array [tokens * vocab] per sequence, row-major. */
  async logits(sequences: ReadonlyArray<readonly number[] | Int32Array>, options?: ScoreOptions): Promise<Float32Array[]> {
    const site = callSite(this.logits)
    const model = this.#open()
    const { signal: abort } = readOptions('logits', options, scoreReaders)
    if (!Array.isArray(sequences)) throw invalid(`logits: sequences must be an array of arrays of token ids, received ${describe(sequences)}`)
    const checked = sequences.map((ids: unknown, i) => someTokens(ids, `logits: sequences[${i}]`, this.info.vocab))
    if (checked.length === 0) return []
    return score(site, abort, () => model.logits(checked))
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
    return score(site, abort, () => model.hiddenStates(checked))
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

/** Native work with a handle to abort it, tied to a signal. */
async function score<T>(site: CallSite, abort: AbortSignal | undefined, start: () => { result: Promise<T>; abort(): void }): Promise<T> {
  abort?.throwIfAborted()
  const work = callNative(start)
  const onAbort = (): void => work.abort()
  abort?.addEventListener('abort', onAbort, { once: true })
  try {
    return await awaitNative(site, () => work.result)
  } catch (error) {
    throw abort?.aborted ? abort.reason : error
  } finally {
    abort?.removeEventListener('abort', onAbort)
  }
}
