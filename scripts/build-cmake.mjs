// `npm run build:cmake`: the addon by cmake-js and CMakeLists.txt, into build/cmake; loads it to see that it works.
import { createRequire } from 'node:module'
import path from 'node:path'
import { jobs, runBuildCommand } from './build-commands.mjs'
import { root } from './setup.mjs'

/** `quick` leaves most optimisation out: enough to see that it builds and loads. */
export async function buildWithCMake({ quick = false, onLine } = {}) {
  const require = createRequire(path.join(root, 'package.json'))
  const cmakeJs = path.join(path.dirname(require.resolve('cmake-js/package.json')), 'bin/cmake-js')
  const args = [cmakeJs, 'build', '--out', path.join(root, 'build/cmake'), '--prefer-make', '--parallel', jobs, ...(quick ? ['--CDCMAKE_CXX_FLAGS_RELEASE=-O1'] : [])]
  await runBuildCommand(process.execPath, args, { onLine, log: path.join(root, 'build/cmake.log') })
  const file = path.join(root, 'build/cmake/Release/lapidary.node')
  const addon = require(file)
  return { file, version: addon.version() }
}

if (process.argv[1] && path.basename(process.argv[1]) === 'build-cmake.mjs') {
  try {
    const { file, version } = await buildWithCMake({ onLine: (line) => process.stderr.write(`${line}\n`) })
    process.stderr.write(`built ${file}, version ${version}\n`)
  } catch (error) {
    process.stderr.write(`lapidary: ${error.message}\n`)
    process.exitCode = 1
  }
}
