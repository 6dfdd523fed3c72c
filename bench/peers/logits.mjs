// The same GGUF files in lapidary and in llama.cpp (through node-llama-cpp): how often the likeliest next token agrees, and the
// mean KL divergence of llama.cpp's distribution from ours. A development check; node-llama-cpp is no dependency.
//
//   node bench/peers/logits.mjs [--device cpu|reference] [--precision f32|bf16|int8] [--peer FOLDER] [--tokens N] [FILE.gguf ...]
//
// --peer: a folder whose node_modules holds node-llama-cpp. Without files: every file of test/golden/gguf.
// llama.cpp rounds activations to 8 bits before it multiplies them with blocks, so some divergence is its own.
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath, pathToFileURL } from 'node:url'
import { parseArgs } from 'node:util'

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..')
const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    device: { type: 'string', default: 'cpu' },
    precision: { type: 'string', default: 'f32' },
    peer: { type: 'string', default: root },
    tokens: { type: 'string', default: '200' },
  },
})

async function importPeer() {
  const entry = path.join(path.resolve(options.peer), 'node_modules/node-llama-cpp/dist/index.js')
  if (!fs.existsSync(entry)) {
    console.error('node-llama-cpp is not installed. Run: npm install --no-save node-llama-cpp')
    process.exit(1)
  }
  return import(pathToFileURL(entry))
}

function goldenFiles() {
  const folder = path.join(root, 'test/golden/gguf')
  const names = fs.readdirSync(folder, { recursive: true }).filter((name) => name.endsWith('.gguf'))
  return names.sort().map((name) => path.join(folder, name))
}

/** `count` ids in [first, vocab), the same in every run, after a BOS. */
function someIds(count, vocab, first = 3) {
  let state = 12345
  const ids = [2]
  while (ids.length < count) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    ids.push(first + (state % (vocab - first)))
  }
  return ids
}

async function peerLogits(llama, file, ids) {
  const model = await llama.loadModel({ modelPath: file })
  const context = await model.createContext({ contextSize: ids.length + 8, flashAttention: false, experimentalKvCacheKeyType: 'F32', experimentalKvCacheValueType: 'F32' })
  const unfiltered = { temperature: 1, topK: 0, topP: 1, minP: 0 }
  const input = ids.map((id) => [id, { generateNext: { logits: true, options: unfiltered } }])
  const outputs = await context.getSequence().controlledEvaluate(input)
  const rows = outputs.map(({ next }) => {
    const row = new Float64Array(next.logits.size)
    for (const [id, logit] of next.logits) row[id] = logit
    return row
  })
  await model.dispose()
  return rows
}

async function ourLogits(loadModel, file, ids) {
  const model = await loadModel(file, { device: options.device, precision: options.precision })
  const [logits] = await model.logits([ids])
  await model.close()
  const vocab = logits.length / ids.length
  return ids.map((_, i) => Float64Array.from(logits.subarray(i * vocab, (i + 1) * vocab)))
}

function logProbabilities(row) {
  const largest = row.reduce((a, b) => Math.max(a, b), -Infinity)
  const total = Math.log(row.reduce((sum, x) => sum + Math.exp(x - largest), 0)) + largest
  return row.map((x) => x - total)
}

const largestAt = (row) => row.reduce((best, x, i) => (x > row[best] ? i : best), 0)

function compare(ours, theirs) {
  let same = 0, divergence = 0, difference = 0, norm = 0
  for (let i = 0; i < ours.length; i++) {
    if (ours[i].length !== theirs[i].length) throw new Error(`${ours[i].length} logits here, ${theirs[i].length} there`)
    const p = logProbabilities(ours[i]), q = logProbabilities(theirs[i])
    same += largestAt(p) === largestAt(q)
    divergence += p.reduce((sum, x, j) => sum + Math.exp(x) * (x - q[j]), 0)
    difference += ours[i].reduce((sum, x, j) => sum + (x - theirs[i][j]) ** 2, 0)
    norm += ours[i].reduce((sum, x) => sum + x * x, 0)
  }
  return { top1: same / ours.length, kl: divergence / ours.length, relative: Math.sqrt(difference / norm) }
}

const { getLlama, LlamaLogLevel } = await importPeer()
const { loadModel } = await import(pathToFileURL(path.join(root, 'dist/index.js')))
const llama = await getLlama({ gpu: false, build: 'never', logLevel: LlamaLogLevel.error })
console.log(`${options.tokens} random tokens per file, lapidary on ${options.device} in ${options.precision}, llama.cpp on its CPU backend`)
console.log(`${'file'.padEnd(32)} ${'top-1'.padStart(7)} ${'mean KL'.padStart(10)} ${'difference'.padStart(10)}`)
for (const file of positionals.length ? positionals : goldenFiles()) {
  const probe = await loadModel(file, { device: options.device, precision: options.precision })
  const [row] = await probe.logits([[2]])
  await probe.close()
  const ids = someIds(Number(options.tokens), row.length)
  const { top1, kl, relative } = compare(await ourLogits(loadModel, file, ids), await peerLogits(llama, file, ids))
  console.log(`${path.basename(file).padEnd(32)} ${(100 * top1).toFixed(1).padStart(6)}% ${kl.toExponential(2).padStart(10)} ${relative.toExponential(2).padStart(10)}`)
}
await llama.dispose()
