/** Plots of activations per layer and site as SVG. Drawn by vega and vega-lite, which are large and needed for nothing else: optional peers. */

import { mkdir, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { LapidaryError } from '../errors.js'
import type { Activations, SiteStatistics } from '../index.js'

export interface Series {
  readonly name: string
  readonly activations: Activations
}

export type Draw = (spec: object) => Promise<string>

interface Vega {
  parse(spec: object): object
  View: new (runtime: object, options: { renderer: 'none' }) => { toSVG(): Promise<string>; finalize(): void }
}

interface VegaLite {
  compile(spec: object): { spec: object }
}

/** Error('unsupported') that says what to install. */
export async function loadDraw(): Promise<Draw> {
  const [vega, lite] = await Promise.all([load<Vega>('vega'), load<VegaLite>('vega-lite')])
  return async (spec) => {
    const view = new vega.View(vega.parse(lite.compile(spec).spec), { renderer: 'none' })
    try {
      return await view.toSVG()
    } finally {
      view.finalize()
    }
  }
}

async function load<T>(name: string): Promise<T> {
  try {
    return (await import(name)) as T
  } catch (error) {
    throw new LapidaryError('unsupported', `--plots needs the packages vega and vega-lite beside lapidary: npm install vega@6 vega-lite@6 (${(error as Error).message.split('\n')[0]})`)
  }
}

const plots: Array<{ file: string; title: string; measures: ReadonlyArray<readonly [string, (site: SiteStatistics) => number]> }> = [
  { file: 'activation-maxima.svg', title: 'Largest, 90 % and median |x|', measures: [['largest', (s) => s.max], ['90 %', (s) => s.p90], ['median', (s) => s.median]] },
  { file: 'token-ratios.svg', title: "Largest |x| over the median token's largest", measures: [['ratio', (s) => s.tokenRatio]] },
]

/** A small chart per site, layers from left to right, one line per series and measure; both axes the same in all of them. */
export function plotSpec(title: string, measures: (typeof plots)[number]['measures'], series: readonly Series[]): object {
  const values = series.flatMap(({ name, activations }) => activations.sites.flatMap((site) => measures.map(([measure, of]) => (
    { model: name, layer: site.layer, site: site.site, measure, value: of(site) }))).filter(({ value }) => value > 0 && Number.isFinite(value)))
  return {
    $schema: 'https://vega.github.io/schema/vega-lite/v6.json',
    title,
    background: 'white',
    data: { values },
    facet: { field: 'site', type: 'nominal', sort: ['attn_in', 'o_in', 'mlp_in', 'down_in'], title: null },
    columns: 2,
    spec: {
      width: 320,
      height: 180,
      // The legend of dashes has none beside points.
      mark: { type: 'line', point: measures.length === 1 },
      encoding: {
        x: { field: 'layer', type: 'quantitative', axis: { tickMinStep: 1, format: 'd' } },
        y: { field: 'value', type: 'quantitative', scale: { type: 'log' }, title: null },
        color: { field: 'model', type: 'nominal', sort: series.map(({ name }) => name), title: null },
        ...(measures.length > 1 ? { strokeDash: { field: 'measure', type: 'nominal', sort: measures.map(([name]) => name), title: null } } : {}),
      },
    },
  }
}

/** Writes the plots, and gives their paths. */
export async function writePlots(draw: Draw, folder: string, series: readonly Series[]): Promise<string[]> {
  await mkdir(folder, { recursive: true })
  const written: string[] = []
  for (const { file, title, measures } of plots) {
    const out = path.join(folder, file)
    await writeFile(out, await draw(plotSpec(title, measures, series)))
    written.push(out)
  }
  return written
}
