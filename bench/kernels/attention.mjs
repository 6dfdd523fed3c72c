// Attention over a bf16 cache, for the prefill and the decode benchmarks.
//   operations  4 · head_dim · heads · pairs of a query and a key it sees: 2 · head_dim for its score, as many for its value. Softmax is not counted.
//   bytes       q and out 4 · tokens · heads · head_dim each; keys and values that any query sees, once: 2 · 2 · keys · kv_heads · head_dim
import { attention, KvCache, Tensor } from 'lapidary/ops'
import { dot, numbers } from './data.mjs'
import { near, several, spots } from './harness.mjs'

/** Keys are made in pieces of this many positions, one like the other. */
const piece = 2048

/** Beside the largest value: bf16 probabilities and scores in base 2 on cuda. */
const tolerance = { reference: 2e-5, cpu: 2e-5, cuda: 2e-2 }

/** Softmax of the scores of one query and head, times the values, in f64. */
function plain(q, k, v, { kvHeads, headDim }, group, first, end) {
  const row = (data, p) => data.subarray(((p % piece) * kvHeads + group) * headDim, ((p % piece) * kvHeads + group + 1) * headDim)
  const scores = new Float64Array(end - first), out = new Float64Array(headDim)
  let most = -Infinity, total = 0
  for (let p = first; p < end; p++) {
    scores[p - first] = dot(q, row(k, p)) / Math.sqrt(headDim)
    most = Math.max(most, scores[p - first])
  }
  for (let p = first; p < end; p++) {
    const weight = Math.exp(scores[p - first] - most), value = row(v, p)
    total += weight
    for (let d = 0; d < headDim; d++) out[d] += weight * value[d]
  }
  return out.map((x) => x / total)
}

/** `tokens` queries at the end of a cache of `keys` positions; window null: all earlier keys. */
export function attentionCase(session, model, tokens, keys, window) {
  const { device } = session, { heads, kvHeads, headDim } = model, first = keys - tokens
  const seen = (t) => Math.min(first + t + 1, window ?? Infinity)
  let pairs = 0
  for (let t = 0; t < tokens; t++) pairs += seen(t)
  const used = Math.min(keys, tokens - 1 + (window ?? Infinity)), cacheBytes = 2 * 2 * used * kvHeads * headDim
  return {
    name: `${model.label} ${heads}/${kvHeads} × ${headDim}, ${tokens > 1 ? `${tokens} tokens` : `${keys} keys`}${window ? `, window ${window}` : ''}`,
    operations: 4 * headDim * heads * pairs,
    bytes: 2 * 4 * tokens * heads * headDim + cacheBytes,
    compute: session.halfUnit,
    async prepare(copies) {
      const size = Math.min(piece, keys), options = window ? { window } : {}
      const q = numbers(tokens * heads * headDim, 5), k = numbers(size * kvHeads * headDim, 6), v = numbers(size * kvHeads * headDim, 7)
      const sets = await several(copies, async () => {
        const cache = await KvCache.create({ kvHeads, headDim, dtype: 'bf16', device })
        for (let from = 0; from < keys; from += piece) {
          const count = Math.min(piece, keys - from), part = count * kvHeads * headDim
          const tk = await Tensor.from(k.subarray(0, part), [count, kvHeads, headDim], { device })
          const tv = await Tensor.from(v.subarray(0, part), [count, kvHeads, headDim], { device })
          await cache.append(tk, tv)
          tk.dispose()
          tv.dispose()
        }
        return [await Tensor.from(q, [tokens, heads, headDim], { device }), cache]
      })
      const call = async (i) => [await attention(...sets[i], options)]
      return {
        call,
        dispose: sets.dispose,
        async check() {
          const [out] = await call(0), got = await out.toArray()
          for (const t of spots(tokens, 3)) {
            for (const h of spots(heads, 2)) {
              const at = (t * heads + h) * headDim, end = first + t + 1
              const want = plain(q.subarray(at, at + headDim), k, v, model, Math.floor((h * kvHeads) / heads), end - seen(t), end)
              const most = want.reduce((a, x) => Math.max(a, Math.abs(x)), 0)
              for (let d = 0; d < headDim; d++) near(got[at + d], want[d], most, tolerance[device], `out[${t}, ${h}, ${d}]`)
            }
          }
          out.dispose()
        },
      }
    },
  }
}
