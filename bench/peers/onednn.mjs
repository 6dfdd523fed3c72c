// int8 products beside oneDNN's, in turn and in one run, at the shapes of bench/kernels: node bench/peers/onednn.mjs [--seconds 1] [--m 1,16,512]
// Needs the library and its headers (Debian: apt-get install libdnnl-dev) and a C++ compiler; no part of the package or of any check.
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { devices, pack, peaks, Tensor, timeProducts } from 'lapidary/ops'
import { int8s, matricesOf, scales, weight } from '../kernels/data.mjs'
import { cacheFolder } from '../models/main.mjs'

const { values: options } = parseArgs({ options: { seconds: { type: 'string', default: '1' }, m: { type: 'string', default: '1,16,512' } } })
const threads = devices().find((d) => d.kind === 'cpu').cores

/** The compiled program, or an end with what is missing. */
function build() {
  const program = path.join(cacheFolder(), 'peers', 'onednn'), source = fileURLToPath(new URL('onednn.cc', import.meta.url))
  fs.mkdirSync(path.dirname(program), { recursive: true })
  const { status, stderr, error } = spawnSync(process.env.CXX || 'c++', ['-std=c++20', '-O2', '-o', program, source, '-ldnnl'], { encoding: 'utf8' })
  if (status === 0) return program
  console.error(`oneDNN's program was not built (apt-get install libdnnl-dev):\n${error?.message ?? stderr}`)
  process.exit(1)
}

function theirs(program, m, n, k) {
  const env = { ...process.env, OMP_NUM_THREADS: String(threads) }
  const { status, stdout, stderr } = spawnSync(program, [options.seconds, m, n, k].map(String), { encoding: 'utf8', env })
  if (status !== 0) throw new Error(`oneDNN's program ended with ${status}: ${stderr}`)
  const { version, products } = JSON.parse(stdout)
  return { version, seconds: products[0].median }
}

async function ours(m, n, k) {
  const rows = weight('i8', n, k, 1), x = await Tensor.from(int8s(m * k, 3), [m, k]), s = await Tensor.from(scales(m, 4), [m]), inputs = []
  const rowScales = await Tensor.from(scales(n, 2), [n]), plain = await Tensor.from(rows.data, [n, k])
  // As many weights as the other program has.
  for (let bytes = 0; bytes < 640 * 2 ** 20; bytes += n * k) inputs.push([x, s, await pack(plain), rowScales])
  const samples = []
  for (let total = 0; total < Number(options.seconds) || samples.length < 8; ) {
    const round = await timeProducts('gemmInt8', inputs, inputs.length)
    samples.push(...round)
    total += round.reduce((sum, seconds) => sum + seconds, 0)
  }
  for (const tensor of [x, s, rowScales, plain, ...inputs.map(([, , w]) => w)]) tensor.dispose()
  return samples.sort((a, b) => a - b)[samples.length >> 1]
}

const program = build(), found = await peaks({ device: 'cpu', seconds: 0.25 })
console.log(`${threads} threads; memory ${(found.bandwidth / 1e9).toFixed(1)} GB/s, int8 ${(found.int8 / 1e12).toFixed(2)} TOP/s`)
for (const { label, n, k } of matricesOf({ quick: false })) {
  for (const m of options.m.split(',').map(Number)) {
    const { version, seconds } = theirs(program, m, n, k), own = await ours(m, n, k)
    const rate = (time) => `${(time * 1e3).toFixed(3)} ms ${((2 * m * n * k) / time / 1e9).toFixed(0).padStart(5)} GOP/s ${((n * k) / time / 1e9).toFixed(1).padStart(5)} GB/s`
    console.log(`${label.padEnd(11)} [${n}, ${k}], m = ${m}: ours ${rate(own)}, oneDNN ${version} ${rate(seconds)}: ${(seconds / own).toFixed(2)} times`)
  }
}
