/**
 * Gemma's turn formats. A conversation becomes a list of parts that say where control tokens may come from: the frame is
 * trusted, what people wrote is not. Renderings and refusals are those of the official templates.
 */

import { invalid } from './errors.js'
import { choice, describe } from './options.js'

export type ContentPart = { readonly type: 'text'; readonly text: string } | { readonly type: 'image' }

export interface Message {
  readonly role: 'system' | 'user' | 'assistant'
  readonly content: string | readonly ContentPart[]
}

export type ChatFamily = 'gemma2' | 'gemma3'

/** A stretch of rendered text. */
export interface ChatPart {
  readonly text: string
  /** Control tokens written in it are meant as such. */
  readonly special: boolean
  /** It is content of this message; absent: it is the frame around messages. */
  readonly message?: number
}

const roles = 'Conversation roles must alternate user/assistant/user/assistant/...'

/** The conversation as `family` was trained to read it, beginning with the text of BOS. */
export function renderChat(family: ChatFamily, messages: readonly Message[], generationPrompt: boolean, bos: string = '<bos>'): ChatPart[] {
  if (messages.length === 0) throw invalid('a conversation needs at least one message')
  const parts: ChatPart[] = [frame(bos)]
  let first = 0
  let system: ChatPart[] = []
  if (messages[0]!.role === 'system') {
    if (family === 'gemma2') throw invalid('System role not supported')
    system = [...systemText(messages[0]!.content), frame('\n\n')]
    first = 1
  }
  for (let i = first; i < messages.length; i++) {
    const { role, content } = messages[i]!
    if ((role === 'user') !== ((i - first) % 2 === 0)) throw invalid(roles)
    parts.push(frame('<start_of_turn>'), role === 'assistant' ? frame('model') : { text: String(role), special: role === 'user' }, frame('\n'))
    if (i === first) parts.push(...system)
    parts.push(...contentParts(family, content, i), frame('<end_of_turn>\n'))
  }
  if (generationPrompt) parts.push(frame('<start_of_turn>model\n'))
  return joinAlike(parts)
}

function frame(text: string): ChatPart {
  return { text, special: true }
}

function userText(text: string, message: number): ChatPart {
  return { text, special: false, message }
}

/** Untrimmed, and of a list only the first item: so do the official templates. */
function systemText(content: Message['content']): ChatPart[] {
  if (typeof content === 'string') return [userText(content, 0)]
  const item = Array.isArray(content) ? content[0] : undefined
  if (item?.type !== 'text' || typeof item.text !== 'string') throw invalid('a system message must be text')
  return [userText(item.text, 0)]
}

function contentParts(family: ChatFamily, content: Message['content'], message: number): ChatPart[] {
  if (typeof content === 'string') return [userText(stripText(content), message)]
  if (!Array.isArray(content)) throw invalid('Invalid content type')
  const parts: ChatPart[] = []
  for (const item of content as readonly ContentPart[]) {
    if (item?.type === 'text') {
      if (typeof item.text !== 'string') throw invalid(`the text of message ${message} must be a string, received ${describe(item.text)}`)
      parts.push(userText(stripText(item.text), message))
    } else if (item?.type === 'image') {
      if (family === 'gemma2') throw invalid('Gemma 2 reads no images')
      parts.push(frame('<start_of_image>'))
    }
  }
  return parts
}

/** Neighbours of the same kind become one part; contents of messages stay apart. */
function joinAlike(parts: readonly ChatPart[]): ChatPart[] {
  const out: ChatPart[] = []
  for (const part of parts) {
    const last = out.at(-1)
    if (last && last.special === part.special && last.message === undefined && part.message === undefined) {
      out[out.length - 1] = { text: last.text + part.text, special: part.special }
    } else if (part.text !== '') out.push(part)
  }
  return out
}

/** Unicode white space and the separators U+001C to U+001F and U+0085, but not U+FEFF: what the templates' `trim` removes. */
const blanks: ReadonlySet<string> = new Set(
  '\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000',
)

export function stripText(text: string): string {
  let from = 0, to = text.length
  while (from < to && blanks.has(text[from]!)) from++
  while (to > from && blanks.has(text[to - 1]!)) to--
  return text.slice(from, to)
}

/** Messages that came from outside, checked in shape; order is the format's business. */
export function readMessages(value: unknown, name: string): Message[] {
  if (!Array.isArray(value)) throw invalid(`${name} must be an array of messages, received ${describe(value)}`)
  return value.map((message: unknown, i) => {
    if (typeof message !== 'object' || message === null) throw invalid(`${name}[${i}] must be an object, received ${describe(message)}`)
    const { role, content } = message as Partial<Message>
    return { role: choice('system', 'user', 'assistant')(role, `${name}[${i}].role`), content: readContent(content, `${name}[${i}].content`) }
  })
}

export function readContent(value: unknown, name: string): Message['content'] {
  if (typeof value === 'string') return value
  if (!Array.isArray(value)) throw invalid(`${name} must be a string or an array of parts, received ${describe(value)}`)
  return value.map((item: unknown, i) => {
    const { type, text } = (item ?? {}) as { type?: unknown; text?: unknown }
    if (type === 'image') return { type }
    if (type === 'text' && typeof text === 'string') return { type, text }
    throw invalid(`${name}[${i}] must be { type: 'text', text } or { type: 'image' }`)
  })
}
