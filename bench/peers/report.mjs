// Comparisons as a table, and the options that speed.mjs and bench/cpu share.
import { devices } from 'lapidary'
import { shapes } from '../models/shapes.mjs'
import { digits } from '../statistics.mjs'
import { formats } from './compare.mjs'
import { backendOf } from './llama.mjs'

export const comparisonOptions = {
  llama: { type: 'string' },
  models: { type: 'string', default: '270M,1B' },
  formats: { type: 'string', default: 'int8,bf16,q8_0,q4_0' },
  cpu: { type: 'string' },
  precision: { type: 'string' },
  prefill: { type: 'string', default: '512,2048' },
  context: { type: 'string', default: '512,4096' },
  decode: { type: 'string', default: '128' },
  batch: { type: 'string', default: '0' },
  threads: { type: 'string' },
  rounds: { type: 'string', default: '1' },
  repeats: { type: 'string', default: '3' },
  flash: { type: 'string', default: 'both' },
  quick: { type: 'boolean', default: false },
}

/** For a mistake in the command line: shown without a stack. */
export class OptionError extends Error {}

function oneOf(list, known, what) {
  for (const item of list) if (!known.includes(item)) throw new OptionError(`there is no ${what} ${item}; there are ${known.join(', ')}`)
  return list
}

function whole(text, name, least = 1) {
  const value = Number(text)
  if (text !== '' && Number.isInteger(value) && value >= least) return value
  throw new OptionError(`--${name} must be whole numbers from ${least} up, received "${text}"`)
}

const split = (text) => (text === '' ? [] : text.split(','))

/** What is to be measured, from options as parseArgs gives them; `--quick` shortens what is not given. */
export function readComparison(options, given = new Set()) {
  const short = { prefill: '128', context: '128', decode: '16', repeats: '1', formats: 'int8,q4_0', models: '270M' }
  const value = (name) => (options.quick && !given.has(name) && name in short ? short[name] : options[name])
  const numbers = (name) => split(value(name)).map((item) => whole(item, name))
  if (options.cpu) oneOf([options.cpu], Object.keys(backendOf), 'instruction set')
  oneOf([options.flash], ['both', 'on', 'off'], 'way of --flash')
  return {
    models: oneOf(split(value('models')), Object.keys(shapes), 'model'),
    formats: oneOf(split(value('formats')), Object.keys(formats), 'format'),
    cpu: options.cpu ?? null,
    plan: {
      llama: options.llama ?? null, cpu: options.cpu ?? null, precision: options.precision ? oneOf([options.precision], ['f32', 'bf16', 'int8'], 'precision')[0] : null,
      prefill: numbers('prefill'), contexts: numbers('context'), decode: whole(value('decode'), 'decode'),
      batch: whole(options.batch, 'batch', 0), repeats: whole(value('repeats'), 'repeats'), rounds: whole(options.rounds, 'rounds'), threads: options.threads ? whole(options.threads, 'threads') : cores(),
      flash: { both: [true, false], on: [true], off: [false] }[options.flash],
    },
  }
}

const cores = () => devices().find(({ kind }) => kind === 'cpu').cores

/** The plan as reports keep it: no folder of the machine. */
export const publicPlan = ({ llama, ...plan }) => ({ ...plan, llama: llama !== null })

/** Names of options that stand in the command line. */
export const namesGiven = (tokens) => new Set(tokens.filter(({ kind }) => kind === 'option').map(({ name }) => name))

function figure({ spread, share } = {}) {
  if (!spread) return ['–', '']
  return [`${digits(spread.median)} (${digits(spread.low)} – ${digits(spread.high)})`, share ? `${(100 * share).toFixed(0)} %` : '']
}

/** One comparison as lines: a figure per line, ours, its share of the machine's peak, theirs, and how many times better ours is. */
export function lines({ model, format, ours, theirs, ratios }) {
  const names = [...new Set([...Object.keys(ours?.figures ?? {}), ...Object.keys(theirs?.figures ?? {})])]
  const head = [`${model} ${format}`, ours && `lapidary ${ours.lapidary} ${ours.instructionSet}`, theirs && `${theirs.engine} ${theirs.library}`]
  return [
    head.filter(Boolean).join(', '),
    `  ${'tokens/s'.padEnd(36)}${'lapidary'.padEnd(26)}${'of peak'.padEnd(9)}${'llama.cpp'.padEnd(26)}times`,
    ...names.map((name) => {
      const [own, share] = figure(ours?.figures[name]), [other] = figure(theirs?.figures[name])
      return `  ${name.padEnd(36)}${own.padEnd(26)}${share.padEnd(9)}${other.padEnd(26)}${name in ratios ? ratios[name].toFixed(2) : ''}`.trimEnd()
    }),
  ]
}
