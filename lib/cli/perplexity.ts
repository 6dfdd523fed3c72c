/** `lapidary perplexity`: how well a model predicts a text. */

import { readFile } from 'node:fs/promises'
import type { Model } from '../index.js'
import { LapidaryError, invalid } from '../errors.js'
import { type Command, UsageError } from './command.js'
import { modelFlags, toJson, withModel } from './shared.js'
import { catchInterrupts, interruption, print, progress } from './terminal.js'

export const command: Command = {
  summary: 'measure how well a model predicts a text',
  operands: ['MODEL'],
  details: `The text's tokens are read in windows, each beginning with BOS. Every token is scored exactly once, by its negative log-probability given
all that comes before it in its window. Windows start --stride tokens apart; where they overlap, a token counts in the first that holds it.
With the default, stride = window, they do not overlap.`,
  flags: {
    text: { type: 'string', value: 'FILE', help: 'the text, in UTF-8' },
    window: { type: 'string', value: 'TOKENS', help: 'tokens per window, BOS aside (default: 512, or less if the context is shorter)' },
    stride: { type: 'string', value: 'TOKENS', help: 'distance of windows (default: the window)' },
    'max-tokens': { type: 'string', value: 'N', help: 'score only the first N tokens of the text' },
    json: { type: 'boolean', help: 'one JSON object: tokens, nats, natsPerToken, perplexity, window, stride' },
    ...modelFlags,
    precision: { type: 'string', value: 'KIND', help: 'f32 or bf16 (default here: f32, since scores are for comparing)' },
  },
  async run(args) {
    const file = args.needed('text')
    const text = await readFile(file, 'utf8').catch((error: Error) => {
      throw invalid(`--text: ${error.message}`)
    })
    catchInterrupts()
    await withModel(args, async (model) => {
      const { tokenizer, info } = model
      if (!tokenizer) throw new LapidaryError('unsupported', "perplexity: the model's files hold no tokenizer")
      const context = args.number('context') ?? info.maxPositions
      const window = args.number('window') ?? Math.min(512, context - 1)
      const stride = args.number('stride') ?? window
      if (!(Number.isInteger(window) && window >= 1 && window < context)) throw new UsageError(`--window must be from 1 to ${context - 1}, received ${window}`)
      if (!(Number.isInteger(stride) && stride >= 1 && stride <= window)) throw new UsageError(`--stride must be from 1 to the window, ${window}; received ${stride}`)
      const [ids] = await tokenizer.encodeBatch([text])
      const scored = ids!.slice(0, args.number('max-tokens'))
      if (scored.length === 0) throw invalid('perplexity: the text has no tokens')
      const nats = await scoreWindows(model, scored, window, stride)
      const natsPerToken = nats / scored.length
      const result = { tokens: scored.length, nats, natsPerToken, perplexity: Math.exp(natsPerToken), window, stride }
      if (args.has('json')) return print(`${toJson(result)}\n`)
      await print(`${result.tokens} tokens, ${natsPerToken.toFixed(4)} nats per token, perplexity ${result.perplexity.toFixed(3)}\n`)
    }, { precision: 'f32' })
  },
}

async function scoreWindows(model: Model, ids: readonly number[], window: number, stride: number): Promise<number> {
  const { bosId } = model.info
  const tell = progress('scoring')
  let nats = 0
  let done = 0
  for (let start = 0; done < ids.length; start += stride) {
    const piece = ids.slice(start, start + window)
    // Logits after the last token of a window predict nothing that is asked for.
    const [logits] = await model.logits([[bosId, ...piece.slice(0, -1)]], { signal: interruption.signal })
    for (let i = done - start; i < piece.length; i++) nats -= logProbability(logits!, i, model.info.vocab, piece[i]!)
    done = start + piece.length
    tell(done, ids.length)
  }
  return nats
}

function logProbability(logits: Float32Array, row: number, vocab: number, id: number): number {
  const values = logits.subarray(row * vocab, (row + 1) * vocab)
  let most = -Infinity
  for (const value of values) if (value > most) most = value
  let sum = 0
  for (const value of values) sum += Math.exp(value - most)
  return values[id]! - most - Math.log(sum)
}
