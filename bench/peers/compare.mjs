// lapidary and llama.cpp on the same shapes in one run: each in a process of its own, in turn, never both at once.
import { spawn } from 'node:child_process'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { modelPath } from '../models/main.mjs'
import { merged } from '../statistics.mjs'
import { llamaFolder } from './llama.mjs'

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..')

/** What each side loads for a format: ours 'safetensors' or a GGUF file, with --weights; theirs a GGUF file. */
export const formats = {
  bf16: { ours: 'safetensors', weights: 'as-is', theirs: 'bf16' },
  int8: { ours: 'safetensors', weights: 'int8', theirs: 'q8_0' },
  q8_0: { ours: 'q8_0', weights: 'as-is', theirs: 'q8_0' },
  q4_0: { ours: 'q4_0', weights: 'as-is', theirs: 'q4_0' },
  q4_k_m: { ours: 'q4_k_m', weights: 'as-is', theirs: 'q4_k_m' },
}

/** The last line of a Node program's output, which is JSON. Its errors go to ours. */
function runJson(args, environment = {}) {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, args, { cwd: root, env: { ...process.env, ...environment }, stdio: ['ignore', 'pipe', 'inherit'] })
    let output = ''
    child.stdout.setEncoding('utf8').on('data', (chunk) => {
      output += chunk
    })
    child.on('error', reject)
    child.on('close', (code) => {
      if (code === 0) resolve(JSON.parse(output.trim().split('\n').at(-1)))
      else reject(new Error(`${path.basename(args[0])} ended with ${code}`))
    })
  })
}

function runOurs(size, format, plan) {
  const { ours, weights } = formats[format]
  const args = [
    path.join(root, 'dist/cli/main.js'), 'bench', modelPath(size, ours), '--json', '--device', 'cpu', '--weights', weights,
    ...(plan.precision ? ['--precision', plan.precision] : []), '--threads', plan.threads, '--prefill', plan.prefill, '--context', plan.contexts,
    '--decode', plan.decode, '--repeats', plan.repeats, ...(plan.batch ? ['--batch', plan.batch] : []),
  ]
  return runJson(args.map(String), plan.cpu ? { LAPIDARY_CPU: plan.cpu } : {})
}

function runTheirs(size, format, plan) {
  const { prefill, contexts, decode, batch, repeats, threads, flash } = plan
  const folder = llamaFolder(plan.llama, plan.cpu), model = modelPath(size, formats[format].theirs)
  const request = { folder, model, prefill, contexts, decode, batch, repeats, threads, flash, api: true }
  return runJson([path.join(root, 'bench/peers/llama-run.mjs'), JSON.stringify(request)])
}

/** Figures of a run by name: { 'prefill 512': { spread, better: 1 } }; better −1 where less is better. */
export function figuresOf(run) {
  const out = {}
  const rates = (list, name) => {
    for (const item of list ?? []) out[name(item)] = { spread: item.tokensPerSecond, better: 1, ...(item.share ? { share: item.share } : {}) }
  }
  rates(run.prefill, ({ tokens }) => `prefill ${tokens}`)
  rates(run.decode, ({ context }) => `decode after ${context}`)
  rates(run.batch, ({ sequences, context }) => `decode, ${sequences} after ${context}`)
  if (run.firstTokenMs) out['first token, ms'] = { spread: run.firstTokenMs, better: -1 }
  out['load, ms'] = { spread: run.loadMs, better: -1 }
  out['resident, MB'] = { spread: single((run.memory ?? run).residentBytes / 1e6), better: -1 }
  // Ours is measured through the public interface always, so theirs is compared with it too.
  if (run.api?.decode) out[`decode after ${run.api.decode.context}, through the API`] = { spread: run.api.decode.tokensPerSecond, better: 1 }
  return out
}

const single = (value) => ({ median: value, low: value, high: value, values: [value] })

/** The figures of several rounds as one. */
function mergedFigures(runs) {
  const all = runs.map(figuresOf), together = (name) => merged(all.map((figures) => figures[name].spread))
  return Object.fromEntries(Object.entries(all[0] ?? {}).map(([name, figure]) => [name, { ...figure, spread: together(name) }]))
}

/** How many times better ours is, for every figure that both have. */
export function ratiosOf(ours, theirs) {
  const out = {}
  for (const [name, { spread, better }] of Object.entries(theirs)) {
    const own = ours[name] ?? ours[name.replace(', through the API', '')]
    if (own) out[name] = (own.spread.median / spread.median) ** better
  }
  return out
}

const facts = ({ prefill, decode, batch, api, loadMs, firstTokenMs, residentBytes, model, ...rest }) => rest

/** One model in one format. `plan.sides`: 'ours', 'theirs' or both, in the order of the first round; it turns round from round to round. */
export async function compare(size, format, plan) {
  const runs = { ours: [], theirs: [] }
  for (let round = 0; round < plan.rounds; round++) {
    const order = round % 2 ? plan.sides.toReversed() : plan.sides
    for (const side of order) runs[side].push(await (side === 'ours' ? runOurs : runTheirs)(size, format, plan))
  }
  const ours = mergedFigures(runs.ours), theirs = mergedFigures(runs.theirs)
  const side = ([first], figures) => first && { ...facts(first), figures }
  return { model: size, format, ours: side(runs.ours, ours), theirs: side(runs.theirs, theirs), ratios: ratiosOf(ours, theirs) }
}
