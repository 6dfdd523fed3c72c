// node-llama-cpp for benchmarks: where it is, and a copy of it that has one instruction set alone. It is no dependency of lapidary.
import fs from 'node:fs'
import path from 'node:path'
import { cacheFolder } from '../models/main.mjs'

/** llama.cpp's libraries of the CPU backend by our names of instruction sets. Its own choice is the best that the processor has. */
export const backendOf = {
  avx2: 'haswell', avxvnni: 'alderlake', avx512: 'skylakex', avx512vnni: 'icelake', avx512bf16: 'cooperlake', amx: 'sapphirerapids',
}

const binaries = '@node-llama-cpp/linux-x64'

/** The folder of node-llama-cpp under `folder`, which holds node_modules, or null. */
export function findLlama(folder) {
  const found = path.join(path.resolve(folder), 'node_modules/node-llama-cpp')
  return fs.existsSync(path.join(found, 'dist/index.js')) ? found : null
}

/** `folder` itself, or, where an instruction set is named, a folder whose node-llama-cpp finds only the library for it. */
export function llamaFolder(folder, instructionSet) {
  const found = findLlama(folder)
  if (!found) throw new Error(`${folder} has no node_modules/node-llama-cpp. Run there: npm install --ignore-scripts node-llama-cpp`)
  if (!instructionSet) return path.resolve(folder)
  const backend = backendOf[instructionSet]
  if (!backend) throw new Error(`llama.cpp has no library for ${instructionSet}; there are ${Object.keys(backendOf).join(', ')}`)
  const { version } = JSON.parse(fs.readFileSync(path.join(found, 'package.json'), 'utf8'))
  const modules = path.dirname(found), shadow = path.join(cacheFolder(), 'peers', `llama-${version}-${backend}`)
  if (!fs.existsSync(shadow)) copyWith(modules, shadow, backend)
  return shadow
}

/**
 * Modules are looked up from where a file really lies: node-llama-cpp and its binaries are copied, all else is linked. node-llama-cpp loads the
 * best of the libggml-cpu-*.so that lie beside its addon.
 */
function copyWith(modules, shadow, backend) {
  const partial = `${shadow}.${process.pid}.part`, to = path.join(partial, 'node_modules')
  fs.mkdirSync(path.join(to, path.dirname(binaries)), { recursive: true })
  for (const name of fs.readdirSync(modules)) {
    const copied = name === 'node-llama-cpp' || name === path.dirname(binaries)
    if (!copied && !name.startsWith('.')) fs.symlinkSync(path.join(modules, name), path.join(to, name))
  }
  fs.cpSync(path.join(modules, 'node-llama-cpp'), path.join(to, 'node-llama-cpp'), { recursive: true, filter: (file) => !file.endsWith('.bundle') })
  const other = (file) => /libggml-cpu-.*\.so$/.test(file) && path.basename(file) !== `libggml-cpu-${backend}.so`
  fs.cpSync(path.join(modules, binaries), path.join(to, binaries), { recursive: true, filter: (file) => !other(file) })
  fs.renameSync(partial, shadow)
}
