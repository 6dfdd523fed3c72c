// Where nvcc is. In order: CUDA_HOME or CUDA_PATH, the PATH, the compiler that `npm run setup:cuda` put into .cache/cuda, /usr/local/cuda.
import { spawnSync } from 'node:child_process'
import { existsSync, readdirSync, realpathSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))

/** A Python environment with NVIDIA's compiler wheels. */
export const wheelFolder = path.join(root, '.cache', 'cuda')

/** The oldest release with what we pass: C++20, sm_90a, --compress-mode. */
const oldest = [12, 8]

const isAtLeast = (version, [major, minor]) => {
  const [a, b] = version.split('.').map(Number)
  return a > major || (a === major && b >= minor)
}

function* homes() {
  if (process.env.CUDA_HOME) yield process.env.CUDA_HOME
  if (process.env.CUDA_PATH) yield process.env.CUDA_PATH
  for (const folder of (process.env.PATH ?? '').split(path.delimiter)) {
    if (folder && existsSync(path.join(folder, 'nvcc'))) yield path.dirname(path.dirname(realpathSync(path.join(folder, 'nvcc'))))
  }
  const libraries = path.join(wheelFolder, 'lib')
  if (existsSync(libraries)) {
    for (const python of readdirSync(libraries)) yield path.join(libraries, python, 'site-packages', 'nvidia', 'cu13')
  }
  yield '/usr/local/cuda'
}

/** A toolkit at `home` as {nvcc, version, cudart, architectures}, or the reason why there is none. */
function toolkitAt(home) {
  const nvcc = path.join(home, 'bin', 'nvcc')
  if (!existsSync(nvcc)) return 'no bin/nvcc'
  const said = spawnSync(nvcc, ['--version'], { encoding: 'utf8' })
  const version = /release [\d.]+, V([\d.]+)/.exec(said.stdout ?? '')?.[1]
  if (!version) return `bin/nvcc --version fails: ${said.error?.message ?? said.stderr.trim()}`
  if (!isAtLeast(version, oldest)) return `CUDA ${version} is older than ${oldest.join('.')}`
  const machine = process.arch === 'arm64' ? 'sbsa' : 'x86_64'
  const folders = ['lib64', 'lib', `targets/${machine}-linux/lib`]
  const cudart = folders.map((folder) => path.join(home, folder, 'libcudart_static.a')).find((file) => existsSync(file))
  if (!cudart) return `no libcudart_static.a in ${folders.join(', ')}`
  const listed = spawnSync(nvcc, ['--list-gpu-arch'], { encoding: 'utf8' }).stdout ?? ''
  return { home, nvcc, version, cudart, architectures: listed.split('\n').map((line) => line.trim().replace('compute_', '')).filter(Boolean) }
}

/** {toolkit} or {reason}, a sentence that names what was looked at. Linux only: that is where the CUDA library is supported. */
export function findToolkit() {
  if (process.platform !== 'linux') return { reason: `the CUDA library is not built on ${process.platform}` }
  const tried = []
  for (const home of new Set(homes())) {
    const found = toolkitAt(home)
    if (typeof found === 'object') return { toolkit: found }
    tried.push(`${home}: ${found}`)
  }
  return { reason: `no CUDA compiler was found (${tried.join('; ')}); npm run setup:cuda installs one into .cache/cuda` }
}
