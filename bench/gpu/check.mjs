// What check.sh runs: every step in a process of its own with a time limit, the results written after each, so that a run that is cut short, or
// a step that crashes or hangs, costs no more than itself. See docs/cuda.md.
import { spawn, spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

const root = fileURLToPath(new URL('../..', import.meta.url))
const { values: options } = parseArgs({
  options: {
    emulated: { type: 'boolean' }, json: { type: 'string' }, minutes: { type: 'string', default: '10' }, only: { type: 'string' },
    rebuild: { type: 'boolean' },
  },
})
const emulated = options.emulated ?? false
const started = performance.now()
const budgetMs = Number(options.minutes) * 60e3
const leftMs = () => budgetMs - (performance.now() - started)
const only = options.only?.split(',')
const jsonFile = path.resolve(options.json ?? path.join(root, emulated ? 'gpu-check-emulated.json' : 'gpu-check.json'))
const scratch = mkdtempSync(path.join(os.tmpdir(), 'lapidary-gpu-'))
const noGpu = 77

const report = {
  about: 'bench/gpu/check.sh', emulated, commit: commit(), started: new Date().toISOString(), finished: false, minutes: 0,
  host: { processor: os.cpus()[0]?.model, cores: os.availableParallelism(), system: `${os.type()} ${os.release()}`, node: process.version },
  device: null, steps: [],
}

function commit() {
  const file = path.join(root, 'COMMIT') // an archive's
  if (existsSync(file)) return readFileSync(file, 'utf8').trim()
  const git = (...args) => spawnSync('git', args, { cwd: root, encoding: 'utf8' }).stdout?.trim()
  return `${git('rev-parse', 'HEAD') || 'unknown'}${git('status', '--porcelain', '--untracked-files=no') ? ' with changes' : ''}`
}

function save() {
  report.minutes = (performance.now() - started) / 60e3
  writeFileSync(`${jsonFile}.part`, `${JSON.stringify(report, null, 1)}\n`)
  renameSync(`${jsonFile}.part`, jsonFile)
}

/** Runs a program with its output shown and kept. {code, output, timedOut, ms}. */
function run(program, args, { env = {}, limitMs, quiet = false }) {
  const start = performance.now()
  return new Promise((resolve) => {
    const child = spawn(program, args, { cwd: root, env: { ...environment, ...env }, stdio: ['ignore', 'pipe', 'pipe'] })
    let output = '', timedOut = false
    const take = (chunk) => {
      output += chunk
      if (!quiet) process.stdout.write(chunk)
    }
    const stop = setTimeout(() => {
      timedOut = true
      child.kill('SIGTERM')
      setTimeout(() => child.kill('SIGKILL'), 2000).unref()
    }, Math.max(1000, limitMs))
    child.stdout.on('data', take)
    child.stderr.on('data', take)
    child.on('error', (error) => {
      clearTimeout(stop)
      resolve({ code: 127, output: `${output}${error.message}\n`, timedOut, ms: performance.now() - start })
    })
    child.on('close', (code, signal) => {
      clearTimeout(stop)
      resolve({ code: code ?? `signal ${signal}`, output, timedOut, ms: performance.now() - start })
    })
  })
}

/** One step: `body` gives what goes into the report, with `ok`. It never keeps the next one from running. */
async function step(name, limitSeconds, body) {
  if (only && !only.some((wanted) => name.startsWith(wanted))) return undefined
  const entry = { step: name, ok: false }
  report.steps.push(entry)
  const start = performance.now()
  process.stdout.write(`\n== ${name}\n`)
  if (leftMs() < 3000) entry.skipped = 'no time left'
  else {
    try {
      Object.assign(entry, await body(Math.min(limitSeconds * 1e3, leftMs())))
    } catch (error) {
      entry.error = error.message
    }
  }
  entry.seconds = Number(((performance.now() - start) / 1e3).toFixed(1))
  const said = entry.skipped ? `skipped: ${entry.skipped}` : entry.ok ? 'ok' : `FAILED${entry.error ? `: ${entry.error}` : ''}`
  process.stdout.write(`-- ${name}: ${said}, ${entry.seconds} s\n`)
  save()
  return entry
}

const program = (name) => [path.join(root, 'build/gpu-check/Release', name), path.join(root, 'build/Release', name)].find((file) => existsSync(file))
const environment = { ...process.env, LAPIDARY_GOLDEN: path.join(root, 'test/golden') }

function findTool(name) {
  const folders = [...(process.env.PATH ?? '').split(path.delimiter), path.join(process.env.CUDA_HOME ?? '/usr/local/cuda', 'bin'), '/usr/local/cuda/bin']
  return folders.filter(Boolean).map((folder) => path.join(folder, name)).find((file) => existsSync(file))
}

// --- building ----------------------------------------------------------------------------------------------------------------

const isArchive = existsSync(path.join(root, 'COMMIT'))

/** A checkout builds what is stale. An archive uses what it brings, unless asked to, or unless this machine cannot run it. */
async function build(limitMs) {
  const starts = () => program('lapidary_gpu_bench') && spawnSync(program('lapidary_gpu_bench'), ['--list']).status === 0
  if (isArchive && !options.rebuild && starts()) return { ok: true, built: 'in the archive' }
  const script = path.join(root, 'bench/gpu', isArchive ? 'build-archive.mjs' : 'build.mjs')
  const { code, output, timedOut } = await run(process.execPath, [script, ...(emulated ? ['--emulated'] : [])], { limitMs })
  return { ok: code === 0, built: 'here', error: code === 0 ? undefined : timedOut ? 'out of time' : output.trim().split('\n').slice(-5).join(' | ') }
}

// --- tests -------------------------------------------------------------------------------------------------------------------

function counts(output) {
  const found = [...output.matchAll(/^(\d+) passed, (\d+) failed$/gm)].at(-1)
  return found ? { passed: Number(found[1]), failed: Number(found[2]) } : undefined
}

/** Failed cases are run again, group by group, each group in a process of its own: one illegal access spoils all that comes after it. */
async function gpuTests(limitMs) {
  const start = performance.now()
  const tests = program('lapidary_gpu_tests')
  const filter = emulated ? ['cuda probe'] : []
  const first = await run(tests, filter, { limitMs })
  const names = [...first.output.matchAll(/^(ok {2}|FAIL) (.+)$/gm)].map(([, result, name]) => ({ name, ok: result !== 'FAIL' }))
  const groups = [...new Set(names.filter((t) => !t.ok).map((t) => t.name.split(':')[0]))]
  const rerun = {}
  if (!emulated) {
    for (const group of groups) {
      const remaining = limitMs - (performance.now() - start)
      if (remaining < 2000) break
      const again = await run(tests, [`${group}:`], { limitMs: Math.min(remaining, 60e3) })
      rerun[group] = { code: again.code, ...counts(again.output), failed_lines: again.output.split('\n').filter((line) => /^FAIL|^ {4}/.test(line)).slice(0, 40) }
    }
  }
  const total = counts(first.output)
  return {
    ok: first.code === 0, code: first.code, timedOut: first.timedOut || undefined, ...total, rerun: groups.length ? rerun : undefined,
    failures: names.filter((t) => !t.ok).map((t) => t.name), error: total ? undefined : first.output.trim().split('\n').slice(-3).join(' | '),
  }
}

/** compute-sanitizer over the C++ tests. */
function sanitizer(tool) {
  return async (limitMs) => {
    const sanitize = findTool('compute-sanitizer')
    if (emulated) return { ok: true, skipped: 'the emulator checks bounds and races itself' }
    if (!sanitize) return { ok: true, skipped: 'compute-sanitizer is not installed' }
    const { code, output, timedOut } = await run(sanitize, ['--tool', tool, '--error-exitcode', '9', program('lapidary_gpu_tests')], { limitMs, quiet: true })
    const summary = /ERROR SUMMARY: .*/.exec(output)?.[0] ?? /RACECHECK SUMMARY: .*/.exec(output)?.[0]
    const findings = output.split('\n').filter((line) => /^=========/.test(line)).slice(0, 60)
    process.stdout.write(`${summary ?? output.slice(-2000)}\n`)
    return { ok: code === 0, code, timedOut: timedOut || undefined, ...counts(output), summary, findings: code === 0 ? undefined : findings }
  }
}

/** The JavaScript tests that run models, on the device. */
async function javascriptTests(limitMs) {
  const names = ['parity', 'invariance', 'sampling', 'generation', 'conversation', 'small'].map((n) => path.join(root, 'test/js', `${n}.test.mjs`))
  const files = names.filter((file) => existsSync(file))
  const env = { LAPIDARY_TEST_DEVICE: 'cuda' }
  const args = ['--test', '--test-reporter=tap', ...(emulated ? ['--test-name-pattern=gemma3-tiny on cuda, f32'] : []), ...(emulated ? files.slice(0, 1) : files)]
  const { code, output, timedOut } = await run(process.execPath, args, { env, limitMs, quiet: true })
  const count = (key) => Number(output.match(new RegExp(`^# ${key} (\\d+)$`, 'm'))?.[1] ?? 0)
  const failures = [...output.matchAll(/^ *not ok \d+ - (.+)$/gm)].map((m) => m[1])
  for (const name of failures) process.stdout.write(`FAIL ${name}\n`)
  process.stdout.write(`${count('pass')} passed, ${count('fail') + count('cancelled')} failed\n`)
  return { ok: code === 0, code, timedOut: timedOut || undefined, passed: count('pass'), failed: count('fail') + count('cancelled'), failures }
}

// --- benchmarks --------------------------------------------------------------------------------------------------------------

const lines = (file) => (existsSync(file) ? readFileSync(file, 'utf8').split('\n').filter(Boolean).map((line) => JSON.parse(line)) : [])
const resultsFile = path.join(scratch, 'results.ndjson')
const figures = {}

function benchArguments() {
  if (emulated) return []
  const roofline = { read_gbps: '--read-gbps', copy_gbps: '--copy-gbps', int8_tops: '--int8-tops', bf16_tflops: '--bf16-tflops' }
  return Object.entries(roofline).flatMap(([name, flag]) => (figures[name] ? [flag, String(figures[name])] : []))
}

function bench(family) {
  return async (limitMs) => {
    const file = path.join(scratch, `${family}.ndjson`)
    const args = [family, '--json', file, ...benchArguments(), ...(emulated ? ['--tiny'] : [])]
    const { code, output, timedOut } = await run(program('lapidary_gpu_bench'), args, { limitMs })
    const results = lines(file)
    for (const r of results) if (r.figure) figures[r.figure] = r.value
    writeFileSync(resultsFile, results.map((r) => `${JSON.stringify(r)}\n`).join(''), { flag: 'a' })
    const wrong = results.filter((r) => r.ok === false).length
    const error = code === 0 ? undefined : timedOut ? 'out of time' : wrong ? `${wrong} wrong` : output.trim().split('\n').at(-1)
    return { ok: code === 0, code, timedOut: timedOut || undefined, error, results }
  }
}

/** PyTorch on the same shapes: what we are compared with, on the same device in the same run. */
async function peers(limitMs) {
  if (emulated) return { ok: true, skipped: 'nothing is measured in the emulator' }
  const python = process.env.PYTHON || 'python3'
  const torch = spawnSync(python, ['-c', 'import torch; assert torch.cuda.is_available(); print(torch.__version__)'], { encoding: 'utf8', timeout: 60e3 })
  if (torch.status !== 0) return { ok: true, skipped: `no PyTorch with CUDA (${torch.stderr?.trim().split('\n').at(-1) || 'python3 is missing'})` }
  const file = path.join(scratch, 'peers.ndjson')
  const { code, timedOut } = await run(python, [path.join(root, 'bench/gpu/peers.py'), resultsFile, file, '--seconds', String(Math.floor(limitMs / 1e3) - 5)], { limitMs })
  const results = lines(file)
  const ours = new Map(lines(resultsFile).filter((r) => r.us).map((r) => [`${r.family} ${r.case}`, r]))
  for (const r of results) {
    const own = ours.get(`${r.family} ${r.case}`)
    if (own && r.us) Object.assign(r, { ours_us: own.us, ours_faster: Number((r.us / own.us).toFixed(3)) })
  }
  return { ok: code === 0 || (timedOut && results.length > 0), code, timedOut: timedOut || undefined, torch: torch.stdout.trim(), results }
}

/** Prefill and decode of whole models through the public API, at true shapes with random weights. */
async function endToEnd(limitMs) {
  const out = path.join(scratch, 'end-to-end.ndjson')
  const args = [path.join(root, 'bench/gpu/end-to-end.mjs'), '--json', out, '--seconds', String(Math.floor(limitMs / 1e3) - 5)]
  if (figures.read_gbps && !emulated) args.push('--read-gbps', String(figures.read_gbps))
  const { code, timedOut } = await run(process.execPath, [...args, ...(emulated ? ['--tiny'] : [])], { limitMs })
  return { ok: code === 0, code, timedOut: timedOut || undefined, results: lines(out) }
}

// --- the run -----------------------------------------------------------------------------------------------------------------

save()
const built = await step('build', 420, build)
if (emulated) environment.LAPIDARY_CUDA_LIBRARY = program('lapidary_cuda_emulated.node')
else environment.LAPIDARY_CUDA_LIBRARY = path.join(root, 'build/Release/lapidary_cuda.so')

const facts = built?.ok === false ? undefined : spawnSync(program('lapidary_gpu_bench') ?? '', ['--facts'], { env: environment, encoding: 'utf8', timeout: 60e3 })
if (facts?.status === 0) {
  report.device = JSON.parse(facts.stdout)
  const smi = spawnSync('nvidia-smi', ['--query-gpu=driver_version,power.limit,clocks.max.sm,clocks.max.mem,ecc.mode.current', '--format=csv,noheader'], { encoding: 'utf8' })
  if (smi.status === 0) report.device.nvidia_smi = smi.stdout.trim().split('\n')
  process.stdout.write(`${emulated ? 'EMULATED device (nothing here is a measurement)' : 'device'}: ${report.device.name}, compute capability ${report.device.compute_capability}\n`)
  save()
  const families = spawnSync(program('lapidary_gpu_bench'), ['--list'], { encoding: 'utf8' }).stdout.trim().split('\n').map((line) => line.split('\t')[0])
  const rooflines = ['bandwidth', 'units']
  for (const family of rooflines) await step(`bench ${family}`, 40, bench(family))
  await step('C++ tests', 150, gpuTests)
  await step('JavaScript tests', emulated ? 240 : 90, javascriptTests)
  for (const family of families.filter((f) => !rooflines.includes(f))) await step(`bench ${family}`, 40, bench(family))
  await step('end to end', 90, endToEnd)
  await step('peers', 100, peers)
  await step('memcheck', 120, sanitizer('memcheck'))
  await step('racecheck', 120, sanitizer('racecheck'))
} else if (facts) {
  report.noGpu = facts.status === noGpu ? facts.stdout.trim() : `lapidary_gpu_bench --facts ended with ${facts.status ?? facts.signal}: ${facts.error?.message ?? facts.stderr}`
  process.stdout.write(`\n${report.noGpu}\n`)
}

report.finished = true
save()
rmSync(scratch, { recursive: true, force: true })
const failed = report.steps.filter((s) => !s.ok && !s.skipped)
process.stdout.write(`\n${report.steps.length} steps, ${failed.length} failed, ${report.minutes.toFixed(1)} minutes: ${path.relative(process.cwd(), jsonFile)}\n`)
process.exitCode = failed.length ? 1 : report.device ? 0 : noGpu
