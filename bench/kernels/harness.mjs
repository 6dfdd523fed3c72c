// What every subject stands on: the machine and its roofline, checking, timing with tinybench, the table and the JSON.
//
// A subject exports `about` (one line) and `cases(session)`, which yields cases:
//   name        within the subject
//   operations  multiplications and additions, two for a fused one
//   bytes       that must cross memory at least once: every input and output, once
//   compute     the peak that bounds the operations: 'f32', 'bf16' or 'int8'
//   product     'linear' or 'gemmInt8': what timeProducts is to time; else absent
//   working     bytes of what `prepare` makes one copy of; default: bytes
//   prepare(n)  makes n copies of the inputs: { call(i) → what to dispose of, check() throws when a result is wrong, dispose() }
//               and, for products, inputs: what timeProducts takes, so that on cpu samples are taken in one native call
//
// Timing: a sample is one call as JavaScript sees it: the hop to another thread and back, the allocation of the result and, on cuda, the launch
// and the wait for the device; or, of products on cpu, the call itself. Calls go round the copies, together twice the last-level cache, so inputs come from memory as they do in a model.
import os from 'node:os'
import { createRequire } from 'node:module'
import { Bench } from 'tinybench'
import { devices, peaks, synchronize, Tensor, timeProducts } from 'lapidary/ops'

const { version } = createRequire(import.meta.url)('lapidary/package.json')

// Assumed where the system does not say how large its caches are.
const usualCacheBytes = 32 * 2 ** 20
// A quick run shows that everything works: it does not make inputs beyond this for the sake of cold caches.
const quickCacheBytes = 4 * 2 ** 20
// Beyond this, small inputs stay partly in the cache rather than filling the run with copies of them.
const mostCopies = 64
const mostProductCopies = 512

const quantile = (sorted, q) => sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))]
const scaled = (value, unit) => (value >= 1e12 ? `${(value / 1e12).toFixed(2)} T${unit}` : `${(value / 1e9).toFixed(1)} G${unit}`)
const duration = (s) => (s < 1e-3 ? `${(s * 1e6).toFixed(1)} µs` : s < 1 ? `${(s * 1e3).toFixed(2)} ms` : `${s.toFixed(2)} s`)
const operationUnit = (compute) => (compute === 'int8' ? 'OP/s' : 'FLOP/s')

/** Throws unless |got − want| <= tolerance · scale; NaN throws. */
export function near(got, want, scale, tolerance, where) {
  if (!(Math.abs(got - want) <= tolerance * scale)) throw new Error(`${where}: got ${got}, want ${want} within ${tolerance * scale}`)
}

/** Throws unless equal. */
export function exact(got, want, where) {
  if (got !== want) throw new Error(`${where}: got ${got}, want exactly ${want}`)
}

/** A few indices of [0, count), the first and the last among them. */
export function spots(count, wanted = 5) {
  return [...new Set(Array.from({ length: wanted }, (_, i) => Math.round((i * (count - 1)) / Math.max(wanted - 1, 1))))]
}

export class Session {
  #filter
  #results = []
  #peaks
  #facts
  #anchor

  static async open({ device, filter, quick }) {
    const session = new Session()
    const present = devices()
    session.device = device ?? (present.some((d) => d.kind === 'cuda' && d.available) ? 'cuda' : 'cpu')
    session.quick = quick || session.device === 'reference'
    session.#filter = filter
    await session.#describe(present)
    return session
  }

  /** What bf16 operands are multiplied with: tensor cores on cuda; elsewhere they are widened to f32, whose bits are the contract. */
  get halfUnit() {
    return this.device === 'cuda' ? 'bf16' : 'f32'
  }

  async #describe(present) {
    const loadBefore = os.loadavg()[0]
    const found = present.find((d) => d.kind === (this.device === 'cuda' ? 'cuda' : 'cpu'))
    // Something alive on the device keeps its backend open from call to call. A device that is not there says so here.
    this.#anchor = await Tensor.zeros([1], { device: this.device })
    this.#peaks = await peaks({ device: this.device, seconds: this.quick ? 0.1 : 0.5 })
    this.#facts = {
      device: this.device, processor: found.name, instructionSet: found.instructionSet, cores: found.cores, node: process.version, lapidary: version,
      date: new Date().toISOString(), quick: this.quick, loadBefore, peaks: this.#peaks,
    }
    console.log(`lapidary ${version} on ${this.device}: ${found.name}, ${found.instructionSet}${this.device === 'cpu' ? `, ${found.cores} cores` : ''}, Node ${process.version}`)
    const p = this.#peaks
    if (p) {
      const bf16 = p.bf16 ? `, bf16 ${scaled(p.bf16, 'FLOP/s')}` : ''
      console.log(`roofline (${p.source}): memory ${scaled(p.bandwidth, 'B/s')}, f32 ${scaled(p.f32, 'FLOP/s')}${bf16}, int8 ${scaled(p.int8, 'OP/s')}`)
    } else {
      console.log(`roofline: not known for ${found.name}; shares are left out`)
    }
    const empty = await this.#time(async () => {
      await synchronize({ device: this.device })
      return []
    }, 1)
    this.#facts.emptyCallSeconds = empty.median
    console.log(`a call that computes nothing takes about ${duration(empty.median)}; every time below includes that${this.device === 'cpu' ? ' but those of products' : ''}${this.device === 'cuda' ? ', and launch overhead: bench/gpu times the kernels alone' : ''}`)
    if (loadBefore > 0.5) console.log(`warning: other work is running (load average ${loadBefore.toFixed(1)} before the start): times are too long, and the roofline may be too low`)
  }

  /** How many copies of inputs of so many bytes keep the caches cold. */
  #copies({ working, bytes, product }) {
    const cache = this.quick ? quickCacheBytes : (this.#peaks?.cacheBytes ?? usualCacheBytes)
    return Math.min(Math.max(Math.ceil((2 * cache) / (working ?? bytes)), 1), product && this.device !== 'cuda' ? mostProductCopies : mostCopies)
  }

  /** Round after round of the copies. */
  async #timeProduct(product, inputs) {
    const most = this.quick ? 0.05 : 1, least = this.quick ? 3 : 7, samples = []
    await timeProducts(product, inputs, 1)
    let total = 0
    while (total < most || samples.length < least) {
      const round = await timeProducts(product, inputs, inputs.length)
      samples.push(...round)
      total += round.reduce((sum, seconds) => sum + seconds, 0)
    }
    samples.sort((a, b) => a - b)
    return { median: quantile(samples, 0.5), low: quantile(samples, 0.1), high: quantile(samples, 0.9), samples: samples.length }
  }

  async #time(call, copies) {
    const bench = new Bench({
      time: this.quick ? 50 : 1000, iterations: this.quick ? 3 : 7, warmupTime: this.quick ? 0 : 100, warmupIterations: 1, retainSamples: true, throws: true,
    })
    let turn = 0, made = []
    const body = async () => {
      made = await call(turn++ % copies)
      if (this.device === 'cuda') await synchronize({ device: 'cuda' })
    }
    // Outside of the sample: freeing a large result is a system call.
    const afterEach = () => {
      for (const tensor of made) tensor.dispose()
    }
    bench.add('call', body, { async: true, afterEach })
    const [{ result }] = await bench.run()
    const { samples, p50 } = result.latency // milliseconds, sorted
    return { median: p50 / 1e3, low: quantile(samples, 0.1) / 1e3, high: quantile(samples, 0.9) / 1e3, samples: samples.length }
  }

  /** The shortest time that the roofline allows, and what bounds it; null where the roofline is not known. */
  #bound({ operations, bytes, compute }) {
    const p = this.#peaks
    if (!p) return null
    const arithmetic = operations / (p[compute] ?? p.f32), memory = bytes / p.bandwidth
    return { seconds: Math.max(arithmetic, memory), by: arithmetic > memory ? compute : 'memory', arithmetic, memory }
  }

  async subject(name, about, cases) {
    const width = 44
    let shown = false
    for (const c of cases) {
      if (!`${name}: ${c.name}`.includes(this.#filter)) continue
      if (!shown) {
        console.log(`\n${name}: ${about}`)
        console.log(`  ${'case'.padEnd(width)} ${'median'.padStart(10)} ${'p10 – p90'.padStart(22)} ${'operations'.padStart(15)} of peak ${'bytes'.padStart(12)} of bandwidth   share of roofline`)
        shown = true
      }
      const result = { subject: name, name: c.name, operations: c.operations, bytes: c.bytes, compute: c.compute, ...(await this.#run(c)) }
      this.#results.push(result)
      if (result.wrong) console.log(`  ${c.name.padEnd(width)} WRONG: ${result.wrong}`)
      else if (result.skipped) console.log(`  ${c.name.padEnd(width)} skipped: ${result.skipped}`)
      else console.log(`  ${c.name.padEnd(width)} ${this.#line(result)}`)
    }
  }

  #line({ seconds, bound, share, shareOfPeak, shareOfBandwidth, operations, bytes, compute }) {
    const { median, low, high } = seconds
    const percent = (value) => (bound ? `${(100 * value).toFixed(1).padStart(5)} %` : '    – ')
    const rates = `${scaled(operations / median, operationUnit(compute)).padStart(15)} ${percent(shareOfPeak)} ${scaled(bytes / median, 'B/s').padStart(12)} ${percent(shareOfBandwidth)}`
    return `${duration(median).padStart(10)} ${`${duration(low)} – ${duration(high)}`.padStart(22)} ${rates}        ${percent(share)}${bound ? ` of ${bound}` : ''}`
  }

  async #run(c) {
    const copies = this.#copies(c)
    let prepared
    try {
      prepared = await c.prepare(copies)
      await prepared.check()
    } catch (error) {
      prepared?.dispose()
      return error.code === 'unsupported' ? { skipped: error.message } : { wrong: error.message }
    }
    try {
      const native = c.product && this.device !== 'cuda'
      const seconds = native ? await this.#timeProduct(c.product, prepared.inputs) : await this.#time(prepared.call, copies)
      const bound = this.#bound(c)
      if (!bound) return { copies, seconds }
      const share = (least) => least / seconds.median
      return {
        copies, seconds, bound: bound.by, share: share(bound.seconds), shareOfPeak: share(bound.arithmetic), shareOfBandwidth: share(bound.memory),
      }
    } finally {
      prepared.dispose()
    }
  }

  /** The whole run as plain data. */
  finish() {
    this.#anchor.dispose()
    const loadAfter = os.loadavg()[0]
    if (this.#facts.loadBefore <= 0.5 && loadAfter > os.availableParallelism() + 0.5) {
      console.log(`\nwarning: the load average rose to ${loadAfter.toFixed(1)}: other work ran beside this`)
    }
    return { ...this.#facts, loadAfter, results: this.#results }
  }
}

/** What `make(i)` promises, one after another; dispose() frees all of it. */
export async function several(copies, make) {
  const items = []
  for (let i = 0; i < copies; i++) items.push(await make(i))
  return Object.assign(items, {
    dispose() {
      for (const item of items.flat()) item?.dispose()
    },
  })
}
