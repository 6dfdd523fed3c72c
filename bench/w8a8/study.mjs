// What quantising a model to int8 costs, behind one prefix and another: perplexity, KL, rounding errors, positions, and the bars they must clear.
import fs from 'node:fs'
import os from 'node:os'
import path from 'node:path'
import { loadModel } from 'lapidary'
import { speedsOf } from './speed.mjs'

/** The rows of the table: how inputs are quantised; weights are int8 with a scale per output channel. */
export const schemes = {
  FP: null,
  static: { activations: 'static' },
  'static, percentile': { activations: 'static', clip: 'percentile' },
  'SmoothQuant static': { activations: 'static', smooth: 0.5 },
  'per-tensor dynamic': { activations: 'tensor' },
  'per-token': { activations: 'token' },
}

const loading = { device: 'cpu', precision: 'f32' }
const sum = (values) => values.reduce((all, value) => all + value, 0)

/**
 * @param folder An unquantised checkpoint.
 * @param texts `train` and `heldOut`, token ids without BOS.
 * @param options `window` of all texts; `search` and `tune`, options of searchCushion and tuneCushion; `tuned`, which prefixes are tuned, with options of their own; `gap`, the share of the perplexity lost to static scales
 *   that a prefix is to win back; `rows`, names of schemes; `say`, told what is done.
 */
export async function study(folder, { train, heldOut }, { window, search, tune, tuned = { greedy: {} }, gap = 0.95, rows = Object.keys(schemes), say = () => {} }) {
  const work = fs.mkdtempSync(path.join(os.tmpdir(), 'lapidary-w8a8-'))
  const model = await loadModel(folder, loading)
  try {
    const { bosId, vocab, layers } = model.info
    say('searching')
    const found = await model.searchCushion({ texts: train, textTokens: window, ...search })
    const { rivals } = found.report
    const prefixes = { none: null, BOS: [bosId], PrefixQuant: rivals.frequent.tokens }
    const kept = async (name, cushion) => {
      prefixes[name] = path.join(work, `${name}.safetensors`)
      await cushion.save(prefixes[name])
    }
    const starts = { greedy: found.tokens.length > 0 ? found : null, PrefixQuant: await tokensAsCushion(model, prefixes.PrefixQuant) }
    if (starts.greedy) await kept('greedy', found)
    const tuning = {}
    for (const [from, more] of Object.entries(tuned)) {
      if (!starts[from]) continue
      say(`tuning ${from}`)
      const better = await model.tuneCushion(starts[from], { texts: train, textTokens: window, ...tune, ...more })
      await kept(`${from} tuned`, better)
      tuning[from] = better.report.tuning
    }
    const calibration = { calibration: train, window }
    const reading = { window, firstTokens: false }
    const cells = {}, sites = {}, positions = {}
    // Equal tokens are one prefix under several names.
    const identity = (name) => JSON.stringify(name.endsWith('tuned') ? name : name === 'greedy' ? found.tokens : prefixes[name])
    for (const row of rows) {
      for (const [name, prefix] of Object.entries(prefixes)) {
        const same = Object.keys(cells[row] ?? {}).find((other) => identity(other) === identity(name))
        if (same) {
          for (const part of [cells[row], positions[row], row === 'static' ? sites : undefined]) if (part?.[same]) part[name] = part[same]
          continue
        }
        say(`${row}, ${name}`)
        const made = await quantised(model, folder, schemes[row], prefix, calibration, work)
        if (!made) continue
        try {
          const { perplexity, natsPerToken, meanKl, tokens } = await made.model.divergence(model, heldOut, reading)
          cells[row] = { ...cells[row], [name]: { perplexity, natsPerToken, meanKl, tokens } }
          if (row === 'static') sites[name] = made.sites
          if (['FP', 'static', 'per-token'].includes(row)) positions[row] = { ...positions[row], [name]: await byPosition(made.model, heldOut, localWindow(folder)) }
        } finally {
          if (made.model !== model) await made.model.close()
        }
      }
    }
    const result = {
      model: { parameters: model.info.parameters, layers, vocab },
      tokens: { train: sum(train.map((ids) => ids.length)), heldOut: sum(heldOut.map((ids) => ids.length)) },
      window, localWindow: localWindow(folder),
      prefixes: { PrefixQuant: rivals.frequent.tokens, greedy: [...found.tokens] },
      search: { ...errorsOf(found), steps: found.report.search.steps },
      tuning,
      cells, positions, sites,
    }
    return { ...result, bars: bars(result, gap) }
  } finally {
    await model.close()
    fs.rmSync(work, { recursive: true, force: true })
  }
}

/**
 * What each scheme costs to run without a prefix and behind one: `{ scheme: { none, greedy } }` of speedsOf's figures, in the precision that a
 * model is loaded with by default.
 * @param prefix Tokens of the greedy cushion; none: without a prefix alone.
 */
export async function speeds(folder, { train }, prefix, { window, rows = Object.keys(schemes), say = () => {} }) {
  const work = fs.mkdtempSync(path.join(os.tmpdir(), 'lapidary-w8a8-'))
  const model = await loadModel(folder, { device: 'cpu' })
  const made = []
  try {
    for (const row of rows) {
      for (const [name, tokens] of Object.entries({ none: null, ...(prefix.length > 0 ? { greedy: prefix } : {}) })) {
        say(`${row}, ${name}`)
        const one = await quantised(model, folder, schemes[row], tokens, { calibration: train.slice(0, 8), window }, work, { device: 'cpu' })
        if (one) made.push({ row, name, model: one.model })
      }
    }
    say('timing')
    const figures = await speedsOf(made.map((one) => one.model)), costs = {}
    for (const [i, { row, name }] of made.entries()) costs[row] = { ...costs[row], [name]: figures[i] }
    return costs
  } finally {
    for (const one of made) if (one.model !== model) await one.model.close()
    await model.close()
    fs.rmSync(work, { recursive: true, force: true })
  }
}

/** Squared rounding errors of the search's held-out texts, in all. */
function errorsOf({ report: { search, rivals } }) {
  const of = (key) => sum(search.sites.map((site) => site[key]))
  return { none: of('none'), greedy: of('found'), BOS: rivals.bos, PrefixQuant: rivals.frequent.error, randomMedian: rivals.random.median, random: rivals.random.errors }
}

/** The model of one cell; null where this build has no such scheme. */
async function quantised(model, folder, scheme, prefix, calibration, work, how = loading) {
  if (scheme === null) return { model: prefix === null ? model : await exact(model, folder, prefix, work, how) }
  const needsTexts = scheme.activations === 'static' || scheme.smooth !== undefined
  try {
    const made = await model.quantize({ ...scheme, ...(needsTexts ? calibration : {}), prefix })
    return { model: made.model, sites: made.report.sites.map(({ layer, site, max, tokenRatio }) => ({ layer, site, max, tokenRatio })) }
  } catch (error) {
    if (scheme.activations === 'tensor' && error.code === 'invalid_argument') return null
    throw error
  }
}

/** The unquantised model behind a prefix: the same files with a cushion beside them. */
async function exact(model, folder, prefix, work, how) {
  const copy = fs.mkdtempSync(path.join(work, 'exact-'))
  for (const name of fs.readdirSync(folder)) {
    if (/^(model.*\.safetensors|.*config\.json|tokenizer\.json)$/.test(name)) fs.symlinkSync(path.resolve(folder, name), path.join(copy, name))
  }
  const file = path.join(copy, 'cushion.safetensors')
  if (typeof prefix === 'string') fs.copyFileSync(prefix, file)
  else await (await tokensAsCushion(model, prefix)).save(file)
  return loadModel(copy, how)
}

/** A search that may take no token gives its beginning. */
function tokensAsCushion(model, tokens) {
  return model.searchCushion({ texts: [[tokens[0], tokens[0]], [tokens[0], tokens[0]]], init: tokens, maxTokens: tokens.length, textTokens: 2 })
}

export const localWindow = (folder) => JSON.parse(fs.readFileSync(path.join(folder, 'config.json'), 'utf8')).sliding_window

/** Perplexity of texts without BOS, by the distance from their beginning in local windows W: before W, 2 W, 4 W, and after. */
async function byPosition(model, texts, local) {
  const bounds = [local, 2 * local, 4 * local, Infinity], nats = bounds.map(() => 0), tokens = bounds.map(() => 0)
  const all = await model.logProbabilities(texts)
  for (const row of all) {
    for (const [i, value] of row.entries()) {
      const part = bounds.findIndex((bound) => i + 1 < bound)
      nats[part] -= value
      tokens[part]++
    }
  }
  return bounds.map((_, i) => (tokens[i] > 0 ? Math.exp(nats[i] / tokens[i]) : null))
}

/** Each bar: what was measured, the bound, whether it holds. */
function bars({ cells, positions, search, tuning }, gap) {
  const at = (row, prefix) => cells[row]?.[prefix]?.perplexity
  const found = Boolean(cells.static?.greedy)
  if (!found) return [{ bar: 'a prefix that halves the rounding error', value: null, bound: 'found', ok: false }]
  const closed = (prefix) => (at('static', 'none') - at('static', prefix)) / (at('static', 'none') - at('FP', prefix))
  const most = (bar, value, bound) => ({ bar, value, bound: `<= ${bound}`, ok: value <= bound })
  const least = (bar, value, bound) => ({ bar, value, bound: `>= ${bound}`, ok: value >= bound })
  const far = (row, prefix) => positions[row][prefix].at(-1)
  const over = (row, prefix, other, base) => at(row, prefix) / at(other, base)
  const all = [
    { bar: 'static over FP perplexity, no prefix', value: over('static', 'none', 'FP', 'none'), bound: 'the gap', ok: null },
    least('median random prefix over greedy, rounding error', search.randomMedian / search.greedy, 2),
  ]
  for (const prefix of ['greedy', 'greedy tuned'].filter((name) => cells.static[name])) {
    all.push(
      least(`gap closed (G), ${prefix}`, closed(prefix), gap),
      most(`static + ${prefix} over per-token perplexity`, over('static', prefix, 'per-token', 'none'), 1.02),
      most(`FP + ${prefix} over FP perplexity`, over('FP', prefix, 'FP', 'none'), 1.01),
      most(`beyond 4 W: static over FP perplexity, ${prefix}`, far('static', prefix) / far('FP', prefix), 1.02),
    )
  }
  for (const [from, { best, start }] of Object.entries(tuning)) {
    if (best.step === 0) {
      all.push({ bar: `tuning ${from}: nothing better was found; int8 costs its start this much cross-entropy, nats`, value: start.quantised - start.unquantised, bound: 'little', ok: null })
      continue
    }
    // On the tuning's own held-out texts; then on the table's, which had no part in choosing: up to 0.03 % is chance.
    all.push(
      most(`tuning ${from}: rounding error, after over before`, best.error / start.error, 1),
      most(`tuning ${from}: cross-entropy through int8, after less before, nats`, best.quantised - start.quantised, 0),
      most(`tuning ${from}: cross-entropy through exact inputs, after less before, nats`, best.unquantised - start.unquantised, 0),
      most(`tuning ${from}: FP perplexity, after over before`, over('FP', `${from} tuned`, 'FP', from), 1.0003),
    )
  }
  return all
}
