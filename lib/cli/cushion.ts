/** `lapidary cushion`: finding, tuning and showing what stands before every text. */

import { type Cushion, type CushionSearchOptions, type CushionTuneOptions, type Model, loadModel } from '../index.js'
import { type Arguments, type Command, UsageError } from './command.js'
import { loadOptions, modelFlags, present, toJson } from './shared.js'
import { catchInterrupts, interruption, print, progress } from './terminal.js'

export const command: Command = {
  summary: 'find, tune or show a cushion, which makes int8 inputs cost less',
  operands: ['ACTION', 'MODEL'],
  details: `search  tries every token of the vocabulary behind those found so far, and keeps the one that makes texts err least under one int8 scale per
        place, for as long as each at least halves the error
tune    trains a cushion's keys and values (--cushion) on the processor, through int8 inputs; the model stays as it is
show    prints what is in a cushion (--cushion)

MODEL is unquantised. The result is for: lapidary quantize MODEL --prefix FILE. With --state an interrupted search or tuning goes on where it was.`,
  flags: {
    out: { type: 'string', value: 'FILE', help: 'where the cushion goes, a .safetensors' },
    text: { type: 'string', value: 'FILE', help: 'a text, or .jsonl with {"text"} in every line' },
    cushion: { type: 'string', value: 'FILE', help: 'the cushion to tune or show' },
    state: { type: 'string', value: 'FILE', help: 'written now and then; there already: gone on from' },
    window: { type: 'string', value: 'KIND', help: 'search: pinned or native (default: pinned)' },
    init: { type: 'string', value: 'IDS', help: 'search: tokens to begin with, as 2,107, or none (default: BOS)' },
    'max-tokens': { type: 'string', value: 'N', help: 'search: most tokens of the cushion (default: 8)' },
    tau: { type: 'string', value: 'X', help: 'search: the share that the error must fall to (default: 0.5)' },
    rivals: { type: 'string', value: 'N', help: 'search: compare with BOS, frequent outliers and N random prefixes' },
    steps: { type: 'string', value: 'N', help: 'tune: steps (default: 160)' },
    batch: { type: 'string', value: 'N', help: 'tune: texts of a step (default: 4)' },
    'learning-rate': { type: 'string', value: 'X', help: 'tune (default: 2e-4)' },
    lambda: { type: 'string', value: 'X', help: 'tune: weight of the quantisation error (default: 0.1)' },
    gradient: { type: 'string', value: 'KIND', help: 'tune: literal, straight-through or through-scale (default: straight-through)' },
    'text-tokens': { type: 'string', value: 'N', help: 'tokens of a text (default: 512, or less)' },
    'held-out': { type: 'string', value: 'N', help: 'texts kept for measuring (default: 8)' },
    seed: { type: 'string', value: 'N', help: 'which texts are drawn (default: 0)' },
    json: { type: 'boolean', help: 'one JSON object: tokens, window, fingerprint, report' },
    ...modelFlags,
  },
  async run(args) {
    const action = args.operands[0]!
    if (!['search', 'tune', 'show'].includes(action)) throw new UsageError(`the action must be search, tune or show, received "${action}"`)
    const out = action === 'show' ? undefined : args.needed('out')
    const from = action === 'search' ? undefined : args.needed('cushion')
    const text = action === 'show' ? '' : args.needed('text')
    const options = action === 'search' ? searchOptions(args, text) : tuneOptions(args, text)
    catchInterrupts()
    const model = await loadModel(args.operands[1]!, loadOptions(args))
    try {
      const cushion =
        action === 'search' ? await model.searchCushion(options as CushionSearchOptions)
        : action === 'tune' ? await model.tuneCushion(from!, options as CushionTuneOptions)
        : await model.readCushion(from!)
      const empty = cushion.tokens.length === 0
      if (out !== undefined && !empty) await cushion.save(out)
      const { tokens, window, fingerprint, report } = cushion
      await print(args.has('json') ? `${toJson({ out: empty ? null : (out ?? null), tokens, window, fingerprint, report })}\n` : describeCushion(model, cushion, out))
      return action === 'search' && empty ? 1 : undefined
    } finally {
      await model.close()
    }
  },
}

function common(args: Arguments, label: string): Pick<CushionSearchOptions, 'textTokens' | 'heldOut' | 'seed' | 'state' | 'signal' | 'onProgress'> {
  const tell = progress(label)
  return {
    ...present({ textTokens: args.number('text-tokens'), heldOut: args.number('held-out'), seed: args.number('seed'), state: args.text('state') }),
    signal: interruption.signal,
    onProgress: ({ done, total }) => tell(done, total),
  }
}

function searchOptions(args: Arguments, texts: string): CushionSearchOptions {
  return {
    texts,
    ...common(args, 'searching'),
    ...present({
      window: args.choice('window', 'pinned', 'native'),
      init: initial(args),
      maxTokens: args.number('max-tokens'),
      tau: args.number('tau'),
      rivals: args.number('rivals'),
    }),
  }
}

function initial(args: Arguments): number[] | undefined {
  const text = args.text('init')
  if (text === undefined) return undefined
  if (text === 'none') return []
  if (!/^\d+(,\d+)*$/.test(text)) throw new UsageError(`--init must look like 2,107, or be none; received "${text}"`)
  return text.split(',').map(Number)
}

function tuneOptions(args: Arguments, texts: string): CushionTuneOptions {
  return {
    texts,
    ...common(args, 'tuning'),
    ...present({
      steps: args.number('steps'),
      batch: args.number('batch'),
      learningRate: args.number('learning-rate'),
      lambda: args.number('lambda'),
      gradient: args.choice('gradient', 'literal', 'straight-through', 'through-scale'),
    }),
  }
}

function describeCushion(model: Model, { tokens, window, fingerprint, report }: Cushion, out: string | undefined): string {
  const named = tokens.map((id) => `${id}${model.tokenizer ? ` ${JSON.stringify(model.tokenizer.decode([id], { special: true }))}` : ''}`)
  const lines = [tokens.length === 0 ? 'no token lowers the error enough: no cushion' : `${tokens.length} tokens, ${window}, ${fingerprint}: ${named.join(', ')}`]
  const { search, rivals, tuning } = report
  if (search) {
    const sum = (key: 'none' | 'init' | 'found'): number => search.sites.reduce((all, site) => all + site[key], 0)
    lines.push(`squared rounding error of held-out texts: ${sum('none').toPrecision(4)} without, ${sum('init').toPrecision(4)} at the beginning, ${sum('found').toPrecision(4)} found`)
    const worst = [...search.sites].sort((a, b) => b.none - a.none).slice(0, 8)
    for (const { layer, site, none, init, found } of worst) lines.push(`  layer ${layer} ${site}: ${none.toPrecision(4)}, ${init.toPrecision(4)}, ${found.toPrecision(4)}`)
  }
  if (rivals) lines.push(`BOS alone ${rivals.bos.toPrecision(4)}, frequent outliers ${rivals.frequent.error.toPrecision(4)}, random prefixes ${rivals.random.median.toPrecision(4)} (median)`)
  if (tuning) {
    const { start, best, noCushion } = tuning
    lines.push(
      `cross-entropy of held-out texts through int8 inputs: ${start.quantised.toFixed(4)} -> ${best.quantised.toFixed(4)} nats at step ${best.step} of ${tuning.steps}`,
      `through exact inputs: ${noCushion.toFixed(4)} without a cushion, ${start.unquantised.toFixed(4)} -> ${best.unquantised.toFixed(4)}`,
      `mean squared rounding error: 1 -> ${best.error.toFixed(4)}`,
    )
  }
  if (out !== undefined && tokens.length > 0) lines.push(`written to ${out}`)
  return `${lines.join('\n')}\n`
}
