/** The terminal: interruption, progress, lines of input. Results go to stdout; everything here goes to stderr. */

import { once } from 'node:events'

/** Aborted by the first Ctrl-C; the second ends the process. */
export const interruption: AbortController = new AbortController()

let listening = false

/** Begins to treat Ctrl-C as a wish to stop the work at hand. */
export function catchInterrupts(onFirst: () => void = () => interruption.abort(new Error('interrupted'))): void {
  if (listening) return
  listening = true
  process.on('SIGINT', () => {
    if (interruption.signal.aborted) process.exit(130)
    onFirst()
  })
}

/** Text in a lighter colour, where colours are wanted. */
export function dim(text: string): string {
  return process.stderr.isTTY && !process.env['NO_COLOR'] ? `\x1b[2m${text}\x1b[22m` : text
}

/** A line for people, never for programs. */
export function note(text: string): void {
  process.stderr.write(`${dim(text)}\n`)
}

/** A line of progress that overwrites itself; silent unless stderr is a terminal. */
export function progress(label: string): (loaded: number, total: number) => void {
  if (!process.stderr.isTTY) return () => {}
  return (loaded, total) => {
    process.stderr.write(`\r${dim(`${label} ${Math.floor((100 * loaded) / Math.max(1, total))} %`)}${loaded >= total ? '\r\x1b[K' : ''}`)
  }
}

export interface Stage {
  readonly phase: string
  readonly done: number
  readonly total: number
  /** Per second. */
  readonly rate: number
  readonly secondsLeft: number
}

/** The same for work in stages, with its rate and the time left. */
export function stageProgress(): (stage: Stage) => void {
  if (!process.stderr.isTTY) return () => {}
  return ({ phase, done, total, rate, secondsLeft }) => {
    const percent = Math.floor((100 * done) / Math.max(1, total))
    const speed = phase === 'loading' || phase === 'saving' ? `${bytes(rate)}/s` : phase === 'tuning' ? `${rate.toFixed(2)} steps/s` : `${rate.toFixed(0)} tokens/s`
    const left = Number.isFinite(secondsLeft) ? `, ${Math.ceil(secondsLeft)} s left` : ''
    process.stderr.write(`\r\x1b[K${done >= total ? '' : dim(`${phase} ${percent} %, ${speed}${left}`)}`)
  }
}

/** Writes to stdout, waiting where the reader is slower. */
export async function print(text: string): Promise<undefined> {
  if (text !== '' && !process.stdout.write(text)) await once(process.stdout, 'drain')
}

export async function readStdin(): Promise<string> {
  const chunks: Buffer[] = []
  for await (const chunk of process.stdin) chunks.push(chunk as Buffer)
  return Buffer.concat(chunks).toString('utf8')
}

/** Lines of stdin, parted by \n alone: JSON text may hold every other kind of line separator. Groups are what was there at once. */
export async function* stdinLines(): AsyncGenerator<string[]> {
  process.stdin.setEncoding('utf8')
  let rest = ''
  for await (const chunk of process.stdin) {
    const lines = (rest + (chunk as string)).split('\n')
    rest = lines.pop()!
    if (lines.length > 0) yield lines
  }
  if (rest !== '') yield [rest]
}

export function bytes(n: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB']
  let unit = 0
  while (n >= 1024 && unit < units.length - 1) {
    n /= 1024
    unit++
  }
  return `${unit === 0 ? n : n.toFixed(1)} ${units[unit]}`
}
