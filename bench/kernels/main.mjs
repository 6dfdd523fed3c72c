// Microbenchmarks of lapidary/ops at Gemma's shapes, each beside the roofline of this machine, which is measured first.
//
//   npm run bench -- [--device cpu|cuda|reference] [--filter TEXT] [--quick] [--json FILE]
//
// --filter takes the cases whose "subject: case" contains the text. --quick has small shapes and few samples (always so on reference).
// Every case is checked before it is timed; one that computes wrongly is reported, not timed, and the exit code is 1.
import fs from 'node:fs'
import { parseArgs } from 'node:util'
import { Session } from './harness.mjs'

const subjects = ['gemm-int8', 'linear', 'attention-prefill', 'attention-decode', 'rms-norm', 'quantize-rows', 'geglu', 'sampling']

const { values: options } = parseArgs({
  options: {
    device: { type: 'string' },
    filter: { type: 'string', default: '' },
    quick: { type: 'boolean', default: false },
    json: { type: 'string' },
  },
})

const session = await Session.open(options).catch((error) => {
  if (!error.code) throw error
  console.error(error.message) // no such device, say
  process.exit(1)
})
for (const name of subjects) {
  const { about, cases } = await import(`./${name}.mjs`)
  await session.subject(name, about, cases(session))
}
const report = session.finish()
if (options.json) fs.writeFileSync(options.json, `${JSON.stringify(report, null, 1)}\n`)
if (report.results.length === 0) console.error(`no case contains "${options.filter}"; subjects are ${subjects.join(', ')}`)
if (report.results.length === 0 || report.results.some((r) => r.wrong)) process.exitCode = 1
