/** Flags that several commands share, as options of the library. */

import { type GenerateOptions, type LoadOptions, type Model, loadModel } from '../index.js'
import { type Arguments, type Flag, UsageError } from './command.js'
import { interruption, progress } from './terminal.js'

export const modelFlags: Record<string, Flag> = {
  device: { type: 'string', value: 'NAME', help: "cpu, cuda, reference or auto (default: auto, the graphics device when it is usable)" },
  precision: { type: 'string', value: 'KIND', help: 'f32, bf16 or int8 (default: int8 where GGUF blocks gain by it, else bf16)' },
  'kv-cache': { type: 'string', value: 'KIND', help: 'f32, bf16 or int8: keys and values of a conversation (default: f32 beside --precision f32, else bf16)' },
  threads: { type: 'string', value: 'N', help: 'threads of the processor (default: one per core)' },
  context: { type: 'string', value: 'TOKENS', help: "longest context (default: the model's own)" },
}

export const samplingFlags: Record<string, Flag> = {
  'max-tokens': { type: 'string', value: 'N', help: 'most tokens to generate (default: until the context is full)' },
  temperature: { type: 'string', value: 'X', help: "0 takes the likeliest token always (default: the model's own)" },
  'top-k': { type: 'string', value: 'N', help: 'keep the N likeliest tokens' },
  'top-p': { type: 'string', value: 'X', help: 'keep the likeliest tokens that together reach probability X' },
  'min-p': { type: 'string', value: 'X', help: 'keep tokens at least X times as likely as the likeliest' },
  'repetition-penalty': { type: 'string', value: 'X', help: 'divide the logits of tokens seen before' },
  'presence-penalty': { type: 'string', value: 'X', help: 'subtract once from tokens generated before' },
  'frequency-penalty': { type: 'string', value: 'X', help: 'subtract for every time a token was generated' },
  'logit-bias': { type: 'string', value: 'ID=X', multiple: true, help: 'add X to the logit of a token' },
  seed: { type: 'string', value: 'N', help: 'the same seed gives the same text (default: random)' },
  stop: { type: 'string', value: 'TEXT', multiple: true, help: 'end at this text, which is not shown' },
  'ignore-eos': { type: 'boolean', help: 'go on past end tokens' },
  special: { type: 'boolean', help: 'parse control tokens written in the text' },
}

export function loadOptions(args: Arguments, defaults: LoadOptions = {}): LoadOptions {
  const tell = progress('loading')
  return {
    ...defaults,
    ...present({
      device: args.choice('device', 'reference', 'cpu', 'cuda', 'auto'),
      precision: args.choice('precision', 'f32', 'bf16', 'int8'),
      kvCache: args.choice('kv-cache', 'f32', 'bf16', 'int8'),
      threads: args.number('threads'),
      contextTokens: args.number('context'),
    }),
    onProgress: ({ loaded, total }) => tell(loaded, total),
    signal: interruption.signal,
  }
}

/** Loads the model that the first argument names, and closes it after the work. */
export async function withModel<T>(args: Arguments, work: (model: Model) => Promise<T>, defaults?: LoadOptions): Promise<T> {
  const model = await loadModel(args.operands[0]!, loadOptions(args, defaults))
  try {
    return await work(model)
  } finally {
    await model.close()
  }
}

export function generateOptions(args: Arguments): GenerateOptions {
  const stop = args.texts('stop')
  const biases = args.texts('logit-bias').map((text) => {
    const [, id, value] = /^(\d+)=(.+)$/.exec(text) ?? []
    if (id === undefined || Number.isNaN(Number(value))) throw new UsageError(`--logit-bias must look like 106=-5, received "${text}"`)
    return [Number(id), Number(value)] as const
  })
  return present({
    maxTokens: args.number('max-tokens'),
    temperature: args.number('temperature'),
    topK: args.number('top-k'),
    topP: args.number('top-p'),
    minP: args.number('min-p'),
    repetitionPenalty: args.number('repetition-penalty'),
    presencePenalty: args.number('presence-penalty'),
    frequencyPenalty: args.number('frequency-penalty'),
    logitBias: biases.length > 0 ? new Map(biases) : undefined,
    seed: seed(args),
    stop: stop.length > 0 ? stop : undefined,
    ignoreEos: args.has('ignore-eos') || undefined,
    special: args.has('special') || undefined,
  })
}

function seed(args: Arguments): number | bigint | undefined {
  const text = args.text('seed')
  if (text === undefined) return undefined
  if (!/^\d+$/.test(text)) throw new UsageError(`--seed must be a whole number, received "${text}"`)
  const big = BigInt(text)
  return big <= BigInt(Number.MAX_SAFE_INTEGER) ? Number(big) : big
}

type Present<T> = { [K in keyof T]?: Exclude<T[K], undefined> }

/** Without the keys that have no value. */
export function present<T extends object>(values: T): Present<T> {
  return Object.fromEntries(Object.entries(values).filter(([, value]) => value !== undefined)) as Present<T>
}

/** JSON with bigints as numbers' text, which is how they are given on the command line. */
export function toJson(value: unknown): string {
  return JSON.stringify(value, (_, v: unknown) => (typeof v === 'bigint' ? v.toString() : v))
}

