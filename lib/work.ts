/** Native work with a handle to abort it, and progress to tell. */

import { type CallSite, awaitNative, callNative } from './errors.js'

export interface Progress {
  readonly done: number
  readonly total: number
}

export interface Abortable<T> {
  result: Promise<T>
  abort(): void
}

/** Starts the work, tied to a signal: what waits rejects with the signal's reason. */
export async function abortable<T>(site: CallSite, abort: AbortSignal | undefined, start: () => Abortable<T>): Promise<T> {
  abort?.throwIfAborted()
  const work = callNative(start)
  const onAbort = (): void => work.abort()
  abort?.addEventListener('abort', onAbort, { once: true })
  try {
    return await awaitNative(site, () => work.result)
  } catch (error) {
    throw abort?.aborted ? abort.reason : error
  } finally {
    abort?.removeEventListener('abort', onAbort)
  }
}

/** The same with progress; what the callback throws ends the work and is what it rejects with. */
export async function watched<T>(
  site: CallSite, { signal, onProgress }: { signal?: AbortSignal; onProgress?: (progress: Progress) => void },
  start: (tell: ((done: number, total: number) => void) | null) => Abortable<T>,
): Promise<T> {
  if (!onProgress) return abortable(site, signal, () => start(null))
  const failed = new AbortController()
  const tell = (done: number, total: number): void => {
    if (failed.signal.aborted) return
    try {
      onProgress({ done, total })
    } catch (error) {
      failed.abort(error)
    }
  }
  return abortable(site, signal ? AbortSignal.any([signal, failed.signal]) : failed.signal, () => start(tell))
}
