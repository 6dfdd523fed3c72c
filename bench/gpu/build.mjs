// Builds in a checkout what check.mjs runs: dist/, the addon, the test and benchmark programs, the emulated library, and the CUDA library where nvcc is.
//   --emulated: no CUDA library is needed
import { buildAddon } from '../../scripts/build-addon.mjs'
import { buildCuda } from '../../scripts/build-cuda.mjs'
import { setUp } from '../../scripts/setup.mjs'
import { setUpCuda } from '../../scripts/setup-cuda.mjs'

const say = (line) => process.stderr.write(`${line}\n`)

export async function buildForCheck({ emulated = false, onLine = say } = {}) {
  await setUp({ nativeTests: true, cuda: false })
  await buildAddon({ nativeTests: true, gpuCheck: true })
  if (emulated) return undefined
  await setUpCuda()
  return buildCuda({ onLine })
}

if (process.argv[1]?.endsWith('build.mjs')) {
  try {
    const built = await buildForCheck({ emulated: process.argv.includes('--emulated') })
    say(built ? `built ${built.file} (${built.bytes} bytes) with nvcc ${built.version}` : 'built')
  } catch (error) {
    say(error.message)
    process.exitCode = 1
  }
}
