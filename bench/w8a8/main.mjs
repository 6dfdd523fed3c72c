// What int8 inputs cost with one scale per place, and what a prefix wins back:
//
//   npm run bench:w8a8 -- [--models spiky,spiky-english,tiny] [--json FILE]
//
// Tables for each model: perplexity of unseen text (mean KL to the unquantised model in 1e-3 nats), schemes by prefixes, then what each costs to run,
// then the bars. All of it is kept as bench/results/w8a8.json unless --json names another place. Ends with code 1 when a constructed model misses a bar.
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { devices } from 'lapidary'
import { commit } from '../commit.mjs'
import { models } from './models.mjs'
import { study } from './study.mjs'

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..')

function machine() {
  const { name, instructionSet, cores } = devices().find(({ kind }) => kind === 'cpu')
  return { processor: name, instructionSet, cores, system: `${os.type()} ${os.release()}`, node: process.version, date: new Date().toISOString(), commit: commit() }
}

const figure = (value) => (value === null ? 'none' : Math.abs(value) >= 1e5 || Math.abs(value) < 1e-3 ? value.toExponential(2) : value.toPrecision(5))

function show({ cells, positions, costs, search, sites, prefixes, localWindow, bars }) {
  const names = ['none', 'BOS', 'PrefixQuant', 'PrefixQuant tuned', 'greedy', 'greedy tuned'].filter((name) => cells.FP[name])
  console.log(`| | ${names.join(' | ')} |\n|---|${names.map(() => '---|').join('')}`)
  for (const [row, of] of Object.entries(cells)) {
    const cell = (name) => (of[name] ? `${of[name].perplexity.toFixed(3)} (${(1000 * of[name].meanKl).toFixed(2)})` : '')
    console.log(`| ${row} | ${names.map(cell).join(' | ')} |`)
  }
  console.log('| | weights, MB | prefill, tokens/s | decode, tokens/s | both behind greedy |\n|---|---|---|---|---|')
  for (const [row, { none, greedy }] of Object.entries(costs)) {
    const rates = (of) => (of ? [of.prefill.toFixed(0), of.decode.toFixed(0)] : ['', ''])
    console.log(`| ${row} | ${(none.bytes / 1e6).toFixed(2)} | ${rates(none).join(' | ')} | ${rates(greedy).join(', ')} |`)
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

async function main() {
  const { values } = parseArgs({ options: { models: { type: 'string' }, json: { type: 'string' } } })
  const names = values.models?.split(',') ?? Object.keys(models)
  for (const name of names) if (!models[name]) throw new Error(`no model "${name}"; there are ${Object.keys(models).join(', ')}`)
  const report = { ...machine(), models: {} }
  for (const name of names) {
    const { title, gap, folder: place, texts, options } = models[name]
    console.log(`\n${name}: ${title}`)
    const say = (what) => process.stderr.write(`  ${what}\n`)
    const began = performance.now()
    const folder = await place(say)
    const result = await study(folder, await texts(folder), { ...options, gap, speeds: true, say })
    report.models[name] = { title, ...result, seconds: (performance.now() - began) / 1000 }
    show(result)
  }
  const file = values.json ?? path.join(root, 'bench/results/w8a8.json')
  fs.mkdirSync(path.dirname(file), { recursive: true })
  fs.writeFileSync(file, `${JSON.stringify(report, null, 1)}\n`)
  console.log(`\nwritten: ${path.relative(process.cwd(), file)}`)
  const missed = Object.entries(report.models).some(([name, { bars }]) => name.startsWith('spiky') && bars.some(({ ok }) => ok === false))
  if (missed) process.exitCode = 1
}

await main()
