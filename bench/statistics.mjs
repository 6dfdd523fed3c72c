// What the benchmarks of whole models share.

/** Figures of several repeats: the middle one, the least, the greatest, and all in the order of measuring. */
export function spread(values) {
  const sorted = [...values].sort((a, b) => a - b), middle = sorted.length >> 1
  const median = sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2
  return { median, low: sorted[0], high: sorted.at(-1), values }
}

/** The figures of several runs as one. */
export const merged = (spreads) => spread(spreads.flatMap(({ values }) => values))

export const digits = (value) => (value >= 100 ? value.toFixed(0) : value.toPrecision(3))
