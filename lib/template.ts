/**
 * Chat templates found in model files. A template is a program that mixes its own text with what people wrote, so it is run
 * twice: with the messages, and with unguessable marks in their place. The second run shows which text is the template's own.
 */

import { createHash, randomBytes } from 'node:crypto'
import { setImmediate } from 'node:timers/promises'
import { type ChatFamily, type ChatPart, type Message, renderChat, stripText } from './chat.js'
import { LapidaryError, invalid } from './errors.js'

/** A parsed template. */
export interface ChatTemplate {
  render(messages: readonly Message[], generationPrompt: boolean): ChatPart[]
}

export interface TemplateTokens {
  readonly bos: string
  readonly eos: string
}

export async function compileTemplate(source: string, tokens: TemplateTokens): Promise<ChatTemplate> {
  const { Template } = await import('@huggingface/jinja')
  let template: InstanceType<typeof Template>
  try {
    template = new Template(source)
  } catch (error) {
    throw new LapidaryError('bad_file', `the chat template cannot be parsed: ${(error as Error).message}`, { cause: error })
  }
  const run = (messages: readonly Message[], generationPrompt: boolean): string => {
    try {
      return template.render({
        messages: structuredClone(messages),
        add_generation_prompt: generationPrompt,
        bos_token: tokens.bos,
        eos_token: tokens.eos,
      })
    } catch (error) {
      throw new LapidaryError('invalid_argument', (error as Error).message, { cause: error })
    }
  }
  return { render: (messages, generationPrompt) => separate(run, messages, generationPrompt) }
}

type Render = (messages: readonly Message[], generationPrompt: boolean) => string

/** Renders so that user text stays apart from template text; refuses when the template does not let it. */
function separate(run: Render, messages: readonly Message[], generationPrompt: boolean): ChatPart[] {
  const marks = new Marks()
  const whole = run(messages, generationPrompt)
  const pieces = marks.split(run(messages.map((message, i) => marks.replace(message, i)), generationPrompt))
  const parts = match(whole, 0, pieces, 0)
  if (!parts) {
    throw new LapidaryError('unsupported', 'the chat template rewrites the text of messages, so control tokens in it could not be told from '
      + "the template's own; use the format option ('gemma2' or 'gemma3') or another template")
  }
  return parts
}

type Piece = { readonly text: string } | { readonly content: string; readonly message: number }

/** Unguessable stand-ins for texts: white space around them and any change to them would show. */
class Marks {
  readonly #key: string = randomBytes(12).toString('hex')
  readonly #contents: Array<Exclude<Piece, { text: string }>> = []

  replace(message: Message, index: number): Message {
    const { content } = message
    if (typeof content === 'string') return { ...message, content: this.#mark({ content, message: index }) }
    return {
      ...message,
      content: content.map((item) => (item.type === 'text' ? { ...item, text: this.#mark({ content: item.text, message: index }) } : item)),
    }
  }

  #mark(piece: Exclude<Piece, { text: string }>): string {
    this.#contents.push(piece)
    return `${this.#key}x${this.#contents.length - 1}x`
  }

  split(rendered: string): Piece[] {
    return rendered.split(new RegExp(`${this.#key}x(\\d+)x`)).map((text, i) => (i % 2 === 0 ? { text } : this.#contents[Number(text)]!))
  }
}

/** Finds how `pieces` make up `whole`: every content appears as it was given or trimmed in one of the usual ways. */
function match(whole: string, at: number, pieces: readonly Piece[], index: number): ChatPart[] | null {
  const piece = pieces[index]
  if (!piece) return at === whole.length ? [] : null
  if ('text' in piece) {
    if (!whole.startsWith(piece.text, at)) return null
    const rest = match(whole, at + piece.text.length, pieces, index + 1)
    return rest && (piece.text === '' ? rest : [{ text: piece.text, special: true }, ...rest])
  }
  const { content } = piece
  for (const form of new Set([content, stripText(content), content.trim(), content.trimStart(), content.trimEnd()])) {
    if (!whole.startsWith(form, at)) continue
    const rest = match(whole, at + form.length, pieces, index + 1)
    if (rest) return form === '' ? rest : [{ text: form, special: false, message: piece.message }, ...rest]
  }
  return null
}

/** Conversations that tell Gemma's formats from others, and from each other. */
const probes: ReadonlyArray<readonly Message[]> = [
  [{ role: 'user', content: ' a ' }],
  [{ role: 'user', content: 'a' }, { role: 'assistant', content: 'b\n' }, { role: 'user', content: 'c' }],
  [{ role: 'system', content: 's' }, { role: 'user', content: 'a' }],
  [{ role: 'assistant', content: 'a' }],
  [{ role: 'user', content: 'a' }, { role: 'user', content: 'b' }],
]

/** SHA-256 of official templates, ends trimmed: these need not be run to be known. */
const known: ReadonlyMap<string, ChatFamily> = new Map([['8d9e3a3c114fb2053ec500184677af4f7e5f8ec2582443cd535834e68b3ade29', 'gemma3']])

/** The Gemma format that a template's source is known to be; null when it has to be tried. */
export function knownTemplate(source: string): ChatFamily | null {
  return known.get(createHash('sha256').update(source.trim()).digest('hex')) ?? null
}

/** The Gemma format that a template is, judged by what it does with a few conversations; null for any other. */
export async function recognizeTemplate(template: ChatTemplate, bos: string): Promise<ChatFamily | null> {
  const outcome = (render: () => ChatPart[]): string => {
    try {
      return render().map((part) => part.text).join('')
    } catch (error) {
      return `refused: ${(error as Error).message}`
    }
  }
  const families = new Set<ChatFamily>(['gemma3', 'gemma2'])
  for (const messages of probes) {
    for (const generationPrompt of [true, false]) {
      const rendered = outcome(() => template.render(messages, generationPrompt))
      for (const family of families) {
        if (rendered !== outcome(() => renderChat(family, messages, generationPrompt, bos))) families.delete(family)
      }
      // A template may be slow: others get their turn on this thread.
      await setImmediate()
    }
  }
  return [...families][0] ?? null
}

/** The text that a template option names: itself, if it looks like one. */
export function readTemplate(value: unknown, name: string): string {
  if (typeof value === 'string' && value.includes('{')) return value
  throw invalid(`${name} must be the source of a chat template`)
}
