/** `lapidary tokenize`: lines of JSON in, lines of JSON out, in order. */

import { type ChatFamily, type Message, type Tokenizer, loadTokenizer } from '../index.js'
import { renderChat } from '../chat.js'
import { type Command, UsageError } from './command.js'
import { toJson } from './shared.js'
import { print, stdinLines } from './terminal.js'

export const command: Command = {
  summary: 'turn text or conversations into token ids',
  operands: ['MODEL'],
  details: `MODEL may be a folder with only a tokenizer.
Lines {"text": "..."} become {"ids": [...]}. With --chat, lines {"messages": [...], "generationPrompt": true} become
{"text": "...", "ids": [...]}. A line that cannot be done becomes {"error": "..."}. No BOS is added beyond what a chat format writes.`,
  flags: {
    jsonl: { type: 'boolean', help: 'read and write lines of JSON' },
    special: { type: 'boolean', help: 'parse control tokens written in the text' },
    chat: { type: 'string', value: 'FORMAT', help: 'lines are conversations in the format gemma2 or gemma3' },
  },
  async run(args) {
    if (!args.has('jsonl')) throw new UsageError('--jsonl is needed: it is the one form of input there is')
    const family = args.choice('chat', 'gemma2', 'gemma3')
    const special = args.has('special')
    const tokenizer = await loadTokenizer(args.operands[0]!)
    for await (const lines of stdinLines()) {
      const answers = family ? await chats(tokenizer, family, special, lines) : await texts(tokenizer, special, lines)
      await print(`${answers.map(toJson).join('\n')}\n`)
    }
  },
}

interface Failure {
  readonly error: string
}

function failure(error: unknown): Failure {
  return { error: error instanceof Error ? error.message : String(error) }
}

function parseLine(line: string): Record<string, unknown> {
  const value: unknown = JSON.parse(line)
  if (typeof value !== 'object' || value === null) throw new Error('a line must be a JSON object')
  return value as Record<string, unknown>
}

async function texts(tokenizer: Tokenizer, special: boolean, lines: readonly string[]): Promise<Array<{ ids: number[] } | Failure>> {
  const parsed = lines.map((line) => {
    try {
      const { text } = parseLine(line)
      return typeof text === 'string' ? text : failure('a line must hold a string "text"')
    } catch (error) {
      return failure(error)
    }
  })
  const ids = await tokenizer.encodeBatch(parsed.filter((item) => typeof item === 'string'), { special })
  let next = 0
  return parsed.map((item) => (typeof item === 'string' ? { ids: ids[next++]! } : item))
}

async function chats(tokenizer: Tokenizer, family: ChatFamily, special: boolean, lines: readonly string[]): Promise<Array<{ text: string; ids: number[] } | Failure>> {
  const answers: Array<{ text: string; ids: number[] } | Failure> = []
  for (const line of lines) {
    try {
      const { messages, generationPrompt = false } = parseLine(line)
      if (!Array.isArray(messages)) throw new Error('a line must hold an array "messages"')
      const parts = renderChat(family, messages as Message[], generationPrompt === true)
      const ids = await tokenizer.encodeParts(parts.map((part) => ({ text: part.text, special: special || part.special })))
      answers.push({ text: parts.map((part) => part.text).join(''), ids })
    } catch (error) {
      answers.push(failure(error))
    }
  }
  return answers
}
