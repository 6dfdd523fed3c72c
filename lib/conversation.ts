/** A conversation: messages on this side, their tokens and cache on the native one. Each turn computes only what is new. */

import { type ChatFamily, type ChatPart, type Message, readContent, readMessages, renderChat, stripText } from './chat.js'
import { LapidaryError, awaitNative, callNative, callSite, invalid } from './errors.js'
import { type GenerateOptions, type GenerateResult, readGeneration } from './generation.js'
import type { ModelInfo } from './info.js'
import type { NativeModel, NativeSequence } from './native.js'
import { choice, readOptions, string } from './options.js'
import { Run, disposed } from './run.js'
import { compileTemplate, knownTemplate, readTemplate, recognizeTemplate } from './template.js'
import type { Tokenizer } from './tokenizer.js'

export interface ChatOptions {
  /** Told to the model before the first turn. Gemma 2 has no system role and refuses it. */
  system?: string
  /** A conversation so far, ending with an answer. */
  messages?: readonly Message[]
  /** The turn format. Default: the one of the model's files, else of its family. */
  format?: ChatFamily
  /** The source of a chat template to use instead. */
  template?: string
}

export interface RestoreOptions {
  /** The turn format that the chat was saved with. Default: the one of the model's files, else of its family. */
  format?: ChatFamily
}

/** What a chat needs of its model. */
export interface ChatModel {
  readonly native: NativeModel
  readonly tokenizer: Tokenizer
  readonly info: ModelInfo
}

type Render = (messages: readonly Message[], generationPrompt: boolean) => ChatPart[]

interface Format {
  /** null: a template of its own. */
  readonly family: ChatFamily | null
  readonly render: Render
}

const formatReader = choice('gemma2', 'gemma3')
const chatReaders = { system: string, messages: readMessages, format: formatReader, template: readTemplate }

/** What is kept of a conversation besides the native cache; copied by fork. */
class History {
  messages: Message[] = []
  /** Tokens that a message really has in the cache, where encoding its text again might give others. */
  tokens: Map<number, readonly number[]> = new Map()
  /** Messages whose control tokens are meant as such. */
  special: Set<number> = new Set()
  /** Per exchange: how much of the sequence comes before it. */
  starts: number[] = []

  copy(): History {
    const copy = new History()
    copy.messages = [...this.messages]
    copy.tokens = new Map(this.tokens)
    copy.special = new Set(this.special)
    copy.starts = [...this.starts]
    return copy
  }

  /** Forgets the last exchanges; gives the length that the sequence may keep. */
  cut(exchanges: number): number {
    const users = this.messages.flatMap((message, i) => (message.role === 'user' ? [i] : []))
    const from = users[users.length - exchanges]!
    this.messages.length = from
    for (const i of [...this.tokens.keys()]) if (i >= from) this.tokens.delete(i)
    for (const i of [...this.special]) if (i >= from) this.special.delete(i)
    const start = this.starts[users.length - exchanges] ?? 0
    this.starts.length = Math.min(this.starts.length, users.length - exchanges)
    return start
  }
}

export class Chat {
  readonly #model: ChatModel
  readonly #options: ChatOptions
  readonly #sequence: NativeSequence
  readonly #history: History
  #format: Promise<Format> | null = null
  /** Stretches of the last rendering and their ids: the beginning of a conversation is encoded once. */
  #encoded: Map<string, readonly number[]> = new Map()
  #run: Run | null = null
  #closed = false

  /** @internal */
  constructor(model: ChatModel, options?: ChatOptions, from?: { sequence: NativeSequence; history: History }) {
    const { system, messages = [], ...rest } = readOptions('chat', options, chatReaders)
    if (rest.format && rest.template) throw invalid('chat: give format or template, not both')
    if (system !== undefined && messages[0]?.role === 'system') throw invalid('chat: system is given twice, as an option and as the first message')
    const last = messages.at(-1)?.role
    if (last === 'user') throw invalid('chat: messages must end with an answer; give the last user message to send()')
    refuseImages(messages)
    this.#model = model
    this.#options = rest
    this.#history = from?.history ?? new History()
    if (!from) this.#history.messages = system === undefined ? messages : [{ role: 'system', content: system }, ...messages]
    if (!rest.template && !model.tokenizer.chatTemplate) checkMarkers(model.tokenizer)
    this.#sequence = from?.sequence ?? callNative(() => model.native.newSequence())
  }

  /** The finished part of the conversation. */
  get messages(): readonly Message[] {
    return [...this.#history.messages]
  }

  /** The conversation as the model has read it: token ids, BOS and turn markers included. */
  tokens(): number[] {
    this.#open()
    return callNative(() => this.#sequence.tokens())
  }

  /**
   * Sends a message and gives the answer as a run: iterate it for parts, or await its `result`. The exchange joins `messages` at
   * the end; an answer that was aborted stays with what there is, one that failed leaves no trace.
   */
  send(content: Message['content'], options?: GenerateOptions): Run {
    const site = callSite(this.send)
    this.#idle('send')
    const { native, tokenizer, info } = this.#model
    const message: Message = { role: 'user', content: readContent(content, 'send: content') }
    refuseImages([message])
    const generation = readGeneration('send', options, info.defaults)
    const endOfTurn = tokenizer.find('<end_of_turn>')
    const messages = [...this.#history.messages, message]
    let start = 0
    const run = new Run({
      native,
      generation,
      site,
      sequence: this.#sequence,
      stopIds: endOfTurn >= 0 ? [endOfTurn] : [],
      prepare: async () => {
        const special = new Set(this.#history.special)
        if (generation.special) special.add(messages.length - 1)
        const target = await this.#encode(messages, special)
        this.#open()
        start = this.#keepCommon(target)
        return target.slice(start)
      },
      onEnd: (result) => {
        this.#run = null
        if (result && (result.text !== '' || result.finishReason !== 'aborted')) this.#append(message, result, start, generation.special)
      },
    })
    if (!run.ended) this.#run = run
    return run
  }

  /** A second conversation with the same past; what they have in common is kept in memory once. */
  fork(): Chat {
    this.#idle('fork')
    return new Chat(this.#model, this.#options, { sequence: callNative(() => this.#sequence.fork()), history: this.#history.copy() })
  }

  /** Takes back the last exchanges, a message and its answer each. */
  rewind(turns: number = 1): void {
    this.#idle('rewind')
    const exchanges = this.#history.messages.filter((message) => message.role === 'user').length
    if (!Number.isInteger(turns) || turns < 0 || turns > exchanges) {
      throw invalid(`rewind: turns must be an integer from 0 to ${exchanges}, the exchanges so far; received ${turns}`)
    }
    if (turns === 0) return
    const keep = this.#history.cut(turns)
    callNative(() => this.#sequence.rewind(Math.min(keep, this.#sequence.tokens().length)))
  }

  /**
   * Writes the conversation and its cache to one file, for `model.loadChat`; an older file stays whole until the new one is.
   * The file holds tokens: a system message comes back as the beginning of the first user message, as Gemma reads it.
   */
  async save(path: string): Promise<void> {
    const site = callSite(this.save)
    this.#idle('save')
    const file = string(path, 'save: path')
    const { family } = await this.#getFormat()
    if (!family) throw new LapidaryError('unsupported', 'save: a chat with a template of its own cannot be restored from its tokens; keep its messages instead')
    this.#idle('save')
    if (this.#history.messages.length === 0) throw invalid('save: the conversation has no turn yet')
    await awaitNative(site, () => this.#sequence.save(file))
  }

  /** Stops an answer under way and frees the cache. May be called again. */
  async close(): Promise<void> {
    if (this.#closed) return
    this.#closed = true
    this.#run?.abort()
    await this.#run?.result.catch(() => {})
    callNative(() => this.#sequence.close())
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  #open(): void {
    if (this.#closed) throw disposed('chat')
  }

  #idle(what: string): void {
    this.#open()
    if (this.#run) throw invalid(`${what}: the chat is busy with an answer; read it to its end, or abort it and await its result`)
  }

  #getFormat(): Promise<Format> {
    this.#format ??= chooseFormat(this.#model, this.#options)
    return this.#format
  }

  /** The ids of the whole conversation, with BOS once; answers keep the tokens that they were generated as. */
  async #encode(messages: readonly Message[], special: ReadonlySet<number>): Promise<Int32Array> {
    const { tokenizer } = this.#model
    const { render } = await this.#getFormat()
    const encoded = new Map<string, readonly number[]>()
    const stretches: Array<readonly number[]> = []
    let open: Array<{ text: string; special: boolean }> = []
    const flush = async (): Promise<void> => {
      if (open.length === 0) return
      const key = JSON.stringify(open)
      const ids = this.#encoded.get(key) ?? await tokenizer.encodeParts(open)
      encoded.set(key, ids)
      stretches.push(ids)
      open = []
    }
    for (const part of render(messages, true)) {
      const known = part.message === undefined ? undefined : this.#history.tokens.get(part.message)
      if (known) {
        await flush()
        stretches.push(known)
      } else open.push({ text: part.text, special: part.special || (part.message !== undefined && special.has(part.message)) })
    }
    await flush()
    this.#encoded = encoded
    return oneBos(tokenizer, stretches)
  }

  /** Makes the sequence a beginning of `target`; gives its length. At least one token is left to compute. */
  #keepCommon(target: Int32Array): number {
    return callNative(() => {
      const have = this.#sequence.tokens()
      const most = Math.min(have.length, target.length - 1)
      let same = 0
      while (same < most && have[same] === target[same]) same++
      if (same < have.length) this.#sequence.rewind(same)
      this.#history.starts = this.#history.starts.map((start) => Math.min(start, same))
      return same
    })
  }

  #append(message: Message, result: GenerateResult, start: number, special: boolean): void {
    const { messages, tokens, starts } = this.#history
    const exchanges = messages.filter(({ role }) => role === 'user').length
    while (starts.length < exchanges) starts.push(0)
    starts.push(start)
    if (special) this.#history.special.add(messages.length)
    messages.push(message, { role: 'assistant', content: result.text })
    // The format trims answers: one with blanks around it, or with control tokens in it, is encoded anew for the next turn.
    const asRendered = stripText(result.text)
    if (this.#model.tokenizer.decode(result.tokens) === asRendered) tokens.set(messages.length - 1, result.tokens)
  }
}

/** The chat of a saved sequence, its messages read back from its tokens. */
export async function restoreChat(model: ChatModel, options: RestoreOptions | undefined, restore: () => Promise<NativeSequence>): Promise<Chat> {
  const read = readOptions('loadChat', options, { format: formatReader })
  const { family } = await chooseFormat(model, read)
  if (!family) throw new LapidaryError('unsupported', "loadChat: the model's chat template is not one of Gemma's; name the format ('gemma2' or 'gemma3')")
  const sequence = await restore()
  try {
    return new Chat(model, { ...read, format: family }, { sequence, history: parseTurns(model.tokenizer, sequence.tokens()) })
  } catch (error) {
    sequence.close()
    throw error
  }
}

/** Reads messages back from the tokens of a conversation. */
function parseTurns(tokenizer: Tokenizer, ids: readonly number[]): History {
  const startOfTurn = tokenizer.find('<start_of_turn>'), endOfTurn = tokenizer.find('<end_of_turn>')
  const history = new History()
  const heads = (['user', 'model'] as const).map((name) => tokenizer.encode(`<start_of_turn>${name}\n`, { special: true }))
  let answerEnd = 0
  for (let at = ids.indexOf(startOfTurn); at >= 0;) {
    const next = ids.indexOf(startOfTurn, at + 1)
    const turn = ids.slice(at, next < 0 ? undefined : next)
    const end = turn.lastIndexOf(endOfTurn) < 0 ? turn.length : turn.lastIndexOf(endOfTurn)
    const head = heads.findIndex((prefix) => prefix.every((id, i) => turn[i] === id))
    if (head !== history.messages.length % 2) throw new LapidaryError('bad_file', 'loadChat: the saved tokens are not turns of a user and the model')
    const content = turn.slice(heads[head]!.length, end)
    const text = tokenizer.decode(content)
    if (head === 0) history.starts.push(answerEnd)
    // The same rule as for a fresh answer: the format trims, so an answer with blanks around it is encoded anew.
    if (head === 0 || stripText(text) === text) history.tokens.set(history.messages.length, content)
    history.messages.push({ role: head === 0 ? 'user' : 'assistant', content: text })
    answerEnd = at + end
    at = next
  }
  if (history.messages.length === 0 || history.messages.length % 2 !== 0) {
    throw new LapidaryError('bad_file', `loadChat: the saved tokens hold ${history.messages.length} turns; a chat has a message and an answer each`)
  }
  return history
}

async function chooseFormat({ tokenizer, info }: ChatModel, options: ChatOptions): Promise<Format> {
  const bos = tokenizer.bosId >= 0 ? tokenizer.piece(tokenizer.bosId) : ''
  const code = (family: ChatFamily): Format => {
    checkMarkers(tokenizer)
    return { family, render: (messages, generationPrompt) => renderChat(family, messages, generationPrompt, bos) }
  }
  if (options.format) return code(options.format)
  const source = options.template ?? tokenizer.chatTemplate
  if (!source) return code(formatReader(info.family, 'chat: the format for this model'))
  const official = knownTemplate(source)
  if (official) return code(official)
  const template = await compileTemplate(source, { bos, eos: tokenizer.eosId >= 0 ? tokenizer.piece(tokenizer.eosId) : '' })
  const family = await recognizeTemplate(template, bos)
  return family ? code(family) : { family: null, render: template.render }
}

function checkMarkers(tokenizer: Tokenizer): void {
  for (const marker of ['<start_of_turn>', '<end_of_turn>']) {
    const id = tokenizer.find(marker)
    if (id < 0 || !tokenizer.isControl(id)) {
      throw new LapidaryError('unsupported', `chat: the vocabulary has no control token ${marker}, so this model was not made for chats; use generate()`)
    }
  }
}

function refuseImages(messages: readonly Message[]): void {
  if (messages.some(({ content }) => typeof content !== 'string' && content.some((item) => item.type === 'image'))) {
    throw new LapidaryError('unsupported', "chat: images need the model's vision part, which is not loaded; send text")
  }
}

/** All stretches in one array that begins with BOS exactly once; a vocabulary that wants none gets what the format wrote. */
function oneBos({ addBos, bosId }: Tokenizer, stretches: ReadonlyArray<readonly number[]>): Int32Array {
  const ids = stretches.flat()
  let written = 0
  while (bosId >= 0 && ids[written] === bosId) written++
  const wanted = bosId >= 0 && (addBos || written > 0) ? 1 : 0
  const out = new Int32Array(wanted + ids.length - written).fill(bosId, 0, wanted)
  out.set(ids.slice(written), wanted)
  return out
}
