/** Finds and loads the native addon, once, on first use: importing the package is cheap and never throws. */

import { createRequire } from 'node:module'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { LapidaryError } from './errors.js'
import type { NativeAddon } from './native.js'

/** The package's own folder: dist/ and lib/ lie directly in it. */
export const packageRoot: string = fileURLToPath(new URL('..', import.meta.url))

let loaded: NativeAddon | undefined

export function native(): NativeAddon {
  loaded ??= load()
  return loaded
}

function load(): NativeAddon {
  const require = createRequire(import.meta.url)
  const tried: string[] = []
  for (const file of candidates()) {
    try {
      return require(file) as NativeAddon
    } catch (error) {
      tried.push(`  ${file}: ${reason(error)}`)
    }
  }
  throw new LapidaryError('unsupported', [
    `no native binary of lapidary for ${platformName()} (Node ${process.version}) could be loaded; tried`,
    ...tried,
    'Build it from source with `npx lapidary build` (needs python3, make and a C++20 compiler).',
  ].join('\n'))
}

/** LAPIDARY_BINARY names one file and nothing else is tried; then a local build; then a prebuilt binary from the package. */
function* candidates(): Generator<string> {
  const named = process.env['LAPIDARY_BINARY']
  if (named) return yield path.resolve(named)
  yield path.join(packageRoot, 'build', 'Release', 'lapidary.node')
  yield path.join(packageRoot, 'prebuilds', platformName(), 'lapidary.node')
}

function platformName(): string {
  return `${process.platform}-${process.arch}${isMusl() ? '-musl' : ''}`
}

/** The running Node's own C library, not the distribution's: musl reports no glibc version. */
function isMusl(): boolean {
  if (process.platform !== 'linux' || !process.report) return false
  const report = process.report as typeof process.report & { excludeNetwork?: boolean }
  report.excludeNetwork = true
  const { header } = report.getReport() as { header?: { glibcVersionRuntime?: string } }
  return header !== undefined && header.glibcVersionRuntime === undefined
}

function reason(error: unknown): string {
  const { code, message } = error as { code?: string; message?: string }
  if (code === 'MODULE_NOT_FOUND') return 'no such file'
  return (message ?? String(error)).split('\n')[0]!
}
