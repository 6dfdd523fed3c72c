// `npm run check:cuda`: builds the CUDA library and reads what ptxas said of every kernel. Fails on spills, on local memory, on serialised wgmma, on compiler
// warnings, on registers that grew beyond cuda/kernel-table.json, and on kernels that are missing there. --update writes that table; --table prints it.
import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { buildCuda, buildRecords, maxLibraryBytes } from './build-cuda.mjs'

const root = fileURLToPath(new URL('..', import.meta.url))
const tableFile = path.join(root, 'cuda', 'kernel-table.json')

/** Registers are handed out in eights per thread: fewer more than that change nothing. */
const registerMargin = 8

/** Limits of one multiprocessor. 65,536 registers on all of them, in units of 256 per warp. */
const multiprocessors = {
  80: { warps: 64, blocks: 32 }, 86: { warps: 48, blocks: 16 }, 89: { warps: 48, blocks: 24 }, '90a': { warps: 64, blocks: 32 }, 120: { warps: 48, blocks: 24 },
}

/** Resident blocks of a multiprocessor as registers, threads and block slots allow; dynamic shared memory, chosen at the launch, may allow fewer. */
export function residentBlocks(architecture, registers, threads) {
  const { warps, blocks } = multiprocessors[architecture]
  const warpsOfBlock = Math.ceil(threads / 32)
  const registersOfWarp = Math.ceil((registers * 32) / 256) * 256
  return Math.min(blocks, Math.floor(warps / warpsOfBlock), Math.floor(Math.floor(65536 / registersOfWarp) / warpsOfBlock))
}

/** `lapidary::cuda::kernel_entry<lapidary::cuda::X<1, true>>(...)` becomes `X<1, true>`. */
function readableNames(mangled) {
  const { stdout, status } = spawnSync('c++filt', { input: mangled.join('\n'), encoding: 'utf8' })
  if (status !== 0) throw new Error('c++filt (binutils) is needed to name the kernels')
  const names = stdout.trim().split('\n').map((line) => line.replace(/^.*?kernel_entry</, '').replace(/>\((?:[^()]|\([^()]*\))*\)$/, '').replace(/lapidary::cuda::/g, ''))
  return new Map(mangled.map((name, i) => [name, names[i]]))
}

/** One object per kernel and architecture out of a log of nvcc. */
export function parseLog(log) {
  const kernels = [], problems = []
  let current
  for (const line of log.split('\n')) {
    const entry = /Compiling entry function '(\w+)' for 'sm_(\w+)'/.exec(line)
    if (entry) {
      current = { mangled: entry[1], architecture: entry[2], registers: 0, smem: 0, stack: 0, spills: 0 }
      kernels.push(current)
    }
    const stack = /(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads/.exec(line)
    if (stack && current) Object.assign(current, { stack: current.stack + Number(stack[1]), spills: current.spills + Number(stack[2]) + Number(stack[3]) })
    const used = /Used (\d+) registers/.exec(line)
    if (used && current) Object.assign(current, { registers: Number(used[1]), smem: Number(/(\d+) bytes smem/.exec(line)?.[1] ?? 0) })
    if (/C751[01]|serializ/i.test(line)) problems.push(line.trim())
    else if (/\bwarning\b/i.test(line) && !/spill|local memory/i.test(line)) problems.push(line.trim()) // those two are read from the numbers above
  }
  return { kernels, problems }
}

/** Everything of the last build: kernels by name as {threads, blocks, sm: {arch: [registers, spill bytes, stack bytes, static smem bytes]}}, and problems. */
function readBuild() {
  const kernels = {}, problems = []
  for (const { file, bounds, log } of buildRecords()) {
    const parsed = parseLog(log)
    problems.push(...parsed.problems.map((p) => `${file}: ${p}`))
    const names = parsed.kernels.length ? readableNames([...new Set(parsed.kernels.map((k) => k.mangled))]) : new Map()
    for (const k of parsed.kernels) {
      const { threads = 0, blocks = 0 } = bounds[k.mangled] ?? {}
      kernels[names.get(k.mangled)] ??= { threads, blocks, sm: {} }
      kernels[names.get(k.mangled)].sm[k.architecture] = [k.registers, k.spills, k.stack, k.smem]
    }
  }
  return { kernels: Object.fromEntries(Object.entries(kernels).sort(([a], [b]) => (a < b ? -1 : 1))), problems }
}

const release = (version) => version.split('.').slice(0, 2).join('.')

/** What is wrong with the build, one line each. `table` is the checked-in one; its `mayUseLocalMemory` names kernels with a reason. */
export function findProblems({ kernels, problems }, table, version) {
  const wrong = [...problems]
  const excused = table.mayUseLocalMemory ?? {}
  for (const [name, kernel] of Object.entries(kernels)) {
    for (const [architecture, [registers, spills, stack]] of Object.entries(kernel.sm)) {
      const where = `${name} on sm_${architecture}`
      if (spills && !excused[name]) wrong.push(`${where} spills ${spills} bytes`)
      else if (stack && !excused[name]) wrong.push(`${where} uses ${stack} bytes of local memory`)
      if (kernel.blocks && residentBlocks(architecture, registers, kernel.threads) < kernel.blocks) {
        wrong.push(`${where}: ${registers} registers and ${kernel.threads} threads leave no room for the ${kernel.blocks} blocks it promises`)
      }
      if (release(table.toolkit ?? '') !== release(version)) continue // another compiler allocates otherwise
      const known = table.kernels?.[name]?.sm[architecture]
      if (!known) wrong.push(`${where} is not in cuda/kernel-table.json (npm run check:cuda -- --update)`)
      else if (registers > known[0] + registerMargin) wrong.push(`${where} uses ${registers} registers, ${known[0]} before`)
    }
  }
  for (const name of Object.keys(excused)) if (!kernels[name]) wrong.push(`mayUseLocalMemory names ${name}, which does not exist`)
  if (release(table.toolkit ?? '') === release(version)) {
    for (const name of Object.keys(table.kernels ?? {})) if (!kernels[name]) wrong.push(`${name} of cuda/kernel-table.json no longer exists (--update)`)
  }
  return wrong
}

function printTable(kernels) {
  for (const [name, { threads, blocks, sm }] of Object.entries(kernels)) {
    const columns = Object.entries(sm).map(([architecture, [registers, spills, , smem]]) => {
      const resident = residentBlocks(architecture, registers, threads)
      return `sm_${architecture} ${registers} regs${smem ? ` ${smem} B smem` : ''}${spills ? ` ${spills} B SPILLED` : ''} ${resident} blocks`
    })
    process.stdout.write(`${name}: ${threads} threads, ${blocks} promised | ${columns.join(' | ')}\n`)
  }
}

function tableText(table) {
  const lines = Object.entries(table.kernels).map(([name, kernel]) => `    ${JSON.stringify(name)}: ${JSON.stringify(kernel)}`)
  const head = Object.entries(table).filter(([key]) => key !== 'kernels').map(([key, value]) => `  ${JSON.stringify(key)}: ${JSON.stringify(value)},`)
  return `{\n${head.join('\n')}\n  "kernels": {\n${lines.join(',\n')}\n  }\n}\n`
}

/** Builds and checks, all architectures or some; gives {passed, failed}, having printed each problem. */
export async function checkCuda({ architectures, update = false, table: print = false, onLine } = {}) {
  const start = performance.now()
  const built = await buildCuda({ architectures, onLine })
  const build = readBuild()
  const kernels = Object.keys(build.kernels)
  process.stdout.write(`lapidary_cuda.so: ${(built.bytes / 1024 / 1024).toFixed(2)} MiB of at most ${maxLibraryBytes / 1024 / 1024}, ${kernels.length} kernels for sm_` +
    `${built.architectures.join(', ')}; nvcc ${built.version} compiled ${built.compiled} of ${built.total} files in ${((performance.now() - start) / 1000).toFixed(0)} s\n`)
  if (print) printTable(build.kernels)
  const table = existsSync(tableFile) ? JSON.parse(readFileSync(tableFile, 'utf8')) : {}
  if (update) {
    const columns = 'sm: [registers, spilled bytes, stack bytes, static shared memory bytes]'
    const next = { about: columns, toolkit: built.version, mayUseLocalMemory: table.mayUseLocalMemory ?? {}, kernels: build.kernels }
    writeFileSync(tableFile, tableText(next))
    Object.assign(table, next)
  }
  const wrong = findProblems(build, table, built.version)
  for (const line of wrong) process.stdout.write(`  ${line}\n`)
  return { passed: Math.max(0, kernels.length - new Set(wrong.map((w) => w.split(' on sm_')[0])).size), failed: wrong.length }
}

if (process.argv[1] && path.basename(process.argv[1]) === 'check-cuda.mjs') {
  const flags = new Set(process.argv.slice(2))
  try {
    const onLine = (line) => process.stderr.write(`${line}\n`)
    const { passed, failed } = await checkCuda({ update: flags.has('--update'), table: flags.has('--table'), onLine })
    process.stdout.write(`${passed} passed, ${failed} failed\n`)
    if (failed) process.exitCode = 1
  } catch (error) {
    process.stderr.write(`lapidary: ${error.message}\n`)
    process.exitCode = 1
  }
}
