// The embedded model end to end, as a user has it: loading, prefill and decode, alone and eight at once. Medians of several rounds.
//   node bench/embedded.mjs [MODEL=models/tiny] [--precision bf16|f32] [--json]
import os from 'node:os'
import { parseArgs } from 'node:util'
import { devices, loadModel } from 'lapidary'

const { values, positionals } = parseArgs({ options: { precision: { type: 'string', default: 'bf16' }, json: { type: 'boolean' } }, allowPositionals: true })
const path = positionals[0] ?? 'models/tiny'
const rounds = 7, prompt = 512, decode = 128
const median = (list) => list.toSorted((a, b) => a - b)[list.length >> 1]

async function loadMs() {
  const start = performance.now()
  const model = await loadModel(path, { precision: values.precision })
  const ms = performance.now() - start
  await model.close()
  return ms
}

// Random ids that no earlier prompt shares a beginning with: nothing is found in a cache.
const ids = (vocab, count) => Int32Array.from({ length: count }, () => 8 + Math.floor(Math.random() * (vocab - 8)))
const options = { maxTokens: decode, temperature: 0, ignoreEos: true }

const loads = []
for (let i = 0; i < rounds; i++) loads.push(await loadMs())
const model = await loadModel(path, { precision: values.precision, prefixCache: 0 })
const prefill = [], alone = [], together = []
for (let i = 0; i < rounds; i++) {
  const { usage } = await model.generate(ids(model.info.vocab, prompt), options)
  prefill.push(usage.promptTokens / usage.prefillMs * 1e3)
  alone.push((usage.generatedTokens - 1) / usage.decodeMs * 1e3)
  const start = performance.now()
  const eight = await Promise.all(Array.from({ length: 8 }, () => model.generate(ids(model.info.vocab, 16), options)))
  together.push(eight.reduce((sum, r) => sum + r.usage.generatedTokens, 0) / (performance.now() - start) * 1e3)
}
await model.close()

const cpu = devices()[0]
const load = os.loadavg()[0]
const result = {
  model: path, precision: values.precision, processor: cpu.name, instructionSet: cpu.instructionSet, cores: cpu.cores, node: process.version,
  loadMs: median(loads), prefillTokensPerSecond: median(prefill), decodeTokensPerSecond: median(alone), decodeEightTokensPerSecond: median(together),
}
if (values.json) console.log(JSON.stringify(result))
else {
  console.log(`${path}, ${values.precision}, ${cpu.name}, ${cpu.instructionSet}, ${cpu.cores} cores, Node ${process.version}`)
  console.log(`load                      ${result.loadMs.toFixed(1)} ms`)
  console.log(`prefill, ${prompt} tokens       ${result.prefillTokensPerSecond.toFixed(0)} tokens/s`)
  console.log(`decode after ${prompt}          ${result.decodeTokensPerSecond.toFixed(0)} tokens/s`)
  console.log(`decode, eight at once     ${result.decodeEightTokensPerSecond.toFixed(0)} tokens/s together`)
}
if (load > cpu.cores + 0.5) console.error(`the machine was busy (load ${load.toFixed(1)}): these figures are too low`)
