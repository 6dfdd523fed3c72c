// One model in llama.cpp, in a process of its own: speed.mjs starts it. Prints one object of JSON with the same figures as `lapidary bench --json`.
//   node bench/peers/llama-run.mjs '{"folder", "model", "threads", "prefill": [], "contexts": [], "decode", "batch", "repeats", "flash": [], "api"}'
//
// Prefill and decode are llama_decode alone, as llama-bench has it: batches of 512, logits of the last token, no sampling. `api` is what a program
// gets from sequence.evaluate(), greedy. `flash` holds true, false or both: flash attention on or off, whichever is faster for a figure.
import fs from 'node:fs'
import path from 'node:path'
import { pathToFileURL } from 'node:url'
import { spread } from '../statistics.mjs'

const plan = JSON.parse(process.argv[2])
const batchTokens = 512

const { getLlama, LlamaLogLevel } = await import(pathToFileURL(path.join(plan.folder, 'node_modules/node-llama-cpp/dist/index.js')))
const { version } = JSON.parse(fs.readFileSync(path.join(plan.folder, 'node_modules/node-llama-cpp/package.json'), 'utf8'))
const llama = await getLlama({ gpu: false, build: 'never', skipDownload: true, maxThreads: plan.threads, logLevel: LlamaLogLevel.error })

const randomIds = (count) => Uint32Array.from({ length: count }, () => 500 + Math.floor(Math.random() * 250_000))
const perSecond = (tokens, start) => (tokens / (performance.now() - start)) * 1e3

async function repeated(times, measure) {
  const values = []
  for (let i = 0; i < times; i++) values.push(await measure())
  return spread(values)
}

/** Parts of sequences, all at the same position, through llama_decode; logits of the last token of each. */
async function decode(raw, parts, position) {
  raw.initBatch(parts.reduce((sum, { length }) => sum + length, 0))
  parts.forEach((ids, sequence) => void raw.addToBatch(sequence, position, ids, Uint32Array.of(ids.length - 1)))
  await raw.decodeBatch()
}

async function prompt(raw, sequence, ids) {
  for (let at = 0; at < ids.length; at += batchTokens) {
    const part = ids.subarray(at, at + batchTokens)
    raw.initBatch(part.length)
    raw.addToBatch(sequence, at, part, at + batchTokens >= ids.length ? Uint32Array.of(part.length - 1) : new Uint32Array(0))
    await raw.decodeBatch()
  }
}

/** Figures of every kind with flash attention on or off. */
async function measureRaw(model, flash) {
  const sequences = Math.max(1, plan.batch), longest = Math.max(64, ...plan.prefill, ...plan.contexts.map((c) => c + plan.decode)) + 8
  const context = await model.createContext({
    contextSize: longest, sequences, batchSize: batchTokens, threads: { ideal: plan.threads, min: plan.threads }, flashAttention: flash,
  })
  const raw = context._ctx, out = { prefill: [], decode: [], batch: [] }
  if (raw.getThreads() !== plan.threads) raw.setThreads(plan.threads)
  const forget = (sequence, from) => {
    if (!raw.removeTokenCellsFromSequence(sequence, from, -1)) throw new Error('llama.cpp does not forget')
  }
  await prompt(raw, 0, randomIds(Math.min(64, longest - 8)))
  forget(0, 0)
  for (const tokens of plan.prefill) {
    out.prefill.push({
      tokens, flash,
      tokensPerSecond: await repeated(plan.repeats, async () => {
        const ids = randomIds(tokens), start = performance.now()
        await prompt(raw, 0, ids)
        const rate = perSecond(tokens, start)
        forget(0, 0)
        return rate
      }),
    })
  }
  const steps = async (count, length) => {
    const start = performance.now()
    for (let i = 0; i < plan.decode; i++) await decode(raw, Array.from({ length: count }, () => randomIds(1)), length + i)
    const rate = perSecond(count * plan.decode, start)
    for (let s = 0; s < count; s++) forget(s, length)
    return rate
  }
  for (const length of plan.contexts) {
    await prompt(raw, 0, randomIds(length))
    out.decode.push({ context: length, flash, tokensPerSecond: await repeated(plan.repeats, () => steps(1, length)) })
    if (plan.batch && length === Math.min(...plan.contexts)) {
      for (let s = 1; s < plan.batch; s++) await prompt(raw, s, randomIds(length))
      const tokensPerSecond = await repeated(plan.repeats, () => steps(plan.batch, length))
      out.batch.push({ context: length, sequences: plan.batch, flash, tokensPerSecond })
    }
    for (let s = 0; s < sequences; s++) forget(s, 0)
  }
  await context.dispose()
  return out
}

/** Through the public interface: time to the first token of 16, and decode after the shortest context. */
async function measureApi(model, flash) {
  const length = Math.min(...plan.contexts), threads = { ideal: plan.threads, min: plan.threads }
  const context = await model.createContext({ contextSize: length + plan.decode + 40, batchSize: batchTokens, threads, flashAttention: flash })
  const sequence = context.getSequence(), options = { temperature: 0 }
  const firstTokenMs = await repeated(plan.repeats + 3, async () => {
    await sequence.clearHistory()
    const ids = [...randomIds(16)], start = performance.now()
    for await (const token of sequence.evaluate(ids, options)) {
      void token
      break
    }
    return performance.now() - start
  })
  const generate = async () => {
    await sequence.clearHistory()
    let start = 0, count = 0
    for await (const token of sequence.evaluate([...randomIds(length)], { ...options, yieldEogToken: true })) {
      void token
      if (count === 0) start = performance.now()
      if (count++ === plan.decode) break
    }
    return perSecond(count - 1, start)
  }
  const result = { firstTokenMs, decode: plan.decode ? { context: length, flash, tokensPerSecond: await repeated(plan.repeats, generate) } : null }
  await context.dispose()
  return result
}

const started = performance.now()
const model = await llama.loadModel({ modelPath: plan.model })
const ready = await model.createContext({ contextSize: 512, batchSize: batchTokens, threads: plan.threads })
const loadMs = spread([performance.now() - started])
await ready.dispose()

const better = (a, b) => (b.tokensPerSecond.median > a.tokensPerSecond.median ? b : a)
const fastest = (lists) => lists[0].map((_, i) => lists.map((list) => list[i]).reduce(better))
const runs = []
for (const flash of plan.flash) runs.push(await measureRaw(model, flash))
const figures = Object.fromEntries(['prefill', 'decode', 'batch'].map((kind) => [kind, fastest(runs.map((run) => run[kind]))]))
const api = plan.api && plan.contexts.length ? await measureApi(model, figures.decode[0].flash) : null
const [, library] = /libggml-cpu-?(\w*)\.so/.exec(fs.readFileSync('/proc/self/maps', 'utf8')) ?? [null, 'unknown']

console.log(JSON.stringify({
  engine: `node-llama-cpp ${version}`, release: llama.llamaCppRelease.release, library, features: llama.systemInfo.trim(), model: plan.model,
  threads: plan.threads, loadMs, ...figures, api, firstTokenMs: api?.firstTokenMs ?? null, residentBytes: process.memoryUsage.rss(),
}))
await model.dispose()
process.exit(0) // its worker threads may linger
