// Builds the test and benchmark programs anew inside an archive of pack.mjs, with the machine's own g++, make and python3 (gyp is in the archive),
// and the CUDA library where nvcc is found. The addon stays the one that the archive brings.
import { buildCuda } from '../../scripts/build-cuda.mjs'
import { findToolkit } from '../../scripts/cuda-toolkit.mjs'
import { buildWithGyp } from '../../scripts/native-tests.mjs'

const say = (line) => process.stderr.write(`${line}\n`)
try {
  say('compiling the test and benchmark programs')
  await buildWithGyp('build/gpu-check', { gpu_check: 1 })
  if (!process.argv.includes('--emulated') && findToolkit().toolkit) {
    const { file, bytes, version } = await buildCuda({ onLine: say })
    say(`built ${file} (${bytes} bytes) with nvcc ${version}`)
  }
} catch (error) {
  say(error.message)
  process.exitCode = 1
}
