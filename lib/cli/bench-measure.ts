/** The measurements of `lapidary bench`, through the public API: what a user waits for. */

import os from 'node:os'
import { type LoadOptions, type Model, type Run, loadModel } from '../index.js'
import { interruption } from './terminal.js'

/** Figures of several repeats: the middle one, the least, the greatest, and all in the order of measuring. */
export interface Spread {
  readonly median: number
  readonly low: number
  readonly high: number
  readonly values: readonly number[]
}

export function spread(values: readonly number[]): Spread {
  const sorted = values.toSorted((a, b) => a - b), middle = sorted.length >> 1
  const median = sorted.length % 2 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2
  return { median, low: sorted[0]!, high: sorted.at(-1)!, values }
}

async function repeated(times: number, measure: () => Promise<number>): Promise<Spread> {
  const values: number[] = []
  for (let i = 0; i < times; i++) {
    interruption.signal.throwIfAborted()
    values.push(await measure())
  }
  return spread(values)
}

/** Random ids past the control tokens: no two prompts share a beginning, so nothing is found in a cache unless it is meant to be. */
export function randomIds(count: number, vocab: number): Int32Array {
  const first = Math.min(500, vocab >> 1)
  return Int32Array.from({ length: count }, () => first + Math.floor(Math.random() * (vocab - first)))
}

const greedy = { temperature: 0, ignoreEos: true } as const

/** Loads so often, leaves the last one open. */
export async function measureLoading(path: string, options: LoadOptions, repeats: number): Promise<{ model: Model; loadMs: Spread }> {
  const values: number[] = []
  for (;;) {
    interruption.signal.throwIfAborted()
    const start = performance.now()
    const model = await loadModel(path, options)
    values.push(performance.now() - start)
    if (values.length === repeats) return { model, loadMs: spread(values) }
    await model.close()
  }
}

/** Touches every weight and makes the working memory. */
export async function warmUp(model: Model, tokens: number): Promise<void> {
  await model.generate(randomIds(tokens, model.info.vocab), { ...greedy, maxTokens: 4, signal: interruption.signal })
}

/** Milliseconds from the call to the first token's arrival in JavaScript. */
export function measureFirstToken(model: Model, promptTokens: number, repeats: number): Promise<Spread> {
  return repeated(repeats, async () => {
    const prompt = randomIds(promptTokens, model.info.vocab), start = performance.now()
    await model.generate(prompt, { ...greedy, maxTokens: 1, signal: interruption.signal })
    return performance.now() - start
  })
}

/** Tokens a second from the admission of a prompt to its first drawn token. */
export function measurePrefill(model: Model, tokens: number, repeats: number): Promise<Spread> {
  return repeated(repeats, async () => {
    const { usage } = await model.generate(randomIds(tokens, model.info.vocab), { ...greedy, maxTokens: 1, signal: interruption.signal })
    return ((usage.promptTokens - usage.cachedTokens) / usage.prefillMs) * 1e3
  })
}

/** Tokens a second after a prompt of `context` tokens; the same prompt each time, so that the cache may spare computing it again. */
export function measureDecode(model: Model, context: number, steps: number, repeats: number): Promise<Spread> {
  const prompt = randomIds(context, model.info.vocab)
  return repeated(repeats, async () => {
    const { usage } = await model.generate(prompt, { ...greedy, maxTokens: steps + 1, signal: interruption.signal })
    return ((usage.generatedTokens - 1) / usage.decodeMs) * 1e3
  })
}

/** Tokens a second of all sequences together, from the moment when all have their first token. */
export function measureTogether(model: Model, sequences: number, context: number, steps: number, repeats: number): Promise<Spread> {
  const prompts = Array.from({ length: sequences }, () => randomIds(context, model.info.vocab))
  return repeated(repeats, () => decodeTogether(model, prompts, steps))
}

async function decodeTogether(model: Model, prompts: readonly Int32Array[], steps: number): Promise<number> {
  const wanted = steps * prompts.length, began = new Set<number>(), runs: Run[] = []
  let counted = 0, start = 0, end = 0
  const onToken = (i: number): void => {
    if (end) return
    if (start) counted++
    else if (began.add(i).size === prompts.length) start = performance.now()
    if (counted < wanted) return
    end = performance.now()
    for (const run of runs) run.abort()
  }
  // Those that begin first draw tokens while others still read their prompts; all are ended when enough were counted.
  const room = model.info.maxPositions - prompts[0]!.length
  const options = { ...greedy, maxTokens: room, signal: interruption.signal }
  prompts.forEach((prompt, i) => void runs.push(model.stream(prompt, { ...options, onToken: () => onToken(i) })))
  await Promise.all(runs.map((run) => run.result))
  if (!end) throw new Error(`the context of ${model.info.maxPositions} tokens has no room for ${steps} tokens after ${prompts[0]!.length}`)
  return (wanted / (end - start)) * 1e3
}

export interface MachineLoad {
  /** Processes that ran or waited, on average over the last minute; 0 where the system does not say. */
  readonly average: number
  /** Processors that something else kept busy while nothing ran here. */
  readonly busy: number
}

/** Looks at the machine for so many milliseconds, doing nothing. */
export async function machineLoad(milliseconds: number): Promise<MachineLoad> {
  const totals = (): { idle: number; all: number } => {
    let idle = 0, all = 0
    for (const { times } of os.cpus()) {
      idle += times.idle
      all += times.idle + times.user + times.sys + times.nice + times.irq
    }
    return { idle, all }
  }
  const before = totals()
  await new Promise((resolve) => setTimeout(resolve, milliseconds))
  const after = totals(), all = after.all - before.all
  return { average: os.loadavg()[0]!, busy: all > 0 ? (1 - (after.idle - before.idle) / all) * os.cpus().length : 0 }
}
