// C++ programs in a folder of their own, by gyp and make alone (no Node headers, no CMake): the tests and the fuzzer under sanitizers.
import path from 'node:path'
import { buildEnvironment, checkTools, jobs, runBuildCommand } from './build-commands.mjs'
import { root } from './setup.mjs'

/** Builds `targets` of binding.gyp, or all, into `name`, without the addon: no Node headers are needed. Gives the folder of the programs. */
export async function buildWithGyp(name, defines, { targets = [], env = buildEnvironment } = {}) {
  checkTools()
  const folder = path.join(root, name)
  const gyp = path.join(root, 'node_modules/node-gyp/gyp/gyp_main.py')
  const all = {
    with_addon: 0, target_arch: process.arch, host_arch: process.arch, module_root_dir: root.replace(/\/$/, ''), library: 'static_library', visibility: 'hidden',
    ...defines,
  }
  const args = [gyp, 'binding.gyp', '-f', 'make', '--depth=.', '--no-parallel', '--generator-output', name, '-Goutput_dir=.']
  for (const [key, value] of Object.entries(all)) args.push(`-D${key}=${value}`)
  await runBuildCommand(process.env.PYTHON || 'python3', args, { env, log: path.join(folder, 'configure.log') })
  await runBuildCommand('make', ['-C', folder, 'BUILDTYPE=Release', '-j', jobs, ...targets], { env, log: path.join(folder, 'compile.log') })
  return path.join(folder, 'Release')
}

/** Builds with -fsanitize=`sanitize` and returns the folder of lapidary_tests, lapidary_fuzz (not of thread) and, on request, lapidary_cuda_tests. */
export function buildSanitized(sanitize, { werror = false, cudaTests = false, everyCheck = false } = {}) {
  const defines = { native_tests: 1, cuda_tests: cudaTests ? 1 : 0, sanitize, every_check: everyCheck ? 1 : 0, werror: werror ? 1 : 0 }
  const targets = ['lapidary_tests', ...(sanitize === 'thread' ? [] : ['lapidary_fuzz']), ...(cudaTests ? ['lapidary_cuda_tests'] : [])]
  return buildWithGyp(`build/sanitize-${sanitize.split(',')[0]}`, defines, { targets })
}

export const sanitizerEnvironment = {
  ...buildEnvironment,
  ASAN_OPTIONS: 'detect_leaks=1:abort_on_error=0:allocator_may_return_null=1',
  UBSAN_OPTIONS: 'print_stacktrace=1:halt_on_error=1',
  TSAN_OPTIONS: 'halt_on_error=1:second_deadlock_stack=1',
}
