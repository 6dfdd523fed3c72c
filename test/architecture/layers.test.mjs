// Dependencies point one way. Reads every #include "..." under native/ and cuda/ and every relative import under lib/, and
// fails on one that runs against the table in docs/architecture.md.
import assert from 'node:assert/strict'
import fs from 'node:fs'
import path from 'node:path'
import test from 'node:test'
import { fileURLToPath } from 'node:url'

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..')

// Folder -> folders it may include from, besides itself.
const nativeMayUse = {
  base: [],
  tensor: ['base'],
  formats: ['tensor', 'base'],
  ops: ['tensor', 'base'],
  cpu: ['ops', 'tensor', 'base'],
  cuda: ['ops', 'tensor', 'base'],
  model: ['ops', 'formats', 'tensor', 'base'],
  runtime: ['model', 'ops', 'formats', 'tensor', 'base'],
  compress: ['runtime', 'model', 'ops', 'formats', 'tensor', 'base'],
  train: ['compress', 'runtime', 'model', 'ops', 'formats', 'tensor', 'base'],
  addon: ['train', 'compress', 'runtime', 'model', 'ops', 'formats', 'tensor', 'base', 'cpu', 'cuda'],
}

// Inside cuda/: folder -> folders it may include from, besides itself. '.' is the backend, compiled without nvcc.
const cudaMayUse = { api: [], primitives: ['api'], kernels: ['primitives', 'api'], launch: ['kernels', 'primitives', 'api'], '.': ['api'] }
const mayNameEmulator = /^cuda\/(primitives\/|launch\/tensor_map\.)/

// lib/: a file may import from its own folder and these.
const libMayUse = { '.': [], ops: ['.'], cli: ['.', 'ops'], server: ['.'] }

function files(folder, pattern) {
  if (!fs.existsSync(folder)) return []
  return fs.readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((e) => e.isFile() && pattern.test(e.name))
    .map((e) => path.join(e.parentPath ?? e.path, e.name))
}

function nativeViolations(includesOf) {
  const wrong = []
  for (const [file, folder, includes] of includesOf) {
    for (const include of includes) {
      const target = include.includes('/') ? include.split('/')[0] : folder
      if (target === folder) continue
      if (!(target in nativeMayUse)) wrong.push(`${file} includes "${include}": no such layer`)
      else if (!nativeMayUse[folder].includes(target)) wrong.push(`${file} (${folder}) includes "${include}" (${target})`)
    }
  }
  return wrong
}

const includesIn = (text) => [...text.matchAll(/^\s*#\s*include\s+"([^"]+)"/gm)].map((m) => m[1])

function cudaSources() {
  return files(path.join(root, 'cuda'), /\.(h|cc|cuh|cu)$/).map((file) => [path.relative(root, file), fs.readFileSync(file, 'utf8')])
}

const cudaFolder = (file) => (file.split('/').length > 2 ? file.split('/')[1] : '.')

function cudaViolations(sources) {
  const wrong = []
  for (const [file, text] of sources) {
    const folder = cudaFolder(file)
    for (const include of includesIn(text).filter((i) => i.startsWith('cuda/'))) {
      const target = cudaFolder(include)
      if (target !== folder && !cudaMayUse[folder].includes(target)) wrong.push(`${file} includes "${include}"`)
    }
    if (folder === 'kernels' || folder === 'launch') {
      const code = text.replace(/\/\/.*$/gm, '')
      for (const word of code.match(/\basm\b|\b__shared__\b|\b__syncthreads\b|\b__syncwarp\b|\bthreadIdx\b|\bblockIdx\b|\b__shfl\w*/g) ?? []) wrong.push(`${file} says ${word}`)
    }
    if (folder === 'api' || folder === '.') {
      const code = text.replace(/\/\/.*$/gm, '')
      for (const word of code.match(/\bcuda_runtime\b|\bcuda[A-Z]\w*_t\b|\b__global__\b/g) ?? []) wrong.push(`${file} says ${word}`)
    }
  }
  return wrong
}

function nativeSources() {
  const out = []
  for (const file of files(path.join(root, 'native'), /\.(h|cc|cuh|cu)$/)) {
    const relative = path.relative(path.join(root, 'native'), file)
    out.push([path.relative(root, file), relative.split(path.sep)[0], includesIn(fs.readFileSync(file, 'utf8'))])
  }
  for (const [file, text] of cudaSources()) {
    // The emulator is the second body of what touches the device: it is no layer of the library.
    const includes = includesIn(text).filter((include) => !(include.startsWith('emulator/') && mayNameEmulator.test(file)))
    out.push([file, 'cuda', includes])
  }
  return out
}

test('native includes follow the layers', () => {
  const sources = nativeSources()
  assert.ok(sources.length > 30, `only ${sources.length} native files were read`)
  assert.deepEqual(nativeViolations(sources), [])
})

test('the include check notices a wrong direction', () => {
  const wrong = nativeViolations([['native/ops/x.cc', 'ops', ['model/config.h', 'base/error.h']], ['native/cpu/y.cc', 'cpu', ['cuda/backend.h']]])
  assert.equal(wrong.length, 2)
})

test('inside cuda/: kernels stand on the primitives alone, and the backend sees no CUDA', () => {
  const sources = cudaSources()
  assert.ok(sources.length > 20, `only ${sources.length} files were read`)
  assert.deepEqual(cudaViolations(sources), [])
})

test('the check of cuda/ notices PTX in a kernel, a CUDA type in the seam and a wrong include', () => {
  const wrong = cudaViolations([
    ['cuda/kernels/x.cuh', '#include "cuda/launch/y.h"\nasm volatile("");'],
    ['cuda/api/x.h', 'cudaStream_t s;  // a comment may say asm'],
    ['cuda/backend.cc', '#include "cuda/kernels/x.cuh"'],
  ])
  assert.equal(wrong.length, 4, wrong.join('\n'))
})

test('only the addon, tests and benches name a concrete backend', () => {
  for (const [file, folder, includes] of nativeSources()) {
    if (folder === 'addon' || folder === 'cpu' || folder === 'cuda') continue
    assert.ok(!includes.some((i) => i.startsWith('cpu/') || i.startsWith('cuda/')), file)
  }
})

test('lib imports follow the layers', () => {
  const wrong = []
  const sources = files(path.join(root, 'lib'), /\.ts$/)
  assert.ok(sources.length > 5)
  for (const file of sources) {
    const relative = path.relative(path.join(root, 'lib'), file)
    const folder = relative.includes(path.sep) ? relative.split(path.sep)[0] : '.'
    for (const [, target] of fs.readFileSync(file, 'utf8').matchAll(/(?:from|import)\s*\(?\s*'(\.[^']+)'/g)) {
      const to = path.relative(path.join(root, 'lib'), path.resolve(path.dirname(file), target))
      const toFolder = to.includes(path.sep) ? to.split(path.sep)[0] : '.'
      if (toFolder !== folder && !(libMayUse[folder] ?? []).includes(toFolder)) wrong.push(`${relative} imports ${target}`)
    }
  }
  assert.deepEqual(wrong, [])
})

test('every native source is in native/sources.json, and every entry exists', () => {
  const groups = JSON.parse(fs.readFileSync(path.join(root, 'native/sources.json'), 'utf8'))
  const listed = Object.values(groups).flat()
  assert.deepEqual(listed.filter((f) => !fs.existsSync(path.join(root, f))), [])
  assert.equal(new Set(listed).size, listed.length, 'an entry stands twice')
  const present = ['native', 'cuda', 'test/native', 'test/fuzz', 'test/cuda', 'test/emulator', 'bench/gpu'].flatMap((d) => files(path.join(root, d), /\.(cc|cu)$/)).map((f) => path.relative(root, f))
  assert.deepEqual(present.filter((f) => !listed.includes(f)), [])
})
