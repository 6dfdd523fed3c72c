// The C++ tests on 64-bit ARM: cross-compiled by gyp and run under qemu's user emulation, once per kind of processor, so that every kernel
// table runs. `node scripts/test-arm64.mjs [parts of test names, -parts of those left out]`.
import { spawnSync } from 'node:child_process'
import path from 'node:path'
import { buildEnvironment } from './build-commands.mjs'
import { buildWithGyp } from './native-tests.mjs'

const compiler = process.env.LAPIDARY_ARM64_CXX || 'aarch64-linux-gnu-g++'
const archiver = process.env.LAPIDARY_ARM64_AR || 'aarch64-linux-gnu-ar'
const emulator = process.env.LAPIDARY_QEMU_ARM64 || 'qemu-aarch64'

/** What qemu emulates, and the best table of each: with it forced, a run fails where the processor is not recognised. */
export const processors = [
  { cpu: 'max', table: 'neoni8mm' },
  { cpu: 'neoverse-n1', table: 'neondot' },
  { cpu: 'cortex-a72', table: 'neon' },
]

/** Emulation is slow: whole models and the engine run on the best processor alone, kernels, pool, formats and training on all. */
const everywhere = ['cpu', 'packed', 'probes:', 'ops', 'blocks', 'thread_pool:', 'train', 'quantized', 'sampling']
const once = ['golden', 'engine', 'weights', 'safetensors', 'gguf', 'json', 'tokenizer', 'session file', 'convert', 'config', 'kv cache', 'scheduler']
export const partsFor = (processor) => (processor === processors[0] ? [...everywhere, ...once] : everywhere)

/** Why nothing can be run here; undefined where it can. */
export function missingForArm64() {
  if (process.arch === 'arm64') return 'this is such a processor: its own tests run on it'
  if (process.platform !== 'linux') return `qemu's user emulation is for Linux, this is ${process.platform}`
  const missing = [compiler, archiver, emulator].filter((command) => spawnSync(command, ['--version'], { stdio: 'ignore' }).status !== 0)
  if (missing.length) return `${missing.join(' and ')} not found; on Debian or Ubuntu: apt-get install g++-aarch64-linux-gnu qemu-user`
}

/** Builds lapidary_tests and gives its path. */
export async function buildArm64Tests({ werror = false } = {}) {
  const env = { ...buildEnvironment, CXX: compiler, CXX_target: compiler, LINK_target: compiler, AR_target: archiver }
  const folder = await buildWithGyp('build/arm64', { native_tests: 1, target_arch: 'arm64', werror: werror ? 1 : 0 }, { env })
  return path.join(folder, 'lapidary_tests')
}

/** The command that runs `program` on that processor, as [command, arguments, environment]. */
export function onProcessor({ cpu, table }, program, args) {
  const found = spawnSync(compiler, ['-print-file-name=libc.so.6'], { encoding: 'utf8' })
  const prefix = path.resolve(path.dirname(found.stdout.trim()), '..')
  return [emulator, ['-L', prefix, '-cpu', cpu, program, ...args], { LAPIDARY_CPU: table }]
}

if (process.argv[1] && path.basename(process.argv[1]) === 'test-arm64.mjs') {
  const reason = missingForArm64()
  if (reason) {
    process.stdout.write(`not run: ${reason}\n`)
  } else {
    const program = await buildArm64Tests()
    for (const processor of processors) {
      const parts = process.argv.slice(2)
      const [command, args, env] = onProcessor(processor, program, parts.length ? parts : partsFor(processor))
      process.stdout.write(`\n== ${processor.cpu}\n`)
      if (spawnSync(command, args, { stdio: 'inherit', env: { ...process.env, ...env } }).status !== 0) process.exitCode = 1
    }
  }
}
