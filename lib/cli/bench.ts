/** `lapidary bench`: the speed of a model on this machine, beside what its memory and its arithmetic allow. */

import { readFileSync } from 'node:fs'
import path from 'node:path'
import { type Device, type LoadOptions, type MemoryUse, type Precision, devices, inspect } from '../index.js'
import { packageRoot } from '../loader.js'
import { type Peaks, peaks as measurePeaks } from '../ops/index.js'
import { type Cost, type WeightsChoice, costOf, decodeBytes, kvBytes, leastSeconds, promptOperations } from './bench-cost.js'
import {
  type MachineLoad, type Spread, machineLoad, measureDecode, measureFirstToken, measureLoading, measurePrefill, measureTogether, warmUp,
} from './bench-measure.js'
import { type Arguments, type Command, UsageError } from './command.js'
import { modelFlags, present, toJson } from './shared.js'
import { bytes, catchInterrupts, interruption, note, print } from './terminal.js'

const { device, precision, threads } = modelFlags as Required<Pick<typeof modelFlags, 'device' | 'precision' | 'threads'>>
const firstPrompt = 16

export const command: Command = {
  summary: 'measure the speed of a model',
  operands: ['MODEL'],
  details: `Prompts are random token ids. Every figure is the median of the repeats, with the least and the greatest; lists are parted by commas.
Prefill runs from the admission of a prompt to its first token; decode begins there. Shares are of the machine's own peaks, which are measured first:
decode of the read bandwidth (all weights once, the head's being the embedding's, and the keys and values seen), prefill of the arithmetic.
Let nothing else run meanwhile.`,
  flags: {
    prefill: { type: 'string', value: 'LIST', help: 'lengths of prompts (default: 512,2048)' },
    decode: { type: 'string', value: 'TOKENS', help: 'tokens to generate per repeat (default: 128)' },
    context: { type: 'string', value: 'LIST', help: 'lengths of what decode follows (default: 512,4096)' },
    batch: { type: 'string', value: 'N', help: 'also N sequences at once, after the shortest of --context' },
    repeats: { type: 'string', value: 'N', help: 'repeats of every figure (default: 3)' },
    weights: { type: 'string', value: 'KIND', help: 'as-is, bf16 or int8 (default: as-is)' },
    chunk: { type: 'string', value: 'TOKENS', help: "prompt tokens per step (default: the library's)" },
    'no-peaks': { type: 'boolean', help: "do not measure the machine's peaks; no shares then" },
    json: { type: 'boolean', help: 'everything as one JSON object' },
    device,
    precision,
    threads,
  },
  async run(args) {
    const plan = readPlan(args)
    catchInterrupts()
    const report = await measure(args.operands[0]!, plan)
    await print(args.has('json') ? `${toJson(report)}\n` : describeReport(report))
  },
}

interface Plan {
  readonly prefill: readonly number[]
  readonly decode: number
  readonly contexts: readonly number[]
  readonly batch: number
  readonly repeats: number
  readonly peaks: boolean
  readonly weights: WeightsChoice
  readonly options: LoadOptions
}

function whole(flag: string, text: string): number {
  const value = Number(text)
  if (text.trim() !== '' && Number.isInteger(value) && value >= 1) return value
  throw new UsageError(`--${flag} must hold whole numbers from 1 up, received "${text}"`)
}

/** '' is an empty list: nothing of the kind is measured. */
function list(args: Arguments, flag: string, standard: string): number[] {
  const text = args.text(flag) ?? standard
  return text === '' ? [] : text.split(',').map((item) => whole(flag, item))
}

function readPlan(args: Arguments): Plan {
  const one = (flag: string, standard: number): number => whole(flag, args.text(flag) ?? String(standard))
  const batch = args.text('batch') === undefined ? 0 : one('batch', 1)
  const weights = args.choice('weights', 'as-is', 'bf16', 'int8') ?? 'as-is'
  const precision = args.choice('precision', 'f32', 'bf16', 'int8')
  const chunk = args.text('chunk') === undefined ? undefined : one('chunk', 1)
  return {
    prefill: list(args, 'prefill', '512,2048'), decode: one('decode', 128), contexts: list(args, 'context', '512,4096'), batch,
    repeats: one('repeats', 3), peaks: !args.has('no-peaks'), weights,
    options: {
      ...present({ device: args.choice('device', 'reference', 'cpu', 'cuda', 'auto'), threads: args.number('threads'), prefillChunk: chunk, precision }),
      ...(batch > 64 ? { maxSequences: batch } : {}),
      ...(batch > 2 ? { prefixCache: batch } : {}),
      weights, signal: interruption.signal,
    },
  }
}

interface Rate {
  readonly tokensPerSecond: Spread
  /** Of what the peaks allow; null where they are not known. */
  readonly share: number | null
}

type PrefillRate = Rate & { readonly tokens: number; readonly operations: number }
type DecodeRate = Rate & { readonly context: number; readonly bytesPerToken: number }
type BatchRate = Rate & { readonly context: number; readonly sequences: number }

interface Report {
  readonly model: string
  readonly parameters: number
  readonly device: string
  readonly processor: string
  readonly instructionSet: string
  readonly threads: number
  readonly node: string
  readonly lapidary: string
  readonly date: string
  readonly load: MachineLoad
  readonly peaks: Peaks | null
  readonly weights: WeightsChoice
  readonly precision: Precision
  /** Read once per token. */
  readonly weightBytes: number
  /** Of the process: `readyBytes` once the model has answered short prompts, `residentBytes` at the end, with every cache that was filled. */
  readonly memory: MemoryUse & { readonly readyBytes: number; readonly residentBytes: number }
  readonly loadMs: Spread
  readonly firstTokenMs: Spread
  readonly prefill: readonly PrefillRate[]
  readonly decode: readonly DecodeRate[]
  readonly batch: readonly BatchRate[]
}

async function measure(model: string, plan: Plan): Promise<Report> {
  const inspection = await inspect(model)
  checkRoom(plan, inspection.info.maxPositions)
  const load = await machineLoad(300)
  warnOfLoad(load)
  const { model: loaded, loadMs } = await measureLoading(model, plan.options, plan.repeats)
  try {
    const cost = costOf(inspection, plan.weights, loaded.precision)
    const found = devices().find(({ kind }) => kind === (loaded.device === 'cuda' ? 'cuda' : 'cpu'))!
    const peaks = plan.peaks ? await measurePeaks({ device: loaded.device as 'cpu', seconds: 0.25 }) : null
    await warmUp(loaded, Math.min(512, Math.max(firstPrompt, ...plan.prefill)))
    const firstTokenMs = await measureFirstToken(loaded, firstPrompt, plan.repeats + 2)
    const readyBytes = process.memoryUsage.rss()
    const prefill: PrefillRate[] = [], decode: DecodeRate[] = [], batch: BatchRate[] = []
    for (const tokens of plan.prefill) prefill.push(prefillRate(cost, peaks, tokens, await measurePrefill(loaded, tokens, plan.repeats)))
    for (const context of plan.contexts) {
      decode.push(decodeRate(cost, peaks, context, plan.decode, await measureDecode(loaded, context, plan.decode, plan.repeats)))
    }
    if (plan.batch > 0 && plan.contexts.length > 0) {
      const context = Math.min(...plan.contexts)
      batch.push(batchRate(cost, peaks, context, plan, await measureTogether(loaded, plan.batch, context, plan.decode, plan.repeats)))
    }
    return {
      model, parameters: inspection.info.parameters, device: loaded.device, ...machine(found, plan), load, peaks, weights: plan.weights,
      precision: loaded.precision, weightBytes: cost.weightBytes, memory: { ...loaded.memory(), readyBytes, residentBytes: process.memoryUsage.rss() },
      loadMs, firstTokenMs, prefill, decode, batch,
    }
  } finally {
    await loaded.close()
  }
}

function machine(found: Device, plan: Plan): Pick<Report, 'processor' | 'instructionSet' | 'threads' | 'node' | 'lapidary' | 'date'> {
  const { version } = JSON.parse(readFileSync(path.join(packageRoot, 'package.json'), 'utf8')) as { version: string }
  return {
    processor: found.name, instructionSet: found.instructionSet, threads: plan.options.threads ?? found.cores,
    node: process.version, lapidary: version, date: new Date().toISOString(),
  }
}

function checkRoom({ prefill, contexts, decode }: Plan, positions: number): void {
  const most = Math.max(0, ...prefill.map((tokens) => tokens + 1), ...contexts.map((tokens) => tokens + decode + 1))
  if (most > positions) throw new UsageError(`--prefill and --context with --decode need ${most} positions, the model has ${positions}`)
}

function warnOfLoad({ average, busy }: MachineLoad): void {
  if (busy > 0.1) note(`warning: other work keeps ${busy.toFixed(1)} processors busy: all figures will be too low`)
  else if (average > 0.5) note(`warning: the load average is ${average.toFixed(1)}: other work may run beside this`)
}

function prefillRate(cost: Cost, peaks: Peaks | null, tokens: number, tokensPerSecond: Spread): PrefillRate {
  const operations = promptOperations(cost, tokens), seconds = tokens / tokensPerSecond.median
  const total = operations.f32 + operations.bf16 + operations.int8
  return { tokens, tokensPerSecond, operations: total, share: peaks && leastSeconds(operations, peaks) / seconds }
}

function decodeRate(cost: Cost, peaks: Peaks | null, context: number, steps: number, tokensPerSecond: Spread): DecodeRate {
  // The cache grows as tokens are drawn: half of them are there on average.
  const bytesPerToken = decodeBytes(cost, context + steps / 2)
  return { context, tokensPerSecond, bytesPerToken, share: peaks && (bytesPerToken * tokensPerSecond.median) / peaks.bandwidth }
}

/** A step reads the weights once for all sequences. */
function batchRate(cost: Cost, peaks: Peaks | null, context: number, { batch, decode }: Plan, tokensPerSecond: Spread): BatchRate {
  const bytesPerStep = cost.weightBytes + batch * kvBytes(cost, context + decode / 2), steps = tokensPerSecond.median / batch
  return { context, sequences: batch, tokensPerSecond, share: peaks && (bytesPerStep * steps) / peaks.bandwidth }
}

const giga = (value: number): string => (value >= 1e12 ? `${(value / 1e12).toFixed(2)} T` : `${(value / 1e9).toFixed(1)} G`)
const digits = (value: number): string => (value >= 100 ? value.toFixed(0) : value.toPrecision(3))

function line(name: string, { median, low, high }: Spread, unit: string, remark: string = ''): string {
  const range = `${digits(low)} – ${digits(high)}`.padStart(17)
  return `${name.padEnd(26)}${digits(median).padStart(9)} ${unit.padEnd(9)} ${range}   ${remark}`.trimEnd()
}

function describeReport(r: Report): string {
  const share = (value: number | null, of: string): string => (value === null ? '' : `${(100 * value).toFixed(1)} % of the ${of}`)
  const { peaks } = r
  const lines = [
    `${r.model}, weights ${r.weights}, ${r.precision}, on ${r.device}`,
    `${r.processor}, ${r.instructionSet}${r.device === 'cpu' ? `, ${r.threads} threads` : ''}`,
    `${r.parameters.toLocaleString('en-US')} parameters, ${bytes(r.weightBytes)} of weights per token, ${bytes(r.memory.residentBytes)} resident`,
    ...(peaks ? [`peaks (${peaks.source}): memory ${giga(peaks.bandwidth)}B/s, f32 ${giga(peaks.f32)}FLOP/s, ${
      peaks.bf16 ? `bf16 ${giga(peaks.bf16)}FLOP/s, ` : ''}int8 ${giga(peaks.int8)}OP/s`] : []),
    '',
    line('load', r.loadMs, 'ms'),
    line(`first token after ${firstPrompt}`, r.firstTokenMs, 'ms'),
    ...r.prefill.map((p) => line(`prefill ${p.tokens}`, p.tokensPerSecond, 'tokens/s', share(p.share, 'arithmetic'))),
    ...r.decode.map((d) => line(`decode after ${d.context}`, d.tokensPerSecond, 'tokens/s', share(d.share, 'bandwidth'))),
    ...r.batch.map((b) => line(`decode, ${b.sequences} after ${b.context}`, b.tokensPerSecond, 'tokens/s', share(b.share, 'bandwidth'))),
  ]
  return `${lines.join('\n')}\n`
}
