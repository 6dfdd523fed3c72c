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

// lib/: a file may import from its own folder and these.
const libMayUse = { '.': [], cli: ['.'], server: ['.'] }

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

function nativeSources() {
  const out = []
  for (const file of files(path.join(root, 'native'), /\.(h|cc|cuh|cu)$/)) {
    const relative = path.relative(path.join(root, 'native'), file)
    out.push([path.relative(root, file), relative.split(path.sep)[0], includesIn(fs.readFileSync(file, 'utf8'))])
  }
  for (const file of files(path.join(root, 'cuda'), /\.(h|cc|cuh|cu)$/)) {
    out.push([path.relative(root, file), 'cuda', includesIn(fs.readFileSync(file, 'utf8'))])
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
  const present = ['native', 'cuda', 'test/native', 'test/fuzz'].flatMap((d) => files(path.join(root, d), /\.(cc|cu)$/)).map((f) => path.relative(root, f))
  assert.deepEqual(present.filter((f) => !listed.includes(f)), [])
})
