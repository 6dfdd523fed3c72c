// What every build of native code shares: the environment that its commands run in, how many at once, and how one is run and reported.
import { spawn, spawnSync } from 'node:child_process'
import { mkdirSync, writeFileSync } from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))

/** Commands run with the running Node first on the path: binding.gyp calls `node`. */
export const buildEnvironment = {
  ...process.env,
  PATH: `${path.dirname(process.execPath)}${path.delimiter}${process.env.PATH ?? ''}`,
}

export const jobs = process.env.JOBS || String(Math.max(1, os.availableParallelism()))

/** Runs a command; its output goes to `log` (a file) or is shown. Rejects with the last lines when it fails. */
export function runBuildCommand(command, args, { verbose = false, log, onLine, cwd = root, env = buildEnvironment } = {}) {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { cwd, env, stdio: ['ignore', 'pipe', 'pipe'] })
    let output = ''
    const take = (chunk) => {
      output += chunk
      if (verbose) process.stderr.write(chunk)
      for (const line of String(chunk).split('\n')) if (line.trim()) onLine?.(line.trim())
    }
    child.stdout.on('data', take)
    child.stderr.on('data', take)
    child.on('error', reject)
    child.on('close', (code) => {
      if (log) {
        mkdirSync(path.dirname(log), { recursive: true })
        writeFileSync(log, output)
      }
      if (code === 0) return resolve(output)
      const shown = verbose ? '' : `:\n${output.split('\n').slice(-60).join('\n')}`
      reject(new Error(`${path.basename(command)} ${args.join(' ')} ended with code ${code}${shown}${log ? `\nThe whole output is in ${log}` : ''}`))
    })
  })
}

export function checkTools() {
  const works = (command, ...args) => spawnSync(command, args, { stdio: 'ignore', env: buildEnvironment }).status === 0
  const missing = []
  if (process.platform !== 'win32') {
    if (!works(process.env.PYTHON || 'python3', '--version')) missing.push('python3')
    if (!works('make', '--version')) missing.push('make')
    if (!works(process.env.CXX || 'c++', '--version') && !works('g++', '--version')) missing.push('g++ (or another C++20 compiler, named by CXX)')
  }
  if (missing.length) throw new Error(`building needs ${missing.join(', ')}; on Debian or Ubuntu: apt-get install python3 make g++`)
}
