/** `lapidary eval`: how good a model is, alone or beside another. */

import type { Model } from '../index.js'
import { loadModel } from '../index.js'
import { type Arguments, type Command, UsageError } from './command.js'
import { type Draw, type Series, loadDraw, writePlots } from './eval-plots.js'
import { type Report, describeReport } from './eval-report.js'
import { type TaskQuestion, readTasks, scoreTasks } from './eval-tasks.js'
import { loadOptions, modelFlags, toJson, withModel } from './shared.js'
import { catchInterrupts, interruption, print, progress } from './terminal.js'
import { encodeText, readInput, readWindows, windowFlags } from './text-windows.js'

export const command: Command = {
  summary: 'measure how good a model is, alone or against another',
  operands: ['MODEL'],
  details: `A text is read in windows, each beginning with BOS (which the model's cushion may hold). The first token of a window is context and not scored,
since a cushion gives no logits to predict it by; windows overlap by a token at least. So every token but the text's first is scored exactly
once, and the same ones for every model. With --against, both models read the text together: KL(BASE || MODEL), and how often their likeliest
tokens agree. Figures are also parted at the local layers' window, counted from the beginning of a window of the text.

Tasks are lines {"prompt": "...", "choices": ["...", ...], "answer": 0}, with "task": "..." where a file holds several. Every choice is scored
as the continuation of its prompt, as it is written: a space between them belongs to the choice. Accuracy takes the likeliest choice,
normalised accuracy the likeliest per byte.`,
  flags: {
    ...windowFlags,
    against: { type: 'string', value: 'BASE', help: 'a model with the same vocabulary, for instance the one that MODEL was made from' },
    tasks: { type: 'string', value: 'FILE.jsonl', multiple: true, help: 'questions of multiple choice' },
    stats: { type: 'boolean', help: 'activations of every layer and site over the text' },
    plots: { type: 'string', value: 'DIR', help: 'draw the statistics as SVG (needs the packages vega and vega-lite)' },
    json: { type: 'boolean', help: 'everything as one JSON object' },
    ...modelFlags,
    precision: { type: 'string', value: 'KIND', help: 'f32, bf16 or int8 (default here: f32, since scores are for comparing)' },
  },
  async run(args) {
    const plan = await readPlan(args)
    catchInterrupts()
    const report = await withModel(args, async (model) => {
      if (plan.against === undefined) return evaluate(args, plan, model, null)
      const base = await loadModel(plan.against, loadOptions(args, { precision: 'f32' }))
      try {
        return await evaluate(args, plan, model, base)
      } finally {
        await base.close()
      }
    }, { precision: 'f32' })
    await print(args.has('json') ? `${toJson(report)}\n` : describeReport(report))
  },
}

interface Plan {
  readonly file: string | undefined
  readonly text: string
  readonly against: string | undefined
  readonly questions: readonly TaskQuestion[]
  readonly stats: boolean
  readonly plots: { readonly folder: string; readonly draw: Draw } | null
}

/** Everything that can be refused before a model is loaded. */
async function readPlan(args: Arguments): Promise<Plan> {
  const file = args.text('text'), against = args.text('against'), folder = args.text('plots'), tasks = args.texts('tasks')
  const stats = args.has('stats') || folder !== undefined
  if (file === undefined && tasks.length === 0) throw new UsageError('--text or --tasks is needed')
  if (file === undefined && stats) throw new UsageError('--stats and --plots need --text')
  return {
    file, against, stats,
    text: file === undefined ? '' : await readInput('text', file),
    questions: (await Promise.all(tasks.map(readTasks))).flat(),
    plots: folder === undefined ? null : { folder, draw: await loadDraw() },
  }
}

function watch(label: string): { signal: AbortSignal; onProgress: (progress: { done: number; total: number }) => void } {
  const tell = progress(label)
  return { signal: interruption.signal, onProgress: ({ done, total }) => tell(done, total) }
}

async function evaluate(args: Arguments, plan: Plan, model: Model, base: Model | null): Promise<Report> {
  const ids = plan.file === undefined ? null : await encodeText(args, 'eval', model, plan.text)
  const text = ids && plan.file !== undefined ? await scoreText(args, plan.file, ids, model, base) : null
  const tasks = plan.questions.length > 0 ? await scoreTasks(model, plan.questions, watch('answering')) : []
  const baseTasks = base && plan.questions.length > 0 ? await scoreTasks(base, plan.questions, watch('answering, against')) : []
  const stats = ids && text && plan.stats ? await collect(ids, text.window, model, base) : null
  const series: Series[] = stats ? [...(stats.against ? [{ name: plan.against!, activations: stats.against }] : []), { name: args.operands[0]!, activations: stats.model }] : []
  return {
    model: args.operands[0]!, against: plan.against ?? null, device: model.device, text,
    tasks: tasks.map((task, i) => ({ ...task, against: baseTasks[i] ?? null })),
    stats,
    plots: plan.plots ? await writePlots(plan.plots.draw, plan.plots.folder, series) : [],
  }
}

async function scoreText(args: Arguments, file: string, ids: Int32Array, model: Model, base: Model | null): Promise<NonNullable<Report['text']>> {
  const windows = readWindows(args, model, 1)
  const head = { file, window: windows.window, stride: windows.stride ?? windows.window - 1 }
  const options = { ...windows, firstTokens: false, ...watch('scoring') }
  return base
    ? { ...head, likelihood: null, divergence: await model.divergence(base, [ids], options) }
    : { ...head, likelihood: await model.perplexity([ids], options), divergence: null }
}

async function collect(ids: Int32Array, window: number, model: Model, base: Model | null): Promise<NonNullable<Report['stats']>> {
  return {
    model: await model.activations([ids], { window, ...watch('looking at activations') }),
    against: base && (await base.activations([ids], { window, ...watch('looking at activations, against') })),
  }
}
