// The package as a consumer sees it: both module systems, the names, the missing binary, the types.
import assert from 'node:assert/strict'
import { execFileSync, spawnSync } from 'node:child_process'
import fs from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'
import test from 'node:test'
import * as lapidary from 'lapidary'
import { root, temporaryFolder } from './support.mjs'

const require = createRequire(import.meta.url)
const names = ['LapidaryError', 'devices', 'estimateMemory', 'inspect', 'loadModel', 'loadTokenizer', 'probabilities']

test('import and require give the same names', () => {
  assert.deepEqual(Object.keys(lapidary).sort(), names)
  assert.deepEqual(Object.keys(require('lapidary')).sort(), names)
})

test('errors of one copy of the package are recognised by the other', () => {
  const other = require('lapidary')
  assert.notEqual(other.LapidaryError, lapidary.LapidaryError)
  const error = new other.LapidaryError('bad_file', 'x')
  assert.ok(error instanceof lapidary.LapidaryError)
  assert.ok(!(new Error('x') instanceof lapidary.LapidaryError))
})

test('both copies load the addon', async () => {
  assert.deepEqual(require('lapidary').devices(), lapidary.devices())
})

test('the addon has the methods that lib/native.d.ts declares', async (t) => {
  const source = fs.readFileSync(path.join(root, 'lib/native.d.ts'), 'utf8')
  const membersOf = (name) => {
    const body = new RegExp(`export interface ${name} \\{\\n([\\s\\S]*?)\\n\\}`).exec(source)[1]
    return [...body.matchAll(/^ {2}(?:readonly )?(\w+)[(:]/gm)].map((m) => m[1]).sort()
  }
  const methodsOf = (object) => {
    const found = new Set()
    for (let o = object; o && o !== Object.prototype; o = Object.getPrototypeOf(o)) for (const name of Object.getOwnPropertyNames(o)) found.add(name)
    found.delete('constructor')
    return [...found].sort()
  }
  const addon = require(path.join(root, 'build/Release/lapidary.node'))
  assert.deepEqual(Object.keys(addon).sort(), membersOf('NativeAddon'))
  const options = { device: 'cpu', precision: 'bf16', weights: 'as-is', kvCache: '', threads: 1, contextTokens: 0, prefillChunk: 64, maxBatchTokens: 64, maxSequences: 1, kvLimitBytes: 0, prefixCache: 0 }
  const model = await addon.loadModel(path.join(root, 'models/tiny'), options, null)
  t.after(() => model.close())
  assert.deepEqual(methodsOf(model), membersOf('NativeModel'))
  assert.deepEqual(methodsOf(model.tokenizer), membersOf('NativeTokenizer'))
  assert.deepEqual(methodsOf(model.newSequence()), membersOf('NativeSequence'))
  assert.deepEqual(methodsOf(await addon.tensor('cpu', 'f32', [1], null)), membersOf('NativeTensor'))
  assert.deepEqual(methodsOf(await addon.kvCache('cpu', 'f32', 1, 8)), membersOf('NativeKvCache'))
})

test('a missing binary is answered with what was tried and the command that builds it', (t) => {
  const folder = temporaryFolder(t)
  fs.cpSync(path.join(root, 'dist'), path.join(folder, 'dist'), { recursive: true })
  fs.copyFileSync(path.join(root, 'package.json'), path.join(folder, 'package.json'))
  const code = `import('${path.join(folder, 'dist/index.js')}').then((l) => { try { l.devices() } catch (e) { console.log(e.code + ' ' + e.message) } })`
  const said = execFileSync(process.execPath, ['-e', code], { encoding: 'utf8', env: { ...process.env, LAPIDARY_BINARY: '' } })
  assert.match(said, /^unsupported no native binary/)
  assert.match(said, /build\/Release\/lapidary\.node: no such file/)
  assert.match(said, /prebuilds\/\w+-\w+/)
  assert.match(said, /npx lapidary build/)
})

test('LAPIDARY_BINARY names the one file that is tried', () => {
  const code = `import('lapidary').then((l) => { try { l.devices() } catch (e) { console.log(e.message) } })`
  const said = execFileSync(process.execPath, ['-e', code], { cwd: root, encoding: 'utf8', env: { ...process.env, LAPIDARY_BINARY: '/nowhere/x.node' } })
  assert.match(said, /\/nowhere\/x\.node: no such file/)
  assert.doesNotMatch(said, /build\/Release/)
})

test('an import touches neither the addon nor stdout', () => {
  const code = `import('lapidary').then(() => console.log(process.moduleLoadList.length > 0, Object.keys(require.cache).some((f) => f.endsWith('.node'))))`
  assert.equal(execFileSync(process.execPath, ['-e', code], { cwd: root, encoding: 'utf8' }), 'true false\n')
})

test('the public types fit their use', () => {
  const tsc = path.join(root, 'node_modules/typescript/bin/tsc')
  const { status, stdout } = spawnSync(process.execPath, [tsc, '-p', path.join(root, 'test/types')], { encoding: 'utf8' })
  assert.equal(status, 0, stdout)
})
