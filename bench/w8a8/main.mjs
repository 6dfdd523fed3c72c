// What int8 inputs cost with one scale per place, and what a prefix wins back:
//
//   npm run bench:w8a8 -- [--models spiky,spiky-english,natural,tiny] [--part quality|speed] [--json FILE]
//
// Tables for each model: perplexity of unseen text (mean KL to the unquantised model in 1e-3 nats), schemes by prefixes, the bars, then what each
// scheme costs to run. All of it is kept as bench/results/w8a8.json unless --json names another place. `--part` does one of both and leaves the rest
// of the file as it is: speeds want a machine with nothing else to do, and a prefix that was found before. Ends with code 1 when a model other than `tiny`
// misses a bar.
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { devices } from 'lapidary'
import { commit } from '../commit.mjs'
import { models } from './models.mjs'
import { speeds, study } from './study.mjs'

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..')

function machine() {
  const { name, instructionSet, cores } = devices().find(({ kind }) => kind === 'cpu')
  return { processor: name, instructionSet, cores, system: `${os.type()} ${os.release()}`, node: process.version, date: new Date().toISOString(), commit: commit() }
}

const figure = (value) => (value === null ? 'none' : Math.abs(value) >= 1e5 || Math.abs(value) < 1e-3 ? value.toExponential(2) : value.toPrecision(5))

function showQuality({ cells, positions, search, sites, prefixes, localWindow, bars }) {
  const names = ['none', 'BOS', 'PrefixQuant', 'PrefixQuant tuned', 'greedy', 'greedy tuned'].filter((name) => cells.FP[name])
  console.log(`| | ${names.join(' | ')} |\n|---|${names.map(() => '---|').join('')}`)
  for (const [row, of] of Object.entries(cells)) {
    const cell = (name) => (of[name] ? `${of[name].perplexity.toFixed(3)} (${(1000 * of[name].meanKl).toFixed(2)})` : '')
    console.log(`| ${row} | ${names.map(cell).join(' | ')} |`)
  }
  console.log(`prefixes: PrefixQuant [${prefixes.PrefixQuant}], greedy [${prefixes.greedy}]`)
  const { none, greedy, BOS, PrefixQuant, randomMedian } = search
  console.log(`squared rounding error of held-out texts: ${Object.entries({ none, greedy, BOS, PrefixQuant, 'median random': randomMedian }).map(([name, value]) => `${name} ${figure(value)}`).join(', ')}`)
  const W = localWindow
  console.log(`perplexity without BOS at tokens before ${W}, ${2 * W}, ${4 * W} and beyond:`)
  for (const [row, of] of Object.entries(positions)) {
    for (const name of ['none', 'greedy', 'greedy tuned']) if (of[name]) console.log(`  ${row}, ${name}: ${of[name].map(figure).join(', ')}`)
  }
  const loudest = [...sites.none].sort((a, b) => b.tokenRatio - a.tokenRatio).slice(0, 3)
  for (const { layer, site, max, tokenRatio } of loudest) {
    const after = sites.greedy?.find((other) => other.layer === layer && other.site === site)
    console.log(`largest input of layer ${layer} ${site}: ${figure(max)} (${figure(tokenRatio)} times the median token's)${after ? `; behind greedy ${figure(after.max)} (${figure(after.tokenRatio)})` : ''}`)
  }
  for (const { bar, value, bound, ok } of bars) console.log(`  ${ok === null ? '      ' : ok ? 'holds ' : 'MISSED'} ${bar}: ${figure(value)}, ${bound}`)
}

function showSpeed({ costs }) {
  console.log('| | weights, MB | prefill, tokens/s | decode, tokens/s | both behind greedy |\n|---|---|---|---|---|')
  for (const [row, { none, greedy }] of Object.entries(costs)) {
    const rates = (of) => (of ? [of.prefill.toFixed(0), of.decode.toFixed(0)] : ['', ''])
    console.log(`| ${row} | ${(none.bytes / 1e6).toFixed(2)} | ${rates(none).join(' | ')} | ${rates(greedy).join(', ')} |`)
  }
}

async function main() {
  const { values } = parseArgs({ options: { models: { type: 'string' }, part: { type: 'string' }, json: { type: 'string' } } })
  const names = values.models?.split(',') ?? Object.keys(models), parts = values.part ? [values.part] : ['quality', 'speed']
  for (const name of names) if (!models[name]) throw new Error(`no model "${name}"; there are ${Object.keys(models).join(', ')}`)
  if (!['quality', 'speed'].includes(parts[0])) throw new Error(`--part is quality or speed, not "${values.part}"`)
  const file = values.json ?? path.join(root, 'bench/results/w8a8.json')
  const report = fs.existsSync(file) ? JSON.parse(fs.readFileSync(file, 'utf8')) : { models: {} }
  for (const name of names) {
    const { title, gap, folder: place, texts, options } = models[name]
    console.log(`\n${name}: ${title}`)
    const say = (what) => process.stderr.write(`  ${what}\n`)
    const folder = await place(say)
    const ids = await texts(folder)
    if (parts.includes('quality')) {
      const began = performance.now()
      const result = await study(folder, ids, { ...options, gap, say })
      const { costs, speed } = report.models[name] ?? {}
      report.models[name] = { title, machine: machine(), ...result, seconds: (performance.now() - began) / 1000, costs, speed }
      showQuality(result)
    }
    if (parts.includes('speed')) {
      const of = report.models[name]
      if (!of) throw new Error(`${file} has no prefix of ${name}: run --part quality first`)
      of.costs = await speeds(folder, ids, of.prefixes.greedy, { window: options.window, say })
      of.speed = machine()
      showSpeed(of)
    }
    fs.mkdirSync(path.dirname(file), { recursive: true })
    fs.writeFileSync(file, `${JSON.stringify({ models: report.models }, null, 1)}\n`)
  }
  console.log(`\nwritten: ${path.relative(process.cwd(), file)}`)
  const missed = names.some((name) => name !== 'tiny' && report.models[name].bars.some(({ ok }) => ok === false))
  if (missed) process.exitCode = 1
}

await main()
