/** What `lapidary eval` found, as tables for the terminal. */

import type { Activations, Divergence, DivergenceByPosition, Likelihood, LikelihoodByPosition, SiteStatistics } from '../index.js'
import type { TaskScore } from './eval-tasks.js'

export interface Report {
  readonly model: string
  readonly against: string | null
  readonly device: string
  /** null without --text. */
  readonly text: { readonly file: string; readonly window: number; readonly stride: number } & (
    | { readonly likelihood: LikelihoodByPosition; readonly divergence: null }
    | { readonly likelihood: null; readonly divergence: DivergenceByPosition }
  ) | null
  readonly tasks: ReadonlyArray<TaskScore & { readonly against: TaskScore | null }>
  /** null without --stats; `against` is null without --against. */
  readonly stats: { readonly model: Activations; readonly against: Activations | null } | null
  readonly plots: readonly string[]
}

type Row = readonly string[]

/** The first column to the left, all others to the right. */
function table(rows: readonly Row[]): string[] {
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)))
  return rows.map((row) => row.map((cell, i) => (i === 0 ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!))).join('  ').trimEnd())
}

const percent = (share: number): string => `${(100 * share).toFixed(2)} %`
const figure = (value: number): string => (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e5) ? value.toExponential(2) : value.toPrecision(4))

/** The parts that hold any token. */
function parts<T extends { tokens: number }>(figures: T & { within: T; beyond: T }): Array<readonly [string, T]> {
  const all: Array<readonly [string, T]> = [['all', figures], ['within the local window', figures.within], ['beyond it', figures.beyond]]
  return figures.beyond.tokens === 0 ? all.slice(0, 1) : all.filter(([, part]) => part.tokens > 0)
}

function likelihoodRows(figures: LikelihoodByPosition): Row[] {
  return [['tokens', 'count', 'nats/token', 'perplexity'],
    ...parts<Likelihood>(figures).map(([name, f]) => [name, String(f.tokens), f.natsPerToken.toFixed(4), f.perplexity.toFixed(3)])]
}

function divergenceRows(figures: DivergenceByPosition): Row[] {
  return [['tokens', 'count', 'perplexity', 'against', 'mean KL', 'p99 KL', 'max KL', 'same top-1'],
    ...parts<Divergence>(figures).map(([name, f]) => [
      name, String(f.tokens), f.perplexity.toFixed(3), f.referencePerplexity.toFixed(3), figure(f.meanKl), figure(f.p99Kl), figure(f.maxKl), percent(f.agreement)])]
}

function taskRows(tasks: Report['tasks']): Row[] {
  const beside = tasks.some((task) => task.against !== null)
  return [['task', 'questions', 'accuracy', 'normalised', ...(beside ? ['against', 'normalised'] : [])],
    ...tasks.map((t) => [t.task, String(t.questions), percent(t.accuracy), percent(t.normalisedAccuracy),
      ...(beside ? [percent(t.against!.accuracy), percent(t.against!.normalisedAccuracy)] : [])])]
}

function worst(site: SiteStatistics): string {
  const [spike] = site.spikes
  return spike ? `${spike.position < 0 ? 'BOS' : `token ${spike.position}`} (id ${spike.id})` : ''
}

function statsRows(activations: Activations, against: Activations | null): Row[] {
  return [['layer, site', 'max', ...(against ? ['against'] : []), 'mean of tokens', 'p90', 'median', 'max/median', 'token ratio', ...(against ? ['against'] : []), 'largest at'],
    ...activations.sites.map((site, i) => {
      const other = against?.sites[i]
      return [`${site.layer} ${site.site}`, figure(site.max), ...(against ? [other ? figure(other.max) : ''] : []), figure(site.meanTokenMax), figure(site.p90),
        figure(site.median), figure(site.maxOverMedian), figure(site.tokenRatio), ...(against ? [other ? figure(other.tokenRatio) : ''] : []), worst(site)]
    })]
}

export function describeReport({ model, against, device, text, tasks, stats, plots }: Report): string {
  const lines = [`${model}${against === null ? '' : ` against ${against}`}, on ${device}`]
  if (text) {
    lines.push('', `${text.file}, windows of ${text.window} tokens, ${text.stride} apart`, '')
    lines.push(...table(text.divergence ? divergenceRows(text.divergence) : likelihoodRows(text.likelihood)))
  }
  if (tasks.length > 0) lines.push('', ...table(taskRows(tasks)))
  if (stats) lines.push('', ...table(statsRows(stats.model, stats.against)))
  if (plots.length > 0) lines.push('', ...plots.map((file) => `wrote ${file}`))
  return `${lines.join('\n')}\n`
}
