/** What a command of the program is, and reading its arguments. */

import { parseArgs } from 'node:util'
import { suggestion } from '../options.js'

export interface Flag {
  readonly type: 'string' | 'boolean'
  /** How the value is called in the help. */
  readonly value?: string
  readonly multiple?: boolean
  readonly help: string
}

export interface Command {
  readonly summary: string
  /** Names of the positional arguments, all needed. */
  readonly operands: readonly string[]
  readonly flags: Readonly<Record<string, Flag>>
  /** Further lines of the help. */
  readonly details?: string
  /** Gives the exit code where it is not 0. */
  run(args: Arguments): Promise<number | undefined>
}

/** A mistake in the command line: exit code 2. */
export class UsageError extends Error {}

type Values = Readonly<Record<string, string | boolean | ReadonlyArray<string | boolean> | undefined>>

/** The arguments of one call. */
export class Arguments {
  readonly operands: readonly string[]
  readonly #values: Values

  constructor(operands: readonly string[], values: Values) {
    this.operands = operands
    this.#values = values
  }

  has(flag: string): boolean {
    return this.#values[flag] === true
  }

  text(flag: string): string | undefined {
    return this.#values[flag] as string | undefined
  }

  texts(flag: string): string[] {
    return (this.#values[flag] as string[] | undefined) ?? []
  }

  needed(flag: string): string {
    const value = this.text(flag)
    if (value === undefined) throw new UsageError(`--${flag} is needed`)
    return value
  }

  number(flag: string): number | undefined {
    const text = this.text(flag)
    if (text === undefined) return undefined
    const value = Number(text)
    if (text.trim() === '' || Number.isNaN(value)) throw new UsageError(`--${flag} must be a number, received "${text}"`)
    return value
  }

  choice<const T extends string>(flag: string, ...allowed: readonly T[]): T | undefined {
    const text = this.text(flag)
    if (text === undefined || allowed.includes(text as T)) return text as T | undefined
    throw new UsageError(`--${flag} must be one of ${allowed.join(', ')}, received "${text}"`)
  }
}

const everyCommand: Record<string, Flag> = { help: { type: 'boolean', help: 'show this page' } }

export function readArguments(command: Command, argv: readonly string[]): Arguments {
  const flags = { ...command.flags, ...everyCommand }
  const options = Object.fromEntries(Object.entries(flags).map(([name, { type, multiple = false }]) => [name, { type, multiple }]))
  try {
    const { values, positionals } = parseArgs({ args: [...argv], options: { ...options, help: { type: 'boolean', short: 'h' } }, allowPositionals: true })
    if (values.help !== true && positionals.length !== command.operands.length) {
      throw new UsageError(`expected ${command.operands.join(' ') || 'no arguments'}, received ${positionals.length} arguments`)
    }
    return new Arguments(positionals, values)
  } catch (error) {
    if (error instanceof UsageError) throw error
    const unknown = (error as { code?: string }).code === 'ERR_PARSE_ARGS_UNKNOWN_OPTION' && /'--?([^']+)'/.exec((error as Error).message)?.[1]
    if (unknown) throw new UsageError(`unknown flag --${unknown}${suggestion(unknown, Object.keys(flags))}`)
    throw new UsageError((error as Error).message)
  }
}

export function helpPage(name: string, command: Command): string {
  const rows = Object.entries({ ...command.flags, ...everyCommand }).map(([flag, { value, multiple, help }]) =>
    [`  --${flag}${value ? ` ${value}` : ''}${multiple ? ' ...' : ''}`, help] as const)
  const width = Math.max(...rows.map(([left]) => left.length)) + 2
  return [
    `usage: lapidary ${[name, ...command.operands].join(' ')} [flags]`,
    '',
    command.summary,
    ...(command.details ? ['', command.details] : []),
    '',
    ...rows.map(([left, help]) => left.padEnd(width) + help),
    '',
  ].join('\n')
}
