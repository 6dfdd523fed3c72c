/** `lapidary devices`: what models can run on here. */

import { devices } from '../index.js'
import type { Command } from './command.js'
import { toJson } from './shared.js'
import { bytes, print } from './terminal.js'

export const command: Command = {
  summary: 'list what models can run on here',
  operands: [],
  flags: { json: { type: 'boolean', help: 'a JSON array' } },
  async run(args) {
    const list = devices()
    if (args.has('json')) return print(`${toJson(list)}\n`)
    for (const device of list) {
      const facts = [device.name, device.instructionSet, device.cores > 0 ? `${device.cores} cores` : '', device.memoryBytes > 0 ? bytes(device.memoryBytes) : '']
      await print(`${device.kind.padEnd(6)}${device.available ? facts.filter(Boolean).join(', ') : `not available: ${device.reason}`}\n`)
    }
  },
}
