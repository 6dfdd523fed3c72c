// `npm run setup:cuda`: NVIDIA's compiler from its Python wheels into .cache/cuda (git-ignored), unless one is already at hand. Needs no GPU and no driver.
import { spawn, spawnSync } from 'node:child_process'
import { existsSync, rmSync } from 'node:fs'
import path from 'node:path'
import { findToolkit, wheelFolder } from './cuda-toolkit.mjs'

/** The compiler, its headers and libraries, and nothing else (300 MB on disk). cuda/kernel-table.json was made with these. */
const wheels = ['nvidia-cuda-nvcc==13.0.88', 'nvidia-nvvm==13.0.88', 'nvidia-cuda-crt==13.0.88', 'nvidia-cuda-runtime==13.0.96', 'nvidia-cuda-cccl==13.0.85']

const say = (text) => process.stderr.write(`lapidary: ${text}\n`)

function runShown(command, args) {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { stdio: ['ignore', 2, 2] })
    child.on('error', reject)
    child.on('close', (code) => (code === 0 ? resolve() : reject(new Error(`${path.basename(command)} ${args.slice(0, 2).join(' ')} ended with code ${code}`))))
  })
}

/** The toolkit; installs one when there is none. */
export async function setUpCuda() {
  const before = findToolkit()
  if (before.toolkit) return before.toolkit
  if (process.platform !== 'linux') throw new Error(before.reason)
  const python = process.env.PYTHON || 'python3'
  if (spawnSync(python, ['-m', 'venv', '--help'], { stdio: 'ignore' }).status !== 0) {
    throw new Error(`${python} with its venv module is needed; on Debian or Ubuntu: apt-get install python3-venv`)
  }
  say(`installing the CUDA compiler into ${path.relative(process.cwd(), wheelFolder)} (about 100 MB to download)`)
  try {
    if (!existsSync(path.join(wheelFolder, 'bin', 'pip'))) {
      rmSync(wheelFolder, { recursive: true, force: true })
      await runShown(python, ['-m', 'venv', wheelFolder])
    }
    const options = ['--disable-pip-version-check', '--progress-bar', 'off', '--no-deps', '--retries', '2', '--timeout', '20']
    await runShown(path.join(wheelFolder, 'bin', 'pip'), ['install', ...options, ...wheels])
  } catch (error) {
    throw new Error(`${error.message}; check the network and run npm run setup:cuda again, or install CUDA 13 and set CUDA_HOME`)
  }
  const after = findToolkit()
  if (!after.toolkit) throw new Error(after.reason)
  return after.toolkit
}

if (process.argv[1] && path.basename(process.argv[1]) === 'setup-cuda.mjs') {
  try {
    const { nvcc, version } = await setUpCuda()
    say(`nvcc ${version} is ready: ${nvcc}; npm run build:cuda compiles the CUDA library`)
  } catch (error) {
    say(error.message)
    process.exitCode = 1
  }
}
