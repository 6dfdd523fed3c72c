/** Reading a text to score, and the windows to read it in. */

import { readFile } from 'node:fs/promises'
import { LapidaryError, invalid } from '../errors.js'
import type { Model } from '../index.js'
import { type Arguments, type Flag, UsageError } from './command.js'
import { present } from './shared.js'

export const windowFlags: Record<string, Flag> = {
  text: { type: 'string', value: 'FILE', help: 'the text, in UTF-8' },
  window: { type: 'string', value: 'TOKENS', help: 'tokens per window, BOS aside (default: 512, or less if the context is shorter)' },
  stride: { type: 'string', value: 'TOKENS', help: 'distance of windows (default: as far as every token is still scored)' },
  'max-tokens': { type: 'string', value: 'N', help: 'read only the first N tokens of the text' },
}

export async function readInput(flag: string, file: string): Promise<string> {
  return readFile(file, 'utf8').catch((error: Error) => {
    throw invalid(`--${flag}: ${error.message}`)
  })
}

export interface Windows {
  readonly window: number
  /** Left out: the largest that scores every token. */
  readonly stride?: number
}

/** `overlap`: tokens that neighbouring windows must share. */
export function readWindows(args: Arguments, model: Model, overlap: number): Windows {
  const context = args.number('context') ?? model.info.maxPositions
  const window = args.number('window') ?? Math.min(512, context - 1)
  const stride = args.number('stride')
  const least = 1 + overlap, most = window - overlap
  if (!(Number.isInteger(window) && window >= least && window < context)) throw new UsageError(`--window must be from ${least} to ${context - 1}, received ${window}`)
  if (stride !== undefined && !(Number.isInteger(stride) && stride >= 1 && stride <= most)) {
    throw new UsageError(`--stride must be from 1 to ${overlap ? `the window less ${overlap}` : 'the window'}, ${most}; received ${stride}`)
  }
  return { window, ...present({ stride }) }
}

/** The first --max-tokens ids of the text. */
export async function encodeText(args: Arguments, command: string, model: Model, text: string): Promise<Int32Array> {
  if (!model.tokenizer) throw new LapidaryError('unsupported', `${command}: the model's files hold no tokenizer`)
  const [ids] = await model.tokenizer.encodeBatch([text])
  const read = ids!.slice(0, args.number('max-tokens'))
  if (read.length === 0) throw invalid(`${command}: the text has no tokens`)
  return Int32Array.from(read)
}
