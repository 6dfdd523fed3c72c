/** `lapidary quantize`: a model in int8, checked against the original before it is written. */

import { stat } from 'node:fs/promises'
import { invalid } from '../errors.js'
import type { DivergenceByPosition, Model, QuantizeOptions, QuantizeProgress, Quantized } from '../index.js'
import { type Arguments, type Command, UsageError } from './command.js'
import { modelFlags, present, toJson, withModel } from './shared.js'
import { catchInterrupts, interruption, note, print, stageProgress } from './terminal.js'
import { encodeText, readInput, windowFlags } from './text-windows.js'

const defaultMaxKl = 0.05

export const command: Command = {
  summary: 'write a model with int8 weights and inputs',
  operands: ['MODEL'],
  details: `MODEL is an unquantised Hugging Face folder. The result is one too, in the compressed-tensors layout that transformers and vLLM read, with the
tokenizer beside it. Static activations and --smooth are chosen from the calibration text: some thousand tokens of what the model is for.
A cushion beside the model stands before every text, here and in the result; it belongs to the scales that were chosen with it.

--verify measures the result against the original before anything is written: KL(original || quantised) per token, how often their likeliest
tokens agree, and both perplexities. Above --max-kl nothing is written and the exit code is 1.`,
  flags: {
    out: { type: 'string', value: 'DIR', help: 'where to; must not exist or be empty' },
    weights: { type: 'string', value: 'KIND', help: 'channel or tensor: a scale per output channel, or one per matrix (default: channel)' },
    activations: { type: 'string', value: 'KIND', help: 'token, tensor, static or none: how inputs get their scales (default: token)' },
    smooth: { type: 'string', value: 'ALPHA', help: "0 to 1: SmoothQuant's exponent (default: no smoothing)" },
    calibration: { type: 'string', value: 'FILE', help: 'a text, or .jsonl with {"text"} in every line' },
    clip: { type: 'string', value: 'RULE', help: 'absmax, percentile or mse: the range of static scales (default: mse)' },
    'calibration-window': { type: 'string', value: 'TOKENS', help: 'tokens of a calibration text read at once (default: 512, or less)' },
    embedding: { type: 'boolean', help: 'the embedding too; only lapidary reads such a model' },
    prefix: { type: 'string', value: 'FILE', help: "a cushion.safetensors to put before every text (default: the model's own)" },
    'cushion-search': { type: 'boolean', help: 'find a cushion for the calibration text first, as "lapidary cushion search" does' },
    'cushion-tune': { type: 'boolean', help: 'then train it, or that of --prefix, as "lapidary cushion tune" does' },
    'cushion-max-tokens': { type: 'string', value: 'N', help: 'of the search: most tokens (default: 8)' },
    'cushion-tau': { type: 'string', value: 'X', help: 'of the search: the share that the error must fall to (default: 0.5)' },
    'cushion-steps': { type: 'string', value: 'N', help: 'of the tuning (default: 160)' },
    'cushion-text-tokens': { type: 'string', value: 'N', help: 'of both: tokens of a text (default: 512, or less)' },
    'cushion-held-out': { type: 'string', value: 'N', help: 'of both: texts kept for measuring (default: 8)' },
    'cushion-state': { type: 'string', value: 'FILE', help: 'an interrupted search goes on from there, tuning from FILE.tuning' },
    'no-prefix': { type: 'boolean', help: "leave the model's own cushion out" },
    verify: { type: 'boolean', help: 'compare with the original first' },
    'max-kl': { type: 'string', value: 'NATS', help: `most mean KL that --verify lets pass (default: ${defaultMaxKl})` },
    ...windowFlags,
    text: { type: 'string', value: 'FILE', help: 'the text of --verify (default: the calibration text)' },
    json: { type: 'boolean', help: 'one JSON object: report, and with --verify divergence' },
    ...modelFlags,
  },
  async run(args) {
    const out = args.needed('out')
    const options = quantizeOptions(args)
    const maxKl = args.number('max-kl') ?? defaultMaxKl
    if (!(maxKl > 0)) throw new UsageError(`--max-kl must be above 0, received ${maxKl}`)
    const text = args.has('verify') ? await verifyText(args) : undefined
    if (!args.has('verify') && (args.text('max-kl') ?? args.text('text')) !== undefined) throw new UsageError('--max-kl and --text go with --verify')
    await requireFree(out)
    catchInterrupts()
    return withModel(args, async (model) => {
      const quantized = await model.quantize({ ...options, load: text !== undefined })
      const divergence = text === undefined ? null : await verify(args, model, quantized, text)
      const refused = divergence !== null && !(divergence.meanKl <= maxKl)
      if (!refused) await quantized.save(out, watch())
      if (args.has('json')) await print(`${toJson({ out: refused ? null : out, report: quantized.report, divergence })}\n`)
      else await print(describeResult(out, quantized, divergence, refused, maxKl))
      return refused ? 1 : undefined
    })
  },
}

function quantizeOptions(args: Arguments): QuantizeOptions {
  if (args.has('no-prefix') && args.text('prefix') !== undefined) throw new UsageError('--prefix and --no-prefix exclude each other')
  return {
    ...watch(),
    ...present({
      weights: args.choice('weights', 'channel', 'tensor'),
      activations: args.choice('activations', 'token', 'tensor', 'static', 'none'),
      smooth: args.number('smooth'),
      calibration: args.text('calibration'),
      clip: args.choice('clip', 'absmax', 'percentile', 'mse'),
      window: args.number('calibration-window'),
      embedding: args.has('embedding') || undefined,
      prefix: args.has('no-prefix') ? null : args.text('prefix'),
      cushion: cushionOptions(args),
    }),
  }
}

function cushionOptions(args: Arguments): QuantizeOptions['cushion'] {
  const search = args.has('cushion-search'), tune = args.has('cushion-tune'), state = args.text('cushion-state')
  const of = (name: string): number | undefined => args.number(`cushion-${name}`)
  const both = present({ textTokens: of('text-tokens'), heldOut: of('held-out') })
  const own = { search: present({ maxTokens: of('max-tokens'), tau: of('tau'), state }), tune: present({ steps: of('steps'), state: state && `${state}.tuning` }) }
  const count = (options: object): number => Object.keys(options).length
  if (!search && count(own.search) > count(present({ state }))) throw new UsageError('--cushion-max-tokens and --cushion-tau go with --cushion-search')
  if (!tune && count(own.tune) > count(present({ state }))) throw new UsageError('--cushion-steps goes with --cushion-tune')
  if (search || tune) return { search: search && { ...both, ...own.search }, tune: tune && { ...both, ...own.tune } }
  if (count(both) > 0 || state !== undefined) throw new UsageError('--cushion-text-tokens, --cushion-held-out and --cushion-state go with --cushion-search or --cushion-tune')
  return undefined
}

function watch(): { signal: AbortSignal; onProgress: (progress: QuantizeProgress) => void } {
  return { signal: interruption.signal, onProgress: stageProgress() }
}

async function verifyText(args: Arguments): Promise<string> {
  const file = args.text('text') ?? args.text('calibration')
  if (file === undefined) throw new UsageError('--verify needs --text, or --calibration')
  return readInput(args.text('text') === undefined ? 'calibration' : 'text', file)
}

/** Before minutes of work, and again by whoever writes. */
async function requireFree(folder: string): Promise<void> {
  const there = await stat(folder).catch(() => null)
  if (there && !there.isDirectory()) throw invalid(`--out: ${folder} is a file`)
}

async function verify(args: Arguments, original: Model, quantized: Quantized, text: string): Promise<DivergenceByPosition> {
  const ids = await encodeText(args, 'quantize', original, text)
  const tell = stageProgress()
  const began = performance.now()
  try {
    return await quantized.model.divergence(original, [ids], {
      ...present({ window: args.number('window'), stride: args.number('stride') }),
      signal: interruption.signal,
      onProgress: ({ done, total }) => {
        const rate = (1000 * done) / Math.max(1, performance.now() - began)
        tell({ phase: 'verifying', done, total, rate, secondsLeft: rate > 0 ? (total - done) / rate : Infinity })
      },
    })
  } finally {
    await quantized.model.close()
  }
}

function describeResult(out: string, { report }: Quantized, divergence: DivergenceByPosition | null, refused: boolean, maxKl: number): string {
  const lines = [`${report.scheme}: weights per ${report.weights}, inputs ${report.activations === 'none' ? 'as they are' : report.activations}${report.smooth === null ? '' : `, smoothed by ${report.smooth}`}${report.cushion === null ? '' : `, cushion ${report.cushion}`}`]
  const { search, tuning } = report.cushionReport ?? {}
  if (search) lines.push(search.tokens.length > 0 ? `cushion found: ${search.tokens.join(', ')}` : 'no cushion lowers the error enough: none is used')
  if (tuning) lines.push(`cushion trained: cross-entropy through int8 inputs ${tuning.start.quantised.toFixed(4)} -> ${tuning.best.quantised.toFixed(4)} nats`)
  if (report.calibrationTokens > 0) lines.push(`calibrated on ${report.calibrationTokens} tokens in ${report.seconds.toFixed(1)} s`)
  if (divergence) {
    const { tokens, meanKl, p99Kl, agreement, referencePerplexity, perplexity } = divergence
    lines.push(`over ${tokens} tokens: KL ${meanKl.toFixed(5)} nats (99th percentile ${p99Kl.toFixed(4)}), same likeliest token ${(100 * agreement).toFixed(1)} %, perplexity ${referencePerplexity.toFixed(3)} -> ${perplexity.toFixed(3)}`)
  }
  if (refused) note(`lapidary: not written: a mean KL above ${maxKl} is too far from the original. Try weights per channel, activations per token, --smooth 0.5, or a cushion.`)
  else lines.push(`written to ${out}`)
  return `${lines.join('\n')}\n`
}
