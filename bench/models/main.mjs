// Checkpoints with the true shapes of Gemma and random weights, the same in every format, for benchmarks. Files are kept and used again; they
// lie outside of the repository: LAPIDARY_BENCH_DIR, else lapidary-bench in the folder for temporary files.
//
//   node bench/models/main.mjs 270M|1B|4B|gemma2-2B[,...] [safetensors|bf16|q8_0|q4_0|q4_k_m[,...]]      prints the paths
//
// 'safetensors' is a folder in bf16; the other formats are GGUF files. Sizes of 1B: 2.0 GB in bf16, 1.1 in Q8_0, 0.7 in Q4_0.
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { ggufFormats } from './formats.mjs'
import { shapeOf, shapes } from './shapes.mjs'
import { makeTable } from './table.mjs'
import { writeFolder, writeGguf } from './write.mjs'

/** Part of the names, so that a change of what is written is never taken from an old file. */
const version = 1
const seed = 1
/** 4.2 million numbers: prime, so that rows of one tensor begin all over the table. */
const tableBlocks = 16_411

export const formats = ['safetensors', ...Object.keys(ggufFormats)]

export const cacheFolder = () => process.env.LAPIDARY_BENCH_DIR || path.join(os.tmpdir(), 'lapidary-bench')

let table

/** The path of a model, which is written first where it is not there yet. */
export function modelPath(size, format) {
  const shape = shapeOf(size), base = path.join(cacheFolder(), `models-v${version}`, size)
  if (!formats.includes(format)) throw new Error(`there is no format ${format}; there are ${formats.join(', ')}`)
  const target = format === 'safetensors' ? path.join(base, 'safetensors') : path.join(base, `${size}-${format}.gguf`)
  if (fs.existsSync(format === 'safetensors' ? path.join(target, 'model.safetensors') : target)) return target
  table ??= makeTable(seed, tableBlocks)
  if (format === 'safetensors') writeFolder(target, shape, table)
  else writeGguf(target, shape, table, format, `random ${size}`)
  return target
}

function main([sizes = '', kinds = formats.join(',')]) {
  if (!sizes) {
    console.error(`usage: node bench/models/main.mjs ${Object.keys(shapes).join('|')}[,...] [${formats.join('|')}[,...]]`)
    process.exitCode = 2
    return
  }
  for (const size of sizes.split(',')) for (const kind of kinds.split(',')) console.log(modelPath(size, kind))
}

if (process.argv[1] && path.resolve(process.argv[1]) === fileURLToPath(import.meta.url)) main(process.argv.slice(2))
