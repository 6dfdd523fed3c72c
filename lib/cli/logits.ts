/** `lapidary logits`: the logits of given tokens, as a safetensors file. */

import { readFile } from 'node:fs/promises'
import { callNative, invalid } from '../errors.js'
import { native } from '../loader.js'
import type { Command } from './command.js'
import { modelFlags, withModel } from './shared.js'
import { catchInterrupts, interruption, note } from './terminal.js'

export const command: Command = {
  summary: 'write the logits of given tokens to a file',
  operands: ['MODEL'],
  details: 'The file of tokens is JSON: [[ids], [ids], ...] or one [ids]. Written are logits.0, logits.1, ... as f32 [tokens, vocabulary].',
  flags: {
    tokens: { type: 'string', value: 'FILE.json', help: 'the token ids' },
    out: { type: 'string', value: 'FILE.safetensors', help: 'where to write; an older file stays whole until the new one is' },
    ...modelFlags,
    precision: { type: 'string', value: 'KIND', help: 'f32, bf16 or int8 (default here: f32, since logits are for comparing)' },
  },
  async run(args) {
    const file = args.needed('tokens'), out = args.needed('out')
    const sequences = parseTokens(await readFile(file, 'utf8').catch((error: Error) => {
      throw invalid(`--tokens: ${error.message}`)
    }), file)
    catchInterrupts()
    await withModel(args, async (model) => {
      const logits = await model.logits(sequences, { signal: interruption.signal })
      const tensors = logits.map((data, i) => ({ name: `logits.${i}`, shape: [data.length / model.info.vocab, model.info.vocab], data }))
      await callNative(() => native().writeSafetensors(out, tensors, { format: 'pt' }))
      note(`${tensors.length} tensors written to ${out}`)
    }, { precision: 'f32' })
  },
}

function parseTokens(text: string, file: string): number[][] {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch (error) {
    throw invalid(`--tokens: ${file} is not JSON: ${(error as Error).message}`)
  }
  if (!Array.isArray(value) || value.length === 0) throw invalid(`--tokens: ${file} must hold [[ids], ...] or [ids]`)
  return (Array.isArray(value[0]) ? value : [value]) as number[][]
}
