/** `lapidary perplexity`: how well a model predicts a text. */

import type { Command } from './command.js'
import { modelFlags, toJson, withModel } from './shared.js'
import { catchInterrupts, interruption, print, progress } from './terminal.js'
import { encodeText, readInput, readWindows, windowFlags } from './text-windows.js'

export const command: Command = {
  summary: 'measure how well a model predicts a text',
  operands: ['MODEL'],
  details: `The text's tokens are read in windows, each beginning with BOS. Every token is scored exactly once, by its negative log-probability given
all that comes before it in its window. Windows start --stride tokens apart; where they overlap, a token counts in the first that holds it.
With the default, stride = window, they do not overlap. Where the model's cushion holds BOS, a window's first token cannot be scored: windows
overlap by a token, and the text's first token does not count; lapidary eval scores all models that way.`,
  flags: {
    ...windowFlags,
    json: { type: 'boolean', help: 'one JSON object: tokens, nats, natsPerToken, perplexity, window, stride' },
    ...modelFlags,
    precision: { type: 'string', value: 'KIND', help: 'f32, bf16 or int8 (default here: f32, since scores are for comparing)' },
  },
  async run(args) {
    const text = await readInput('text', args.needed('text'))
    catchInterrupts()
    await withModel(args, async (model) => {
      const windows = readWindows(args, model, 0)
      const ids = await encodeText(args, 'perplexity', model, text)
      const tell = progress('scoring')
      const onProgress = ({ done, total }: { done: number; total: number }): void => tell(done, total)
      const { tokens, nats, natsPerToken, perplexity } = await model.perplexity([ids], { ...windows, signal: interruption.signal, onProgress })
      const stride = windows.stride ?? (tokens === ids.length ? windows.window : windows.window - 1)
      if (args.has('json')) return print(`${toJson({ tokens, nats, natsPerToken, perplexity, window: windows.window, stride })}\n`)
      await print(`${tokens} tokens, ${natsPerToken.toFixed(4)} nats per token, perplexity ${perplexity.toFixed(3)}\n`)
    }, { precision: 'f32' })
  },
}
