// The CPU backend measured whole: kernels (bench/kernels), then models of true shapes, beside llama.cpp where it is at hand.
//
//   npm run bench:cpu -- [--llama FOLDER] [--cpu avx2] [--models 270M,1B] [--formats int8,bf16,q8_0,q4_0] [--no-kernels] [--no-models]
//        [--quick] [--json FILE] and the options of bench/peers/speed.mjs
//
// The report is kept as bench/results/cpu-<instruction set>.json unless --quick is given or --json names another place. What a run leaves out,
// the file keeps from the run before on the same processor: kernels, and models by size and format, each with its own date and commit.
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { devices } from 'lapidary'
import { commit } from '../commit.mjs'
import { compare } from '../peers/compare.mjs'
import { comparisonOptions, lines, namesGiven, OptionError, publicPlan, readComparison } from '../peers/report.mjs'
import { judge } from './bars.mjs'
import { keepNewest } from './keep.mjs'

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..')

function readLine(file, pattern) {
  try {
    return pattern.exec(fs.readFileSync(file, 'utf8'))?.[1]?.trim() ?? null
  } catch {
    return null
  }
}

function machine(cpu) {
  const found = devices().find(({ kind }) => kind === 'cpu')
  return {
    processor: found.name, flags: readLine('/proc/cpuinfo', /^flags\s*:(.*)$/m), instructionSets: found.instructionSets,
    instructionSet: cpu ?? found.instructionSet, cores: found.cores, memoryBytes: found.memoryBytes, system: `${os.type()} ${os.release()}`,
    node: process.version, date: new Date().toISOString(), commit: commit(), loadBefore: os.loadavg()[0],
  }
}

/** The kernels' own benchmark as it is, its output shown. */
function kernels({ quick, cpu }) {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'lapidary-bench-')), file = path.join(folder, 'kernels.json')
  try {
    const args = [path.join(root, 'bench/kernels/main.mjs'), '--device', 'cpu', '--json', file, ...(quick ? ['--quick'] : [])]
    const env = { ...process.env, ...(cpu ? { LAPIDARY_CPU: cpu } : {}) }
    const { status } = spawnSync(process.execPath, args, { cwd: root, stdio: 'inherit', env })
    if (!fs.existsSync(file)) throw new Error(`the kernels' benchmark ended with ${status} and no report`)
    return JSON.parse(fs.readFileSync(file, 'utf8'))
  } finally {
    fs.rmSync(folder, { recursive: true, force: true })
  }
}

function showBars(bars) {
  console.log('bars')
  for (const { bar, state, value, reason } of bars) console.log(`  ${state.padEnd(11)} ${bar}: ${reason ?? value.toFixed(2)}`)
}

async function main() {
  const own = { 'no-kernels': { type: 'boolean' }, 'no-models': { type: 'boolean' }, json: { type: 'string' } }
  const { values, tokens } = parseArgs({ options: { ...comparisonOptions, ...own }, tokens: true })
  const { models, formats, plan, cpu } = readComparison(values, namesGiven(tokens))
  plan.sides = plan.llama ? ['ours', 'theirs'] : ['ours']
  const facts = machine(cpu), used = facts.instructionSet
  if (cpu && !facts.instructionSets.includes(cpu)) throw new OptionError(`this processor has no ${cpu}; it has ${facts.instructionSets.join(', ')}`)
  const report = { ...facts, plan: publicPlan(plan), kernels: values['no-kernels'] ? null : kernels(values), models: [] }
  if (!values['no-models']) {
    for (const model of models) {
      for (const format of formats) {
        const result = await compare(model, format, plan)
        report.models.push({ ...result, date: new Date().toISOString(), commit: facts.commit, plan: report.plan })
        console.log(`\n${lines(result).join('\n')}`)
      }
    }
  }
  const judged = ({ kernels, models }) => judge({ kernels, comparisons: models, used, present: facts.instructionSets })
  report.bars = judged(report)
  console.log('')
  showBars(report.bars)
  const file = values.json ?? (values.quick ? null : path.join(root, `bench/results/cpu-${used}.json`))
  if (file) {
    const kept = fs.existsSync(file) ? keepNewest(JSON.parse(fs.readFileSync(file, 'utf8')), report) : report
    fs.mkdirSync(path.dirname(file), { recursive: true })
    fs.writeFileSync(file, `${JSON.stringify({ ...kept, bars: judged(kept) }, null, 1)}\n`)
    console.log(`\nwritten: ${path.relative(process.cwd(), file) || file}`)
  }
  if (report.kernels?.results.some(({ wrong }) => wrong)) process.exitCode = 1
}

try {
  await main()
} catch (error) {
  console.error(error instanceof OptionError || error.code?.startsWith('ERR_PARSE_ARGS') ? error.message : error.stack)
  process.exitCode = 1
}
