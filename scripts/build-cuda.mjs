// `npm run build:cuda`: compiles the CUDA library (groups cuda_library and cuda_device of native/sources.json) for every architecture and links
// build/Release/lapidary_cuda.so. A file is compiled again only when its text, an include's, or the flags have changed.
// Options: --arch 80,90a compiles for these alone (for development: the result is no release), --lineinfo keeps source lines for profilers and
// compute-sanitizer (and doubles the size), --verbose shows the compiler's output.
import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { buildEnvironment, jobs } from './build-commands.mjs'
import { findToolkit } from './cuda-toolkit.mjs'

const root = fileURLToPath(new URL('..', import.meta.url))
const objectFolder = path.join(root, 'build', 'cuda')
const outputFile = path.join(root, 'build', 'Release', 'lapidary_cuda.so')

/** A release larger than this is a mistake in the table of instances. */
export const maxLibraryBytes = 25 * 1024 * 1024

/**
 * Machine code by the PTX that it is made of. One PTX for compute capability 8.x: no kernel tells those apart, and the compiler's front end runs once for
 * all. 12.0 has what kernels ask of 9.0. The shorthand -arch=sm_90a would go through compute_90, where wgmma does not exist.
 */
const releaseTargets = { 80: ['80', '86', '89'], '90a': ['90a'] }
const optionalTargets = { 120: ['120'] }
const ptxArchitecture = '80' // kept in the library, for everything newer

const listed = () => JSON.parse(readFileSync(path.join(root, 'native', 'sources.json'), 'utf8'))
const sources = () => [...listed().cuda_library, ...listed().cuda_device]

/** {PTX architecture: [machine architectures]} that this compiler can make, or those of `chosen`. */
function targetsFor(toolkit, chosen) {
  const all = { ...releaseTargets, ...optionalTargets }
  const wanted = ([ptx, codes]) => [ptx, codes.filter((code) => (chosen ? chosen.includes(code) : releaseTargets[ptx] || toolkit.architectures.includes(ptx)))]
  const targets = Object.fromEntries(Object.entries(all).map(wanted).filter(([, codes]) => codes.length))
  const unknown = chosen?.find((code) => !Object.values(targets).flat().includes(code))
  if (unknown) throw new Error(`--arch: ${unknown} is not one of ${Object.values(all).flat().join(', ')}`)
  return targets
}

function compileFlags(targets, lineInfo) {
  const gencode = ([ptx, codes]) => {
    const kept = [...codes.map((code) => `sm_${code}`), ...(ptx === ptxArchitecture ? [`compute_${ptx}`] : [])]
    return ['-gencode', `arch=compute_${ptx},code=[${kept.join(',')}]`]
  }
  return [
    '-std=c++20', '-O3', '-I', 'native', '-I', '.', '-DNDEBUG',
    ...Object.entries(targets).flatMap(gencode),
    // What the library may take for granted on a device (cuda/launch/device.cu).
    ...Object.values(targets).flat().filter((code) => ['90a', '120'].includes(code)).map((code) => `-DLAPIDARY_CODE_${code.toUpperCase()}`),
    // Contraction off: every fused multiply-add is one we wrote, so CPU, emulator and GPU agree (docs/numerics.md).
    '-fmad=false', '--compress-mode=size', ...(lineInfo ? ['-lineinfo'] : []),
    '-Xptxas', '-v,--warn-on-spills,--warn-on-local-memory-usage', '-Xcompiler', '-fPIC,-fvisibility=hidden,-Wall,-ffp-contract=off',
    ...(process.env.CXX ? ['-ccbin', process.env.CXX] : []),
  ]
}

/** The file and every file of ours that it includes, in a fixed order. */
function closure(file) {
  const seen = new Set()
  const visit = (name) => {
    if (seen.has(name)) return
    seen.add(name)
    for (const [, target] of readFileSync(path.join(root, name), 'utf8').matchAll(/^\s*#\s*include\s+"([^"]+)"/gm)) {
      const found = [target, `native/${target}`, path.join(path.dirname(name), target)].find((f) => existsSync(path.join(root, f)))
      if (found) visit(path.normalize(found))
    }
  }
  visit(file)
  return [...seen].sort()
}

function digest(parts) {
  const hash = createHash('sha256')
  for (const part of parts) hash.update(part).update('\0')
  return hash.digest('hex')
}

function readRecord(file) {
  try {
    return JSON.parse(readFileSync(file, 'utf8'))
  } catch {
    return {}
  }
}

function command(program, args, verbose) {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, { cwd: root, env: buildEnvironment, stdio: ['ignore', 'pipe', 'pipe'] })
    let output = ''
    const take = (chunk) => {
      output += chunk
      if (verbose) process.stderr.write(chunk)
    }
    child.stdout.on('data', take)
    child.stderr.on('data', take)
    child.on('error', reject)
    child.on('close', (code) => (code === 0 ? resolve(output) : reject(new Error(`${path.basename(program)} ended with code ${code}:\n${output.slice(-8000)}`))))
  })
}

/** Threads and promised blocks of every kernel, from the PTX: ptxas does not print them. */
function launchBounds(folder) {
  const bounds = {}
  for (const name of readdirSync(folder).filter((f) => f.endsWith('.ptx'))) {
    const text = readFileSync(path.join(folder, name), 'utf8')
    for (const [, kernel, rest] of text.matchAll(/\.entry (\w+)\(([^{]*)\{/g)) {
      bounds[kernel] = { threads: Number(/\.maxntid (\d+)/.exec(rest)?.[1] ?? 0), blocks: Number(/\.minnctapersm (\d+)/.exec(rest)?.[1] ?? 0) }
    }
  }
  return bounds
}

/** Compiles one file when its record is stale. The record holds what check-cuda.mjs reads: the log of ptxas and the launch bounds. */
async function compile(file, { toolkit, flags, verbose, onStart }) {
  const base = path.join(objectFolder, path.basename(file, '.cu'))
  const hash = digest([toolkit.version, ...flags, ...closure(file).flatMap((f) => [f, readFileSync(path.join(root, f))])])
  const record = readRecord(`${base}.json`)
  if (record.hash === hash && existsSync(`${base}.o`)) return { file, object: `${base}.o`, hash, fresh: true }
  onStart?.(file)
  const scratch = mkdtempSync(path.join(objectFolder, 'keep-'))
  const start = performance.now()
  try {
    const args = [...flags, '--threads', '2', '--keep', '--keep-dir', scratch, '-c', file, '-o', `${base}.o`]
    rmSync(`${base}.json`, { force: true })
    const log = await command(toolkit.nvcc, args, verbose)
    const seconds = (performance.now() - start) / 1000
    writeFileSync(`${base}.json`, JSON.stringify({ file, hash, toolkit: toolkit.version, seconds, bounds: launchBounds(scratch), log }))
    return { file, object: `${base}.o`, hash, fresh: false, seconds }
  } catch (error) {
    throw new Error(`${file}: ${error.message}`)
  } finally {
    rmSync(scratch, { recursive: true, force: true })
  }
}

async function inParallel(items, width, work) {
  const results = []
  const queue = [...items]
  const worker = async () => {
    for (let item = queue.shift(); item !== undefined; item = queue.shift()) results.push(await work(item))
  }
  const settled = await Promise.allSettled(Array.from({ length: width }, worker))
  const failed = settled.find((s) => s.status === 'rejected')
  if (failed) throw failed.reason
  return results
}

/** What the last build knows of each of today's sources: {file, toolkit, bounds, log}. */
export function buildRecords() {
  return sources().map((file) => readRecord(path.join(objectFolder, `${path.basename(file, '.cu')}.json`))).filter((record) => record.log !== undefined)
}

/** Builds the library; gives {file, bytes, compiled, total, architectures, version}. Throws when there is no toolkit, with the reason. */
export async function buildCuda({ architectures: chosen, lineInfo = false, verbose = false, onLine } = {}) {
  const { toolkit, reason } = findToolkit()
  if (!toolkit) throw new Error(reason)
  const targets = targetsFor(toolkit, chosen)
  const architectures = Object.values(targets).flat()
  const flags = compileFlags(targets, lineInfo)
  mkdirSync(objectFolder, { recursive: true })
  mkdirSync(path.dirname(outputFile), { recursive: true })
  // The slowest first, as the last build measured them, so that no long one is left alone at the end.
  const cost = (file) => readRecord(path.join(objectFolder, `${path.basename(file, '.cu')}.json`)).seconds ?? statSync(path.join(root, file)).size
  const files = sources().sort((a, b) => cost(b) - cost(a))
  let started = 0
  const onStart = (file) => onLine?.(`nvcc ${++started} of at most ${files.length}: ${file}`)
  const built = await inParallel(files, Math.min(Number(jobs), os.availableParallelism()), (file) => compile(file, { toolkit, flags, verbose, onStart }))
  built.sort((a, b) => (a.file < b.file ? -1 : 1))
  const map = 'cuda/launch/exports.map'
  const link = ['-shared', '-static-libstdc++', '-static-libgcc', '-Wl,--gc-sections', '-Wl,-z,defs', '-Wl,-z,now', '-s', `-Wl,--version-script=${map}`]
  const linkHash = digest([...link, toolkit.cudart, readFileSync(path.join(root, map)), ...built.map((b) => b.hash)])
  const linkRecord = path.join(objectFolder, 'link-record.json')
  if (!existsSync(outputFile) || readRecord(linkRecord).hash !== linkHash) {
    onLine?.('linking lapidary_cuda.so')
    const objects = built.map((b) => b.object)
    await command(process.env.CXX || 'g++', [...link, '-o', outputFile, ...objects, toolkit.cudart, '-lpthread', '-ldl', '-lrt'], verbose)
    writeFileSync(linkRecord, JSON.stringify({ hash: linkHash, architectures }))
  }
  const { size: bytes } = statSync(outputFile)
  if (bytes > maxLibraryBytes) throw new Error(`${outputFile} has ${bytes} bytes, more than the ${maxLibraryBytes} that a release may have`)
  return { file: outputFile, bytes, compiled: built.filter((b) => !b.fresh).length, total: files.length, architectures, version: toolkit.version }
}

if (process.argv[1] && path.basename(process.argv[1]) === 'build-cuda.mjs') {
  const at = process.argv.indexOf('--arch')
  const architectures = at > 0 ? process.argv[at + 1]?.split(',') : undefined
  const start = performance.now()
  try {
    const onLine = (line) => process.stderr.write(`${line}\n`)
    const built = await buildCuda({ architectures, lineInfo: process.argv.includes('--lineinfo'), verbose: process.argv.includes('--verbose'), onLine })
    const seconds = ((performance.now() - start) / 1000).toFixed(1)
    process.stderr.write(`built ${path.relative(root, built.file)}: ${(built.bytes / 1024 / 1024).toFixed(2)} MiB for sm_${built.architectures.join(', ')} ` +
      `and newer; nvcc ${built.version} compiled ${built.compiled} of ${built.total} files in ${seconds} s\n`)
  } catch (error) {
    process.stderr.write(`lapidary: ${error.message}\n`)
    process.exitCode = 1
  }
}
