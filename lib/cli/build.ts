/** `lapidary build`: builds the native addon from the sources in the package. */

import { spawn } from 'node:child_process'
import { once } from 'node:events'
import path from 'node:path'
import { packageRoot } from '../loader.js'
import type { Command } from './command.js'

export const command: Command = {
  summary: 'build the native addon from source',
  operands: [],
  details: 'Needs python3, make and a C++20 compiler. Nothing is downloaded.',
  flags: {},
  async run() {
    const child = spawn(process.execPath, [path.join(packageRoot, 'scripts', 'build-addon.mjs')], { cwd: packageRoot, stdio: 'inherit' })
    const [code, signal] = (await once(child, 'exit')) as [number | null, NodeJS.Signals | null]
    if (signal === 'SIGINT') return 130
    return code === 0 ? 0 : 1
  },
}
