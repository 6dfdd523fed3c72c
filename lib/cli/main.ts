#!/usr/bin/env node
/** The `lapidary` program: finds the command, and turns its end into an exit code: 0, 1 failed, 2 usage, 130 interrupted. */

import { readFileSync } from 'node:fs'
import path from 'node:path'
import { LapidaryError } from '../errors.js'
import { packageRoot } from '../loader.js'
import { suggestion } from '../options.js'
import { type Command, UsageError, helpPage, readArguments } from './command.js'
import { interruption } from './terminal.js'

const commands: Record<string, () => Promise<{ readonly command: Command }>> = {
  generate: () => import('./generate.js'),
  chat: () => import('./chat.js'),
  inspect: () => import('./inspect.js'),
  tokenize: () => import('./tokenize.js'),
  logits: () => import('./logits.js'),
  perplexity: () => import('./perplexity.js'),
  eval: () => import('./eval.js'),
  quantize: () => import('./quantize.js'),
  cushion: () => import('./cushion.js'),
  bench: () => import('./bench.js'),
  devices: () => import('./devices.js'),
  build: () => import('./build.js'),
}

async function overview(): Promise<string> {
  const lines = await Promise.all(Object.entries(commands).map(async ([name, load]) => `  ${name.padEnd(12)}${(await load()).command.summary}`))
  return ['usage: lapidary COMMAND [arguments] [flags]', '', ...lines, '', 'lapidary COMMAND --help says more about one of them.', ''].join('\n')
}

async function main(argv: readonly string[]): Promise<number> {
  const [name, ...rest] = argv
  if (name === undefined || name === 'help' || name === '--help' || name === '-h') {
    const text = await overview()
    if (name === undefined) process.stderr.write(text)
    else process.stdout.write(text)
    return name === undefined ? 2 : 0
  }
  if (name === '--version' || name === '-v') {
    const { version } = JSON.parse(readFileSync(path.join(packageRoot, 'package.json'), 'utf8')) as { version: string }
    process.stdout.write(`${version}\n`)
    return 0
  }
  const load = Object.hasOwn(commands, name) ? commands[name] : undefined
  if (!load) throw new UsageError(`unknown command "${name}"${suggestion(name, Object.keys(commands))}`)
  const { command } = await load()
  const args = readArguments(command, rest)
  if (args.has('help')) {
    process.stdout.write(helpPage(name, command))
    return 0
  }
  return (await command.run(args)) ?? 0
}

process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  // A reader that went away, as `head` does, is no failure of ours.
  process.exit(error.code === 'EPIPE' ? 0 : 1)
})

try {
  process.exitCode = await main(process.argv.slice(2))
} catch (error) {
  if (interruption.signal.aborted) process.exitCode = 130
  else if (error instanceof UsageError) {
    process.stderr.write(`lapidary: ${error.message}\nlapidary --help shows what there is.\n`)
    process.exitCode = 2
  } else {
    const known = error instanceof LapidaryError
    process.stderr.write(`lapidary: ${known ? `${error.message} (${error.code})` : (error as Error)?.stack ?? String(error)}\n`)
    process.exitCode = 1
  }
}
