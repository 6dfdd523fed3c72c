// End-to-end speed beside llama.cpp (through node-llama-cpp), on checkpoints with the true shapes and random weights. A development check;
// node-llama-cpp is no dependency: install it in a folder of your own with `npm install --ignore-scripts node-llama-cpp`.
//
//   node bench/peers/speed.mjs --llama FOLDER [--models 270M,1B] [--formats int8,bf16,q8_0,q4_0,q4_k_m] [--cpu avx2] [--prefill 512,2048]
//        [--context 512,4096] [--decode 128] [--batch N] [--threads N] [--precision KIND] [--repeats 3] [--rounds 1] [--flash both|on|off]
//        [--only ours|theirs] [--quick] [--json FILE]
//
// FOLDER holds node_modules with node-llama-cpp. Both have the same number of threads and take turns, each in its own process. `int8` is our
// weights quantised at load beside their Q8_0. --cpu holds both to one instruction set. llama.cpp has batches of 512, and flash attention on or
// off, whichever is faster for a figure. --rounds repeats everything in turn. Let nothing else run meanwhile.
import fs from 'node:fs'
import { parseArgs } from 'node:util'
import { compare } from './compare.mjs'
import { comparisonOptions, lines, namesGiven, OptionError, publicPlan, readComparison } from './report.mjs'

async function main() {
  const { values, tokens } = parseArgs({ options: { ...comparisonOptions, only: { type: 'string' }, json: { type: 'string' } }, tokens: true })
  const { models, formats, plan } = readComparison(values, namesGiven(tokens))
  plan.sides = ['ours', 'theirs'].filter((side) => !values.only || values.only === side)
  if (plan.sides.length === 0) throw new OptionError(`--only must be ours or theirs, received "${values.only}"`)
  if (plan.sides.includes('theirs') && !plan.llama) throw new OptionError('--llama FOLDER is needed, whose node_modules holds node-llama-cpp')
  const results = []
  for (const model of models) {
    for (const format of formats) {
      const result = await compare(model, format, plan)
      results.push(result)
      console.log(`${lines(result).join('\n')}\n`)
    }
  }
  if (values.json) fs.writeFileSync(values.json, `${JSON.stringify({ date: new Date().toISOString(), plan: publicPlan(plan), results }, null, 1)}\n`)
}

try {
  await main()
} catch (error) {
  console.error(error instanceof OptionError || error.code?.startsWith('ERR_PARSE_ARGS') ? error.message : error.stack)
  process.exitCode = 1
}
