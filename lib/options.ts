/** Reading option objects once: unknown keys refused with a suggestion, values checked with both sides in the message. */

import { invalid } from './errors.js'

/** Checks one value; `name` is how messages call it. */
export type Reader<T> = (value: unknown, name: string) => T

export type Readers = Readonly<Record<string, Reader<unknown>>>

export type ReadOptions<R extends Readers> = { -readonly [K in keyof R]?: ReturnType<R[K]> }

/** The given options, checked; keys that are absent or undefined stay absent. `owner` is the function they were given to. */
export function readOptions<R extends Readers>(owner: string, given: unknown, readers: R): ReadOptions<R> {
  const out: Record<string, unknown> = {}
  if (given === undefined) return out as ReadOptions<R>
  if (typeof given !== 'object' || given === null || Array.isArray(given)) {
    throw invalid(`${owner}: options must be an object, received ${describe(given)}`)
  }
  for (const [key, value] of Object.entries(given)) {
    const reader = Object.hasOwn(readers, key) ? readers[key] : undefined
    if (!reader) throw invalid(`${owner}: unknown option "${key}"${suggestion(key, Object.keys(readers))}`)
    if (value !== undefined) out[key] = reader(value, `${owner}: ${key}`)
  }
  return out as ReadOptions<R>
}

/** `; did you mean "maxTokens"?`, or the list of what there is. */
export function suggestion(key: string, known: readonly string[]): string {
  const plain = (s: string): string => s.toLowerCase().replaceAll(/[^a-z0-9]/g, '')
  let best = '', distance = Infinity
  for (const name of known) {
    const d = editDistance(plain(key), plain(name))
    if (d < distance) [best, distance] = [name, d]
  }
  if (distance <= Math.max(1, Math.floor(key.length / 3))) return `; did you mean "${best}"?`
  return `; known are ${known.join(', ')}`
}

function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j)
  for (let i = 1; i <= a.length; i++) {
    const next = [i]
    for (let j = 1; j <= b.length; j++) {
      const swap = row[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1)
      next.push(Math.min(swap, row[j]! + 1, next[j - 1]! + 1))
    }
    row = next
  }
  return row[b.length]!
}

/** A value as it appears in an error message: short, with its type where that helps. */
export function describe(value: unknown): string {
  if (typeof value === 'string') return value.length > 60 ? `a string of ${value.length} characters` : JSON.stringify(value)
  if (value === null || value === undefined || typeof value === 'number' || typeof value === 'boolean') return String(value)
  if (typeof value === 'bigint') return `${value}n`
  if (Array.isArray(value)) return `an array of ${value.length}`
  if (typeof value === 'function') return 'a function'
  return `an object of type ${value.constructor?.name ?? 'Object'}`
}

export function integer(min: number, max: number = Number.MAX_SAFE_INTEGER): Reader<number> {
  return (value, name) => {
    if (typeof value === 'number' && Number.isInteger(value) && value >= min && value <= max) return value
    const range = max === Number.MAX_SAFE_INTEGER ? `of at least ${min}` : `from ${min} to ${max}`
    throw invalid(`${name} must be an integer ${range}, received ${describe(value)}`)
  }
}

/** A finite number in [min, max], or in (min, max] with `openLow`. */
export function number(min: number, max: number, openLow: boolean = false): Reader<number> {
  return (value, name) => {
    const fits = typeof value === 'number' && Number.isFinite(value) && value <= max && (openLow ? value > min : value >= min)
    if (fits) return value
    const low = min === -Infinity ? '' : openLow ? ` above ${min}` : ` of at least ${min}`
    const high = max === Infinity ? '' : `${low && ' and'} at most ${max}`
    throw invalid(`${name} must be a finite number${low}${high}, received ${describe(value)}`)
  }
}

export function choice<const T extends string>(...allowed: readonly T[]): Reader<T> {
  return (value, name) => {
    if (allowed.includes(value as T)) return value as T
    throw invalid(`${name} must be one of ${allowed.map((a) => `'${a}'`).join(', ')}, received ${describe(value)}`)
  }
}

export const boolean: Reader<boolean> = (value, name) => {
  if (typeof value === 'boolean') return value
  throw invalid(`${name} must be true or false, received ${describe(value)}`)
}

export const string: Reader<string> = (value, name) => {
  if (typeof value === 'string') return value
  throw invalid(`${name} must be a string, received ${describe(value)}`)
}

export const signal: Reader<AbortSignal> = (value, name) => {
  if (value instanceof AbortSignal) return value
  throw invalid(`${name} must be an AbortSignal, received ${describe(value)}`)
}

export function callback<F extends (...args: never[]) => unknown>(): Reader<F> {
  return (value, name) => {
    if (typeof value === 'function') return value as F
    throw invalid(`${name} must be a function, received ${describe(value)}`)
  }
}

/** Token ids as the Int32Array that native code takes, each checked against the vocabulary. */
export function tokenIds(value: unknown, name: string, vocab: number): Int32Array {
  if (!Array.isArray(value) && !(value instanceof Int32Array)) {
    throw invalid(`${name} must be an array of token ids or an Int32Array, received ${describe(value)}`)
  }
  const ids = new Int32Array(value.length)
  for (let i = 0; i < value.length; i++) {
    const id: unknown = value[i]
    if (typeof id !== 'number' || !Number.isInteger(id) || id < 0 || id >= vocab) {
      throw invalid(`${name}[${i}] must be a token id from 0 to ${vocab - 1}, received ${describe(id)}`)
    }
    ids[i] = id
  }
  return ids
}
