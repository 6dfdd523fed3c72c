// Brings a checkout to where it can run: packages, dist/, the addon. Does only what is missing or stale, so a second call is instant.
import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

export const root = fileURLToPath(new URL('..', import.meta.url))
const stampFile = path.join(root, 'build', 'stamps.json')

const sources = {
  lib: ['lib', 'tsconfig.json', 'scripts/build-ts.mjs', 'package.json'],
  addon: ['native', 'cuda', 'binding.gyp', 'scripts/build-addon.mjs', 'scripts/build-commands.mjs', 'scripts/node-headers.mjs', 'package.json'],
  tests: ['native', 'cuda', 'test/native', 'test/fuzz', 'test/cuda', 'test/emulator', 'bench/gpu', 'bench/w8a8', 'binding.gyp', 'scripts/emulated-sources.mjs', 'package.json'],
  cuda: ['native', 'cuda', 'scripts/build-cuda.mjs', 'scripts/cuda-toolkit.mjs'],
}

/** Changes when a file under the paths comes, goes, or is written. */
export function fingerprint(paths) {
  const hash = createHash('sha1').update(`${process.platform}-${process.arch}`)
  const visit = (file) => {
    const info = statSync(file, { throwIfNoEntry: false })
    if (!info) return
    if (info.isDirectory()) for (const name of readdirSync(file).sort()) visit(path.join(file, name))
    else hash.update(`${file}:${info.size}:${info.mtimeMs}\n`)
  }
  for (const name of paths) visit(path.join(root, name))
  return hash.digest('hex')
}

function readStamps() {
  try {
    return JSON.parse(readFileSync(stampFile, 'utf8'))
  } catch {
    return {}
  }
}

function isFresh(step, output) {
  return existsSync(path.join(root, output)) && readStamps()[step] === fingerprint(sources[step])
}

function stamp(step, value) {
  mkdirSync(path.dirname(stampFile), { recursive: true })
  writeFileSync(stampFile, `${JSON.stringify({ ...readStamps(), [step]: value }, null, 2)}\n`)
}

/** One line on stderr; on a terminal the next one overwrites it. */
function show(text) {
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${text.slice(0, (process.stderr.columns || 80) - 1)}`)
}
function say(text) {
  show('')
  process.stderr.write(`${text}\n`)
}

function installPackages() {
  const time = (file) => statSync(path.join(root, file), { throwIfNoEntry: false })?.mtimeMs ?? 0
  if (time('node_modules/.package-lock.json') >= time('package-lock.json') && time('node_modules/.package-lock.json') > 0) return
  say('lapidary: installing packages (npm ci)')
  const npm = process.platform === 'win32' ? 'npm.cmd' : 'npm'
  const args = ['ci', '--ignore-scripts', '--no-audit', '--no-fund', '--loglevel=error']
  const result = spawnSync(npm, args, { cwd: root, stdio: ['ignore', 2, 2], shell: process.platform === 'win32' })
  if (result.status !== 0) throw new Error(`npm ${args.join(' ')} failed${result.error ? `: ${result.error.message}` : ''}`)
}

function buildLibrary() {
  if (isFresh('lib', 'dist/cli/main.js') && existsSync(path.join(root, 'dist/index.cjs'))) return
  say('lapidary: compiling TypeScript')
  const value = fingerprint(sources.lib)
  const result = spawnSync(process.execPath, [path.join(root, 'scripts/build-ts.mjs')], { cwd: root, stdio: ['ignore', 2, 2] })
  if (result.status !== 0) throw new Error('compiling lib/ failed')
  stamp('lib', value)
}

async function buildNative({ nativeTests, werror }) {
  const step = nativeTests ? 'tests' : 'addon'
  if (isFresh('addon', 'build/Release/lapidary.node') && (!nativeTests || isFresh('tests', 'build/Release/lapidary_tests'))) return
  const { buildAddon } = await import('./build-addon.mjs')
  const listed = JSON.parse(readFileSync(path.join(root, 'native/sources.json'), 'utf8'))
  const groups = Object.keys(listed).filter((group) => nativeTests || !/cuda|emulator|gpu|fuzz|tests|tool/.test(group))
  const total = groups.reduce((sum, group) => sum + listed[group].length, 0)
  const value = fingerprint(sources.addon), testsValue = fingerprint(sources.tests)
  say(`lapidary: compiling the native part (${nativeTests ? 'addon and C++ tests' : 'addon'}; the first time takes some minutes)`)
  let done = 0
  const onLine = (line) => {
    if (line.startsWith('CXX(')) show(`lapidary: compiling ${++done} of at most ${total}: ${line.split('/').slice(-3).join('/')}`)
  }
  await buildAddon({ nativeTests, werror, onLine })
  stamp('addon', value)
  if (step === 'tests') stamp('tests', testsValue)
  say('lapidary: native part built')
}

/** The CUDA library, where nvcc is found: a few minutes the first time. */
async function buildCudaLibrary() {
  if (isFresh('cuda', 'build/Release/lapidary_cuda.so')) return
  const { buildCudaIfPossible } = await import('./build-addon.mjs')
  const value = fingerprint(sources.cuda)
  let told = false
  const onLine = (line) => {
    if (!told) say('lapidary: compiling the CUDA library (the first time takes some minutes; LAPIDARY_CUDA=0 leaves it out)')
    told = true
    show(`lapidary: ${line}`)
  }
  const built = await buildCudaIfPossible({ onLine, say: (text) => say(`lapidary: ${text}`) })
  if (!built) return
  stamp('cuda', value)
  if (built.compiled) say('lapidary: CUDA library built')
}

/** `cuda: false` leaves the CUDA library as it is. */
export async function setUp({ nativeTests = false, werror = false, cuda = true } = {}) {
  installPackages()
  buildLibrary()
  await buildNative({ nativeTests, werror })
  if (cuda) await buildCudaLibrary()
}
