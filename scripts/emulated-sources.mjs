// For binding.gyp, which knows no .cu files: one .cc per file of the cuda_library group that includes it, for the C++ compiler and the emulator.
// Writes them into build/emulated (only when they change) and prints their names.
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))
const folder = 'build/emulated'
const { cuda_library: sources } = JSON.parse(readFileSync(path.join(root, 'native', 'sources.json'), 'utf8'))

function textOf(file) {
  try {
    return readFileSync(file, 'utf8')
  } catch {
    return undefined
  }
}

mkdirSync(path.join(root, folder), { recursive: true })
const names = sources.map((source) => {
  const name = `${folder}/${path.basename(source, '.cu')}.cc`
  const text = `#include "${source}"\n`
  if (textOf(path.join(root, name)) !== text) writeFileSync(path.join(root, name), text)
  return name
})
process.stdout.write(`${names.join('\n')}\n`)
