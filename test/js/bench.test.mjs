// The kernel benchmarks run: every subject checks its results, and the JSON says what was measured on what.
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import test from 'node:test'
import { root, temporaryFolder } from './support.mjs'

const run = (...args) => spawnSync(process.execPath, [path.join(root, 'bench/kernels/main.mjs'), ...args], { encoding: 'utf8' })

test('bench --quick: every subject, nothing wrong, every figure there', (t) => {
  const file = path.join(temporaryFolder(t), 'bench.json')
  const { status, stdout, stderr } = run('--quick', '--device', 'cpu', '--json', file)
  assert.equal(status, 0, stdout + stderr)
  const report = JSON.parse(fs.readFileSync(file, 'utf8'))
  assert.equal(report.device, 'cpu')
  for (const key of ['processor', 'instructionSet', 'node', 'lapidary', 'date']) assert.ok(report[key], key)
  assert.equal(report.peaks.source, 'measured')
  const subjects = new Set(report.results.map((r) => r.subject))
  assert.deepEqual([...subjects].sort(), ['attention-decode', 'attention-prefill', 'geglu', 'gemm-int8', 'linear', 'quantize-rows', 'rms-norm', 'sampling'])
  for (const r of report.results) {
    assert.equal(r.skipped, undefined, r.name)
    assert.ok(r.operations > 0 && r.bytes > 0 && r.seconds.median > 0 && r.share > 0, JSON.stringify(r))
    assert.ok(Math.max(r.shareOfPeak, r.shareOfBandwidth) === r.share && Math.min(r.shareOfPeak, r.shareOfBandwidth) > 0, JSON.stringify(r))
    assert.ok(r.seconds.low <= r.seconds.median && r.seconds.median <= r.seconds.high && r.seconds.samples >= 3, JSON.stringify(r.seconds))
  }
})

test('bench: a filter that nothing fits and a device that is not there are said', () => {
  const nothing = run('--quick', '--device', 'cpu', '--filter', 'gemv')
  assert.equal(nothing.status, 1)
  assert.match(nothing.stderr, /no case contains "gemv"/)
  const unknown = run('--device', 'gpu')
  assert.equal(unknown.status, 1)
  assert.match(unknown.stderr, /device must be one of/)
})
