// Builds build/Release/lapidary.node with node-gyp, from a checkout or from the package in somebody's node_modules.
// The CUDA library is built too where nvcc is found, unless LAPIDARY_CUDA is 0.
// Options: --native-tests adds the C++ tests and fuzzers, --werror makes warnings errors, --verbose shows the compiler's output.
import { existsSync, realpathSync } from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { checkTools, jobs, runBuildCommand } from './build-commands.mjs'
import { findNodeDir } from './node-headers.mjs'

const root = fileURLToPath(new URL('..', import.meta.url))

/** node-gyp's program: our own dependency, else the one that npm brings. */
function findNodeGyp() {
  const require = createRequire(path.join(root, 'package.json'))
  try {
    return require.resolve('node-gyp/bin/node-gyp.js')
  } catch {
    const npmRoots = [
      process.env.npm_execpath && path.resolve(path.dirname(process.env.npm_execpath), '..'),
      path.resolve(path.dirname(process.execPath), '../lib/node_modules/npm'),
      path.resolve(path.dirname(process.execPath), 'node_modules/npm'),
      ...(process.env.PATH ?? '').split(path.delimiter).map((folder) => path.join(folder, 'npm')).filter(existsSync)
        .map((file) => path.resolve(path.dirname(realpathSync(file)), '..')),
    ]
    const files = npmRoots.filter(Boolean).map((folder) => path.join(folder, 'node_modules/node-gyp/bin/node-gyp.js'))
    const found = files.find((file) => existsSync(file))
    if (!found) throw new Error(`node-gyp was found neither beside this package nor in npm (${files.join(', ')}); run: npm install node-gyp`)
    return found
  }
}

export async function buildAddon({ nativeTests = false, gpuCheck = false, outliers = nativeTests, werror = false, verbose = false, onLine } = {}) {
  checkTools()
  const nodeGyp = findNodeGyp()
  const nodeDir = findNodeDir(root)
  const configure = [nodeGyp, 'configure', '--release', ...(nodeDir ? ['--nodedir', nodeDir] : [])]
  const defines = { native_tests: nativeTests, cuda_tests: nativeTests, gpu_bench: nativeTests, gpu_check: gpuCheck, outliers, werror }
  configure.push('--', ...Object.entries(defines).map(([name, on]) => `-D${name}=${on ? 1 : 0}`))
  await runBuildCommand(process.execPath, configure, { verbose, log: path.join(root, 'build/configure.log') })
  await runBuildCommand(process.execPath, [nodeGyp, 'build', '--jobs', jobs], { verbose, onLine, log: path.join(root, 'build/compile.log') })
  return path.join(root, 'build/Release/lapidary.node')
}

/** Builds the CUDA library where a compiler for it is found; without one nothing is said. A failure leaves the addon usable, on the CPU. */
export async function buildCudaIfPossible({ verbose = false, onLine, say }) {
  if (process.env.LAPIDARY_CUDA === '0') return undefined
  const { findToolkit } = await import('./cuda-toolkit.mjs')
  if (!findToolkit().toolkit) return undefined
  try {
    const { buildCuda } = await import('./build-cuda.mjs')
    return await buildCuda({ verbose, onLine })
  } catch (error) {
    say(`the CUDA library could not be built, models will run on the CPU: ${error.message}`)
    return undefined
  }
}

if (process.argv[1] && path.resolve(process.argv[1]) === fileURLToPath(import.meta.url)) {
  const flags = new Set(process.argv.slice(2))
  const onLine = (line) => flags.has('--verbose') || process.stderr.write(`${line}\n`)
  try {
    const file = await buildAddon({ nativeTests: flags.has('--native-tests'), werror: flags.has('--werror'), verbose: flags.has('--verbose'), onLine })
    createRequire(import.meta.url)(file).version()
    process.stderr.write(`built ${file}\n`)
    const library = await buildCudaIfPossible({ verbose: flags.has('--verbose'), onLine, say: (text) => process.stderr.write(`lapidary: ${text}\n`) })
    if (library) process.stderr.write(`built ${library.file}\n`)
  } catch (error) {
    process.stderr.write(`lapidary: ${error.message}\n`)
    process.exitCode = 1
  }
}
