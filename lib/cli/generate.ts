/** `lapidary generate`: continues a prompt. */

import type { Command } from './command.js'
import { generateOptions, modelFlags, samplingFlags, toJson, withModel } from './shared.js'
import { catchInterrupts, interruption, note, print, readStdin } from './terminal.js'

export const command: Command = {
  summary: 'continue a prompt',
  operands: ['MODEL'],
  details: 'MODEL is a Hugging Face folder, a .safetensors file beside its config.json, or a .gguf file.\nThe continuation goes to stdout as it comes, without the prompt.',
  flags: {
    prompt: { type: 'string', value: 'TEXT', help: 'what to continue; - reads it from stdin' },
    json: { type: 'boolean', help: 'one JSON object at the end: text, tokens, finishReason, usage, seed' },
    logprobs: { type: 'string', value: 'N', help: 'with --json: the log-probability of every token and of the N likeliest' },
    ...samplingFlags,
    ...modelFlags,
  },
  async run(args) {
    const given = args.needed('prompt')
    const logprobs = args.number('logprobs')
    const options = { ...generateOptions(args), signal: interruption.signal, ...(logprobs === undefined ? {} : { logprobs }) }
    catchInterrupts()
    const prompt = given === '-' ? await readStdin() : given
    await withModel(args, async (model) => {
      const run = model.stream(prompt, options)
      if (args.has('json')) return print(`${toJson(await run.result)}\n`)
      for await (const part of run) await print(part.text)
      await print('\n')
      const { usage, finishReason } = await run.result
      if (process.stderr.isTTY) {
        const rate = (1000 * usage.generatedTokens) / Math.max(usage.decodeMs, 1e-3)
        note(`${usage.generatedTokens} tokens, ${rate.toFixed(1)} per second, prompt of ${usage.promptTokens} in ${usage.prefillMs.toFixed(0)} ms, ended by ${finishReason}`)
      }
    })
  },
}
