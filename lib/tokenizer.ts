/** Text to token ids and back, as the model's own vocabulary has it. */

import { awaitNative, callNative, callSite } from './errors.js'
import { native } from './loader.js'
import type { NativeTextPart, NativeTokenizer } from './native.js'
import { boolean, describe, readOptions, string, tokenIds } from './options.js'
import { invalid } from './errors.js'

export interface EncodeOptions {
  /** Parse control tokens written in the text ("<start_of_turn>"). Default false: they are plain characters. */
  special?: boolean
}

export interface DecodeOptions {
  /** Whether control tokens are written into the text. Default true, so that nothing is lost; a generated text leaves them out. */
  special?: boolean
}

/** Turns ids into text as they come; what push and flush give, joined, is what decode gives. */
export interface TextDecoderStream {
  /** Characters that are complete with this token; may be ''. */
  push(id: number): string
  /** What is left; bytes that make no character become U+FFFD. */
  flush(): string
}

const specialReader = { special: boolean }

export class Tokenizer {
  readonly #native: NativeTokenizer
  readonly size: number
  /** -1 when the vocabulary has none; likewise the others. */
  readonly bosId: number
  readonly eosId: number
  readonly padId: number
  readonly unkId: number
  /** Whether plain prompts begin with BOS. */
  readonly addBos: boolean
  /** The template in the model's files, or ''. */
  readonly chatTemplate: string

  /** @internal */
  constructor(tokenizer: NativeTokenizer) {
    this.#native = tokenizer
    this.size = tokenizer.size
    this.bosId = tokenizer.bosId
    this.eosId = tokenizer.eosId
    this.padId = tokenizer.padId
    this.unkId = tokenizer.unkId
    this.addBos = tokenizer.addBos
    this.chatTemplate = tokenizer.chatTemplate
  }

  /** The ids of a text; no BOS is added. Takes its time on this thread: prefer encodeBatch for long texts. */
  encode(text: string, options?: EncodeOptions): number[] {
    const { special = false } = readOptions('encode', options, specialReader)
    return callNative(() => this.#native.encode([{ text: string(text, 'encode: text'), special }]))
  }

  /** Many texts at once, off the JavaScript thread. */
  encodeBatch(texts: readonly string[], options?: EncodeOptions): Promise<number[][]> {
    const site = callSite(this.encodeBatch)
    const { special = false } = readOptions('encodeBatch', options, specialReader)
    if (!Array.isArray(texts)) throw invalid(`encodeBatch: texts must be an array of strings, received ${describe(texts)}`)
    const batch = texts.map((text, i) => [{ text: string(text, `encodeBatch: texts[${i}]`), special }])
    return awaitNative(site, () => this.#native.encodeBatch(batch))
  }

  decode(ids: ArrayLike<number>, options?: DecodeOptions): string {
    const { special = true } = readOptions('decode', options, specialReader)
    const checked = tokenIds(ids instanceof Int32Array ? ids : Array.from(ids), 'decode: ids', this.size)
    return callNative(() => this.#native.decode(checked, special))
  }

  /** A decoder for ids that come one by one. */
  stream(options?: DecodeOptions): TextDecoderStream {
    const { special = true } = readOptions('stream', options, specialReader)
    const stream = callNative(() => this.#native.stream(special))
    return { push: (id) => callNative(() => stream.push(id)), flush: () => callNative(() => stream.flush()) }
  }

  /** A token as the vocabulary stores it. */
  piece(id: number): string {
    return callNative(() => this.#native.piece(id))
  }

  /** The id of a stored piece, or -1. */
  find(piece: string): number {
    return callNative(() => this.#native.find(string(piece, 'find: piece')))
  }

  /** Whether a token steers the model ("<end_of_turn>") instead of standing for text. */
  isControl(id: number): boolean {
    return callNative(() => this.#native.isControl(id))
  }

  /** @internal Parts of one text that differ in whether control tokens are parsed; off the JavaScript thread. */
  encodeParts(parts: readonly NativeTextPart[]): Promise<number[]> {
    return this.#native.encodeAsync(parts.map(({ text, special }) => ({ text, special })))
  }
}

/** Loads a tokenizer alone: from a model folder, a folder with only a tokenizer, a tokenizer.json or a .gguf file. */
export async function loadTokenizer(path: string): Promise<Tokenizer> {
  const site = callSite(loadTokenizer)
  const file = string(path, 'loadTokenizer: path')
  return new Tokenizer(await awaitNative(site, () => native().loadTokenizer(file)))
}
