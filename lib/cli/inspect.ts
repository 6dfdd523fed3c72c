/** `lapidary inspect`: what a model's files say, and what running it would take. No weights are read. */

import { type Inspection, type MemoryEstimate, estimateMemory, inspect } from '../index.js'
import type { Command } from './command.js'
import { toJson } from './shared.js'
import { bytes, print } from './terminal.js'

export const command: Command = {
  summary: 'show what a model is and what it takes',
  operands: ['MODEL'],
  flags: {
    json: { type: 'boolean', help: 'everything as one JSON object, every tensor included' },
    context: { type: 'string', value: 'TOKENS', help: "context of the memory estimate (default: the model's own)" },
    sequences: { type: 'string', value: 'N', help: 'conversations of the memory estimate (default: 1)' },
    tensors: { type: 'boolean', help: 'list every tensor' },
  },
  async run(args) {
    const path = args.operands[0]!
    const contextTokens = args.number('context'), sequences = args.number('sequences')
    const facts = await inspect(path)
    const memory = await estimateMemory(path, {
      device: 'cpu',
      ...(contextTokens === undefined ? {} : { contextTokens }),
      ...(sequences === undefined ? {} : { sequences }),
    })
    if (args.has('json')) return print(`${toJson({ path, ...facts, memory })}\n`)
    await print(describeModel(facts))
    await print(describeTensors(facts, args.has('tensors')))
    await print(describeMemory(memory, contextTokens ?? facts.info.maxPositions, sequences ?? 1))
    for (const line of facts.info.notes) await print(`note: ${line}\n`)
  },
}

function rows(pairs: ReadonlyArray<readonly [string, string | number]>): string {
  return pairs.map(([name, value]) => `${name.padEnd(16)}${value}\n`).join('')
}

function describeModel({ info }: Inspection): string {
  const sampling = Object.entries(info.defaults).map(([name, value]) => `${name} ${value}`).join(', ')
  return rows([
    ['family', info.family],
    ['parameters', info.parameters.toLocaleString('en-US')],
    ['layers', info.window > 0 ? `${info.layers}: ${info.localLayers} local (window ${info.window}), ${info.layers - info.localLayers} global` : info.layers],
    ['hidden', info.hidden],
    ['feed-forward', info.ffn],
    ['heads', `${info.heads} of ${info.headDim}, ${info.kvHeads} for keys and values`],
    ['vocabulary', info.vocab],
    ['context', info.maxPositions],
    ['end tokens', info.eosIds.join(', ')],
    ['sampling', sampling || 'greedy'],
    ['file', bytes(info.fileBytes)],
  ])
}

function describeTensors({ tensors }: Inspection, each: boolean): string {
  if (each) return `\n${tensors.map(({ name, dtype, shape }) => `${dtype.padEnd(8)}${`[${shape.join(', ')}]`.padEnd(20)}${name}\n`).join('')}\n`
  const kinds = new Map<string, { count: number; size: number }>()
  for (const tensor of tensors) {
    const kind = kinds.get(tensor.dtype) ?? { count: 0, size: 0 }
    kinds.set(tensor.dtype, { count: kind.count + 1, size: kind.size + tensor.bytes })
  }
  return rows([['tensors', [...kinds].map(([dtype, { count, size }]) => `${count} of ${dtype} (${bytes(size)})`).join(', ')]])
}

function describeMemory(memory: MemoryEstimate, context: number, sequences: number): string {
  const kv = `${bytes(memory.kvBytes)} for ${sequences === 1 ? 'one conversation' : `${sequences} conversations`} of ${context} tokens`
  return rows([['memory', `${bytes(memory.totalBytes)}: weights ${bytes(memory.weightBytes)}, ${kv}, work ${bytes(memory.scratchBytes)}`]])
}
