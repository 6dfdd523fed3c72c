// scripts/check-cuda.mjs finds what it is there to find: in planted logs of the compiler, not in a build.
import assert from 'node:assert/strict'
import test from 'node:test'
import { findProblems, parseLog, residentBlocks } from '../../scripts/check-cuda.mjs'

const log = (numbers, used = 'Used 96 registers, used 1 barriers, 1024 bytes smem, 400 bytes cmem[0]') => `
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z5firstv' for 'sm_80'
ptxas info    : Function properties for _Z5firstv
    ${numbers}
ptxas info    : ${used}
ptxas info    : Compiling entry function '_Z5firstv' for 'sm_90a'
ptxas info    : Function properties for _Z5firstv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers
`
const clean = '0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads'
const table = (registers = 96) => ({ toolkit: '13.0.88', kernels: { first: { threads: 256, blocks: 1, sm: { 80: [registers, 0, 0, 1024], '90a': [40, 0, 0, 0] } } } })

function problemsOf(text, known = table(), { blocks = 1, version = '13.0.88' } = {}) {
  const { kernels, problems } = parseLog(text)
  const sm = Object.fromEntries(kernels.map((k) => [k.architecture, [k.registers, k.spills, k.stack, k.smem]]))
  return findProblems({ kernels: kernels.length ? { first: { threads: 256, blocks, sm } } : {}, problems }, known, version)
}

test('a log is read per kernel and architecture', () => {
  const { kernels, problems } = parseLog(log('16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads'))
  assert.deepEqual(problems, [])
  assert.deepEqual(kernels, [
    { mangled: '_Z5firstv', architecture: '80', registers: 96, smem: 1024, stack: 16, spills: 20 },
    { mangled: '_Z5firstv', architecture: '90a', registers: 40, smem: 0, stack: 0, spills: 0 },
  ])
})

test('a clean build passes', () => assert.deepEqual(problemsOf(log(clean)), []))

test('spills and local memory fail, unless the table excuses the kernel', () => {
  const spilling = log('16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads')
  assert.match(problemsOf(spilling).join(), /first on sm_80 spills 20 bytes/)
  assert.match(problemsOf(log('16 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads')).join(), /first on sm_80 uses 16 bytes of local memory/)
  assert.deepEqual(problemsOf(spilling, { ...table(), mayUseLocalMemory: { first: 'a reason' } }), [])
  assert.match(problemsOf(log(clean), { ...table(), mayUseLocalMemory: { other: 'a reason' } }).join(), /other, which does not exist/)
})

test('serialised wgmma and warnings of the compiler fail', () => {
  const note = "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to non wgmma instructions\n"
  assert.equal(problemsOf(log(clean) + note).length, 1)
  assert.equal(problemsOf(`${log(clean)}cuda/x.cu(3): warning #177-D: variable "x" was declared but never referenced\n`).length, 1)
})

test('registers may grow by less than the hardware hands out, and a kernel must be in the table', () => {
  assert.deepEqual(problemsOf(log(clean), table(88)), [])
  assert.match(problemsOf(log(clean), table(87)).join(), /uses 96 registers, 87 before/)
  assert.match(problemsOf(log(clean), { toolkit: '13.0.88', kernels: {} }).join(), /not in cuda\/kernel-table\.json/)
  assert.match(problemsOf('', table()).join(), /no longer exists/)
  assert.deepEqual(problemsOf(log(clean), table(10), { version: '13.1.5' }), [], 'another compiler allocates otherwise')
})

test('a promise of more blocks than registers allow fails', () => {
  assert.deepEqual(problemsOf(log(clean), table(), { blocks: 2 }), [])
  assert.match(problemsOf(log(clean), table(), { blocks: 3 }).join(), /no room for the 3 blocks/)
})

test('occupancy: registers, threads and block slots', () => {
  assert.equal(residentBlocks('80', 32, 256), 8)
  assert.equal(residentBlocks('86', 32, 256), 6)
  assert.equal(residentBlocks('90a', 128, 256), 2)
  assert.equal(residentBlocks('90a', 168, 384), 1)
  assert.equal(residentBlocks('80', 255, 256), 1)
  assert.equal(residentBlocks('86', 16, 32), 16)
  assert.equal(residentBlocks('80', 33, 1024), 1) // 40 registers of 32 warps: 1280 a warp, 51 warps
})
