// `npm test`: sets up what is missing, then runs every check. Options: --long (100,000 fuzzed files, long tests), --sanitizers (C++ tests
// under ASan + UBSan, engine tests under TSan, fuzzing under ASan), --arm64 (C++ tests of 64-bit ARM under qemu; --long has them too), --cmake
// (the addon by cmake-js too), --werror.
import { spawn } from 'node:child_process'
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { root, setUp } from './setup.mjs'

const flags = new Set(process.argv.slice(2))
const long = flags.has('--long')
const environment = { ...process.env, ...(long ? { LAPIDARY_LONG: '1' } : {}) }
const fuzzFiles = long ? 100_000 : 2_000
const totals = { passed: 0, failed: 0 }
const failures = []

function record(name, passed, failed) {
  totals.passed += passed
  totals.failed += failed
  if (failed) failures.push(`${name}: ${failed} failed`)
}

/** Runs a command with its output shown; gives its exit code and, on request, the output. */
function run(command, args, { env = environment, keep = false } = {}) {
  return new Promise((resolve) => {
    const child = spawn(command, args, { cwd: root, env, stdio: ['ignore', keep ? 'pipe' : 'inherit', 'inherit'] })
    let output = ''
    child.stdout?.on('data', (chunk) => {
      output += chunk
      process.stdout.write(chunk)
    })
    child.on('error', (error) => resolve({ code: 1, output: `${output}${error.message}` }))
    child.on('close', (code, signal) => resolve({ code: signal ? 128 : code, output }))
  })
}

/** One section: whatever it throws is one failure, and the rest still runs. */
async function section(name, body) {
  const start = process.hrtime.bigint()
  process.stdout.write(`\n== ${name}\n`)
  try {
    await body()
  } catch (error) {
    process.stdout.write(`${error.message}\n`)
    record(name, 0, 1)
  }
  process.stdout.write(`-- ${name}: ${(Number(process.hrtime.bigint() - start) / 1e9).toFixed(1)} s\n`)
}

/** A program whose last line is "N passed, N failed". */
async function runCounting(name, program, args, env) {
  const { code, output } = await run(program, args, { env, keep: true })
  const counts = [...output.matchAll(/^(\d+) passed, (\d+) failed$/gm)].at(-1)
  const passed = counts ? Number(counts[1]) : 0, failed = counts ? Number(counts[2]) : 0
  if (!counts || (code !== 0 && failed === 0)) process.stdout.write(`${name} ended with code ${code}\n`)
  record(name, passed, code !== 0 && failed === 0 ? 1 : failed)
}

/** A long program of that kind on every processor: each process takes a share of the cases. */
async function runShared(name, program, args, env) {
  const shards = Math.max(1, Math.min(4, os.availableParallelism()))
  const one = (i) => runCounting(`${name}, part ${i + 1} of ${shards}`, program, args, { ...env, LAPIDARY_TEST_SHARD: `${i}/${shards}` })
  await Promise.all(Array.from({ length: shards }, (_, i) => one(i)))
}

function testFiles(...folders) {
  return folders.flatMap((folder) => {
    const full = path.join(root, folder)
    if (!existsSync(full)) return []
    return readdirSync(full, { recursive: true }).filter((name) => name.endsWith('.test.mjs')).sort().map((name) => path.join(full, name))
  })
}

/** What measures times or memory of its own process; other tests beside it would be part of what it sees. */
const runsAlone = /(latency|lifetime|loop-hold|bench)[^/]*$/

async function runNodeTests(name, files) {
  if (!files.length) throw new Error(`${name}: no test files were found`)
  const groups = [[files.filter((file) => !runsAlone.test(file)), os.availableParallelism()], [files.filter((file) => runsAlone.test(file)), 1]]
  for (const [some, atOnce] of groups) if (some.length) await runNodeTestFiles(name, some, atOnce)
}

async function runNodeTestFiles(name, files, atOnce) {
  const scratch = mkdtempSync(path.join(os.tmpdir(), 'lapidary-tap-'))
  const tap = path.join(scratch, 'out.tap')
  const reporters = ['--test-reporter=spec', '--test-reporter-destination=stdout', '--test-reporter=tap', `--test-reporter-destination=${tap}`]
  try {
    const { code } = await run(process.execPath, ['--test', `--test-concurrency=${atOnce}`, ...reporters, ...files])
    const text = existsSync(tap) ? readFileSync(tap, 'utf8') : ''
    const count = (key) => Number(text.match(new RegExp(`^# ${key} (\\d+)$`, 'm'))?.[1] ?? 0)
    const failed = count('fail') + count('cancelled')
    record(name, count('pass'), code !== 0 && failed === 0 ? 1 : failed)
  } finally {
    rmSync(scratch, { recursive: true, force: true })
  }
}

/** The fuzzer as one check: it ends with 0 when nothing crashed. */
async function fuzz(name, program, files, env) {
  const { code } = await run(program, [String(files)], { env })
  record(name, code === 0 ? 1 : 0, code === 0 ? 0 : 1)
}

/**
 * Compiles the CUDA library and reads what the compiler says of each kernel; needs nvcc, and no GPU. On a CI machine once per PTX: 8.6 and 8.9 have that of
 * 8.0, and assembling it for them too takes a minute; `npm run check:cuda` and --long do.
 */
async function checkCudaLibrary() {
  const { findToolkit } = await import('./cuda-toolkit.mjs')
  const { toolkit, reason } = process.env.LAPIDARY_CUDA === '0' ? { reason: 'LAPIDARY_CUDA is 0' } : findToolkit()
  if (reason) return void process.stdout.write(`not compiled by nvcc: ${reason}\n`)
  const { checkCuda } = await import('./check-cuda.mjs')
  const { passed, failed } = await checkCuda({
    architectures: process.env.CI && !long ? ['80', '90a', ...toolkit.architectures.filter((a) => a === '120')] : undefined,
    onLine: (line) => process.stdout.write(`${line}\n`),
  })
  record('CUDA library', passed, failed)
}

/** The C++ tests of 64-bit ARM, cross-compiled, on processors that qemu emulates; needs both, and no such machine. */
async function testArm64() {
  const { buildArm64Tests, missingForArm64, onProcessor, partsFor, processors } = await import('./test-arm64.mjs')
  const reason = missingForArm64()
  if (reason) return void process.stdout.write(`not run: ${reason}\n`)
  const program = await buildArm64Tests({ werror: flags.has('--werror') })
  for (const processor of processors) {
    const [command, args, env] = onProcessor(processor, program, partsFor(processor))
    await runShared(`arm64 ${processor.cpu}`, command, args, { ...environment, ...env })
  }
}

/** Left to --long: that a batch has the bits of its sequences alone is tested kernel by kernel too. */
const wholeModelsInCompany = ['-cuda golden: company']

await section('set-up', async () => {
  await setUp({ nativeTests: true, werror: flags.has('--werror'), cuda: false })
})
if (totals.failed === 0) {
  await section('architecture', () => runNodeTests('architecture', testFiles('test/architecture')))
  await section('C++ tests', () => runShared('C++ tests', path.join(root, 'build/Release/lapidary_tests'), [], environment))
  await section(`fuzzing, ${fuzzFiles} files`, () => fuzz('fuzzing', path.join(root, 'build/Release/lapidary_fuzz'), fuzzFiles, environment))
  await section('CUDA kernels in the emulator', () => runShared('CUDA kernels', path.join(root, 'build/Release/lapidary_cuda_tests'), long ? [] : wholeModelsInCompany, environment))
  await section('GPU benchmarks, rehearsed on the emulator', async () => {
    const env = { ...environment, LAPIDARY_CUDA_LIBRARY: path.join(root, 'build/Release/lapidary_cuda_emulated.node') }
    const { code } = await run(path.join(root, 'build/Release/lapidary_gpu_bench'), ['--tiny'], { env })
    record('GPU benchmarks', code === 0 ? 1 : 0, code === 0 ? 0 : 1)
  })
  await section('CUDA library', checkCudaLibrary)
  await section('JavaScript tests', () => runNodeTests('JavaScript tests', testFiles('test/js', 'test/stress')))
  await section('types', async () => {
    const { code } = await run(process.execPath, [path.join(root, 'node_modules/typescript/bin/tsc'), '--noEmit', '-p', path.join(root, 'tsconfig.json')])
    record('types', code === 0 ? 1 : 0, code === 0 ? 0 : 1)
  })
  await section('lint', async () => {
    const { lint } = await import('./lint.mjs')
    for (const [name, ok] of lint()) record(name, ok ? 1 : 0, ok ? 0 : 1)
  })
  if (flags.has('--sanitizers')) {
    const { buildSanitized, sanitizerEnvironment } = await import('./native-tests.mjs')
    const env = { ...environment, ...sanitizerEnvironment }
    await section('C++ tests and fuzzing under ASan and UBSan', async () => {
      // The emulator of the CUDA model checks every access of the kernels itself: under ASan they run with --long alone.
      const folder = await buildSanitized('address,undefined', { werror: flags.has('--werror'), cudaTests: long, everyCheck: long })
      // Whole models, long texts and thousands of draws only repeat accesses that the shorter cases make.
      const without = ['a context of 20,000', 'golden: chunks', 'golden: lengths', 'golden: surprise', 'golden: the embedded', 'golden: company', 'alone or among',
        'train: checkpointing', 'golden AdamW', 'golden SGD', 'attention of long sequences', 'over many tokens', 'int8 at load, a trained', 'lowers held-out', '100,000 draws',
        'a megabyte of', 'divergence is that', 'attention over several partitions', 'ops: attention against the reference', 'ops: prefixes, pictures',
        'cpu training: equal bits', 'training: matmul in its three', 'packed bf16: a row', 'packed blocks int8: a long span',
        'packed int8: f32 inputs keep', 'cpu: linear gives equal bits', 'cushion tuning: every variant', 'smooth: folded models'].map((part) => `-${part}`)
      await runShared('C++ tests (ASan, UBSan)', path.join(folder, 'lapidary_tests'), long ? [] : without, env)
      await fuzz('fuzzing (ASan, UBSan)', path.join(folder, 'lapidary_fuzz'), fuzzFiles, env)
      if (long) await runShared('CUDA kernels (ASan, UBSan)', path.join(folder, 'lapidary_cuda_tests'), [], env)
    })
    await section('engine tests under TSan', async () => {
      const folder = await buildSanitized('thread', { werror: flags.has('--werror') })
      // What runs threads against each other; the long single-run cases of the engine would only take time.
      const parts = ['thread_pool:', 'runs:', 'sequence:', 'session file:', 'engine: one thread or two', ...(long ? ['engine: alone or among'] : [])]
      await runShared('C++ tests (TSan)', path.join(folder, 'lapidary_tests'), parts, env)
    })
  }
  if (long || flags.has('--arm64')) await section('C++ tests of 64-bit ARM', testArm64)
  if (flags.has('--cmake')) {
    await section('addon by cmake-js', async () => {
      const { buildWithCMake } = await import('./build-cmake.mjs')
      const { file, version } = await buildWithCMake({ quick: !long })
      process.stdout.write(`${path.relative(root, file)} loads, version ${version}\n`)
      record('cmake-js', 1, 0)
    })
  }
}

for (const line of failures) process.stdout.write(`\nFAILED ${line}`)
process.stdout.write(`\n${totals.passed} passed, ${totals.failed} failed\n`)
process.exitCode = totals.failed || !totals.passed ? 1 : 0
