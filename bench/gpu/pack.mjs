// Makes one archive with all that bench/gpu/check.sh needs on a bare machine with a GPU: programs and the CUDA library built here, Node, the
// package, tests, golden data, sources to build again from. Nothing is fetched there.
//   node bench/gpu/pack.mjs [--out FILE] [--no-cuda] [--no-build]
// --no-cuda: without the CUDA library, to rehearse where nvcc is not to be had; --no-build: with the programs as they were built last.
import { spawnSync } from 'node:child_process'
import { cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, statSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { buildForCheck } from './build.mjs'

const root = fileURLToPath(new URL('../..', import.meta.url))
const { values: options } = parseArgs({ options: { out: { type: 'string' }, 'no-cuda': { type: 'boolean' }, 'no-build': { type: 'boolean' } } })
const out = path.resolve(options.out ?? path.join(root, 'build', 'lapidary-gpu-check.tar.xz'))
const maxBytes = 64 * 1024 * 1024

/** Everything by its path in the checkout; the archive has the same tree, so the same scripts run in both. */
const contents = [
  'package.json', 'LICENSE', 'binding.gyp', 'CMakeLists.txt', 'dist', 'native', 'cuda', 'scripts', 'bench/gpu', 'models/tiny',
  'test/native', 'test/cuda', 'test/emulator', 'test/js',
  'test/golden/gemma2-tiny', 'test/golden/gemma3-tiny', 'test/golden/gemma3-head256', 'test/golden/gemma3-small', 'test/golden/chat', 'test/golden/sampling',
  'test/golden/gguf',
  'node_modules/@huggingface/jinja/package.json', 'node_modules/@huggingface/jinja/dist/index.js', 'node_modules/node-gyp/gyp',
]
/** Left out: source maps, and the GGUF files of two golden models; the third has every block format that the kernels know. */
const unwanted = /__pycache__|\.map$|golden\/gguf\/(gemma2-tiny|gemma3-head256)\/.*\.gguf$/
const programs = ['lapidary.node', 'lapidary_gpu_tests', 'lapidary_gpu_bench', 'lapidary_cuda_emulated.node', ...(options['no-cuda'] ? [] : ['lapidary_cuda.so'])]

const say = (text) => process.stderr.write(`${text}\n`)

function run(program, args, settings = {}) {
  const { status, stdout, stderr, error } = spawnSync(program, args, { encoding: 'utf8', maxBuffer: 1 << 28, ...settings })
  if (status !== 0) throw new Error(`${program} ${args.slice(0, 3).join(' ')} ended with code ${status}: ${error?.message ?? stderr}`)
  return stdout
}

function commit() {
  const changed = run('git', ['status', '--porcelain', '--untracked-files=no'], { cwd: root }).trim()
  return `${run('git', ['rev-parse', 'HEAD'], { cwd: root }).trim()}${changed ? ' with changes' : ''}\n`
}

/** The newest glibc symbol that a program asks for: the oldest system that it starts on. */
function glibcOf(file) {
  const versions = [...run('readelf', ['-V', file]).matchAll(/GLIBC_(\d+)\.(\d+)/g)].map((m) => [Number(m[1]), Number(m[2])])
  return versions.sort(([a, b], [c, d]) => a - c || b - d).at(-1)?.join('.')
}

/** The running Node, stripped and compressed; made once per version. */
function packedNode() {
  const packed = path.join(root, 'build', 'pack', `node-${process.version}-${process.arch}.xz`)
  if (existsSync(packed)) return packed
  mkdirSync(path.dirname(packed), { recursive: true })
  const part = path.join(path.dirname(packed), 'node.part')
  cpSync(process.execPath, part, { dereference: true })
  run('strip', [part])
  run('xz', ['-T0', '-6', '--force', part])
  renameSync(`${part}.xz`, packed)
  return packed
}

const stage = mkdtempSync(path.join(os.tmpdir(), 'lapidary-pack-'))
try {
  if (!options['no-build']) await buildForCheck({ emulated: options['no-cuda'], onLine: say })
  const folder = path.join(stage, 'lapidary-gpu-check')
  const copy = (name) => cpSync(path.join(root, name), path.join(folder, name), { recursive: true, filter: (file) => !unwanted.test(file) })
  for (const name of contents) {
    if (!existsSync(path.join(root, name))) throw new Error(`${name} is not there`)
    copy(name)
  }
  for (const name of programs) {
    const file = path.join('build/Release', name)
    copy(file)
    if (!name.endsWith('.node')) run('strip', ['--strip-unneeded', path.join(folder, file)])
    say(`${name}: ${(statSync(path.join(folder, file)).size / 1024 / 1024).toFixed(2)} MiB, glibc ${glibcOf(path.join(folder, file))} or newer`)
  }
  mkdirSync(path.join(folder, 'bin'))
  cpSync(packedNode(), path.join(folder, 'bin/node.xz'))
  say(`node ${process.version}: glibc ${glibcOf(process.execPath)} or newer; packing`)
  writeFileSync(path.join(folder, 'COMMIT'), commit())
  mkdirSync(path.dirname(out), { recursive: true })
  run('tar', ['--sort=name', '--owner=0', '--group=0', '-cJf', out, '-C', stage, 'lapidary-gpu-check'], { env: { ...process.env, XZ_OPT: '-6 -T0' } })
  const { size } = statSync(out)
  if (size > maxBytes) throw new Error(`${out} has ${size} bytes, more than the ${maxBytes} that one archive may have`)
  say(`${out}: ${(size / 1024 / 1024).toFixed(1)} MiB, commit ${readFileSync(path.join(folder, 'COMMIT'), 'utf8').trim()}`)
  say('on the machine: tar -xJf lapidary-gpu-check.tar.xz && lapidary-gpu-check/bench/gpu/check.sh')
} catch (error) {
  say(`pack: ${error.message}`)
  process.exitCode = 1
} finally {
  rmSync(stage, { recursive: true, force: true })
}
