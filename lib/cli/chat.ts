/** `lapidary chat`: a conversation on the terminal, or line by line from a pipe. */

import { createInterface } from 'node:readline'
import type { Chat, GenerateOptions, Run } from '../index.js'
import { LapidaryError } from '../errors.js'
import type { Command } from './command.js'
import { generateOptions, modelFlags, present, samplingFlags, toJson, withModel } from './shared.js'
import { catchInterrupts, interruption, note, print } from './terminal.js'

const words = `  /undo        take back the last exchange
  /save FILE   write the conversation to a file
  /exit        leave`

export const command: Command = {
  summary: 'talk with a model',
  operands: ['MODEL'],
  details: `Every line is a message. Lines that begin with a slash are for the program:\n${words}\nCtrl-C ends an answer first, the program second.`,
  flags: {
    system: { type: 'string', value: 'TEXT', help: 'told to the model before the first message' },
    format: { type: 'string', value: 'NAME', help: "turn format, gemma2 or gemma3 (default: the model's own)" },
    load: { type: 'string', value: 'FILE', help: 'go on with a saved conversation' },
    json: { type: 'boolean', help: 'one JSON object per answer' },
    ...samplingFlags,
    ...modelFlags,
  },
  async run(args) {
    const options = generateOptions(args)
    const shape = present({ system: args.text('system'), format: args.choice('format', 'gemma2', 'gemma3') })
    const load = args.text('load')
    let running: Run | null = null
    let leave = (): void => interruption.abort(new Error('interrupted'))
    catchInterrupts(() => (running ? running.abort() : leave()))
    return withModel(args, async (model) => {
      const { system: _, ...format } = shape
      const chat = load === undefined ? model.chat(shape) : await model.loadChat(load, format)
      const terminal = process.stdin.isTTY && process.stderr.isTTY
      const lines = createInterface({ input: process.stdin, ...(terminal ? { output: process.stderr, terminal } : {}), prompt: '> ' })
      leave = () => {
        interruption.abort(new Error('interrupted'))
        lines.close()
      }
      lines.on('SIGINT', () => process.emit('SIGINT'))
      if (terminal) lines.prompt()
      for await (const line of lines) {
        if (line === '/exit') break
        if (line.startsWith('/')) await slash(chat, line)
        else if (line.trim() !== '') {
          await answer(chat, line, options, args.has('json'), (run) => {
            running = run
          })
        }
        if (terminal) lines.prompt()
      }
      await chat.close()
      return interruption.signal.aborted ? 130 : 0
    })
  },
}

async function answer(chat: Chat, line: string, options: GenerateOptions, json: boolean, onRun: (run: Run | null) => void): Promise<void> {
  const run = chat.send(line, options)
  onRun(run)
  try {
    if (!json) {
      for await (const part of run) await print(part.text)
      await print('\n')
    }
    const result = await run.result
    if (json) await print(`${toJson(result)}\n`)
    if (result.finishReason === 'aborted') note('(stopped)')
  } finally {
    onRun(null)
  }
}

async function slash(chat: Chat, line: string): Promise<void> {
  const [word, ...rest] = line.split(' ')
  try {
    if (word === '/undo') chat.rewind(1)
    else if (word === '/save') await chat.save(rest.join(' '))
    else note(`unknown: ${word}; there are\n${words}`)
  } catch (error) {
    if (!(error instanceof LapidaryError)) throw error
    note(error.message)
  }
}
