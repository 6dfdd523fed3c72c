/** The one error class of the package, and how errors of the native side become it. */

/**
 * Stable codes:
 * - `invalid_argument`: a value given by the caller does not fit
 * - `bad_file`: bytes on disk are not what they claim to be
 * - `unsupported`: well-formed, but not something this build or model can do
 * - `out_of_memory`: a limit of memory was reached; only the request at hand fails
 * - `cuda`: the graphics device or its driver is missing or failed
 * - `disposed`: the model, chat or run is closed
 * - `aborted`: native work was stopped before it had a result
 * - `internal`: a defect of this package
 */
export type ErrorCode = 'invalid_argument' | 'bad_file' | 'unsupported' | 'out_of_memory' | 'cuda' | 'disposed' | 'aborted' | 'internal'

const codes: ReadonlySet<string> = new Set<ErrorCode>([
  'invalid_argument', 'bad_file', 'unsupported', 'out_of_memory', 'cuda', 'disposed', 'aborted', 'internal',
])

/** Two copies of the package in one process (ESM and CommonJS, or two versions) recognise each other's errors by this. */
const brand: unique symbol = Symbol.for('lapidary.error') as never

export class LapidaryError extends Error {
  readonly code: ErrorCode

  constructor(code: ErrorCode, message: string, options?: ErrorOptions) {
    super(message, options)
    this.name = 'LapidaryError'
    this.code = code
    Object.defineProperty(this, brand, { value: true })
  }

  static override [Symbol.hasInstance](value: unknown): boolean {
    return typeof value === 'object' && value !== null && brand in value
  }
}

/** Where a call entered the package; native errors carry it as their stack. */
export interface CallSite {
  stack?: string
}

/** Remembers the stack above `entry`, the public function that was called. */
export function callSite(entry: (...args: never[]) => unknown): CallSite {
  const site: CallSite = {}
  Error.captureStackTrace(site, entry)
  return site
}

/** A native error as a LapidaryError with the caller's stack; anything else unchanged. */
export function toLapidaryError(error: unknown, site?: CallSite): unknown {
  if (!(error instanceof Error) || error instanceof LapidaryError) return error
  const code = (error as { code?: unknown }).code
  if (typeof code !== 'string' || !codes.has(code)) return error
  const converted = new LapidaryError(code as ErrorCode, error.message)
  const stack = (site ?? error).stack ?? ''
  const frames = stack.slice(stack.indexOf('\n    at '))
  if (frames.startsWith('\n')) converted.stack = `LapidaryError: ${error.message}${frames}`
  return converted
}

/** Calls native code that answers at once. */
export function callNative<T>(call: () => T): T {
  try {
    return call()
  } catch (error) {
    throw toLapidaryError(error)
  }
}

/** Awaits native work; what it rejects with gets the stack of `site`. */
export async function awaitNative<T>(site: CallSite, work: () => Promise<T>): Promise<T> {
  try {
    return await work()
  } catch (error) {
    throw toLapidaryError(error, site)
  }
}

/** `invalid_argument`, in the package's one form. */
export function invalid(message: string): LapidaryError {
  return new LapidaryError('invalid_argument', message)
}
