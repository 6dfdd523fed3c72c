// `npm run test:interop`: what this library writes, read by transformers and compressed-tensors. Needs Python with venv and, the first time, the
// network (several gigabytes: PyTorch); so it is no part of `npm test`. LAPIDARY_TESTS names a lapidary_tests program built elsewhere.
import { spawnSync } from 'node:child_process'
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { buildWithGyp } from '../../scripts/native-tests.mjs'
import { root } from '../../scripts/setup.mjs'

const packages = ['torch', 'transformers', 'compressed-tensors', 'safetensors', 'accelerate']
const venv = path.join(root, '.cache/interop/venv')
const python = path.join(venv, 'bin/python')

function run(command, args, env = {}) {
  const { status, error } = spawnSync(command, args, { stdio: ['ignore', 'inherit', 'inherit'], env: { ...process.env, ...env } })
  if (status !== 0) throw new Error(`${path.basename(command)} ${args[0]} ${error ? error.message : `ended with code ${status}`}`)
}

function setUpPython() {
  const imports = 'import torch, transformers, compressed_tensors, safetensors, accelerate'
  if (existsSync(python) && spawnSync(python, ['-c', imports], { stdio: 'ignore' }).status === 0) return
  run(process.env.PYTHON || 'python3', ['-m', 'venv', venv])
  const pip = ['-m', 'pip', 'install', '--quiet', '--disable-pip-version-check']
  // PyTorch's own index has builds without CUDA, a tenth of the size; where it cannot be reached PyPI's do as well.
  const cpu = spawnSync(python, [...pip, '--retries', '0', '--timeout', '10', '--index-url', 'https://download.pytorch.org/whl/cpu', 'torch'], { stdio: 'ignore' })
  if (cpu.status !== 0) process.stderr.write('lapidary: PyTorch comes from PyPI, with its CUDA libraries\n')
  run(python, [...pip, ...packages])
}

const folder = mkdtempSync(path.join(os.tmpdir(), 'lapidary-interop-'))
try {
  setUpPython()
  const program = process.env.LAPIDARY_TESTS || path.join(await buildWithGyp('build/native', { native_tests: 1, cuda_tests: 0 }), 'lapidary_tests')
  run(program, ['interop:'], { LAPIDARY_INTEROP: folder })
  run(python, [path.join(root, 'test/interop/check.py'), folder], { TRANSFORMERS_VERBOSITY: 'error', HF_HUB_OFFLINE: '1', TQDM_DISABLE: '1' })
} catch (error) {
  process.stderr.write(`lapidary: ${error.message}\n`)
  process.exitCode = 1
} finally {
  rmSync(folder, { recursive: true, force: true })
}
