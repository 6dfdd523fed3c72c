// sample: one token per row of f32 logits over Gemma 3's vocabulary of 262,144.
//   operations  3 per logit: temperature, exponential, sum
//   bytes       4 · rows · vocab: every logit once
// The ids cross back, so on cuda too a call ends when they are here.
import { sample, Tensor } from 'lapidary/ops'
import { bells } from './data.mjs'
import { exact, several } from './harness.mjs'

export const about = 'a token of each row of logits'

const vocab = 262_144
const ways = [
  ['greedy', { temperature: 0 }],
  ['temperature 1', { temperature: 1 }],
  ['top-k 64, top-p 0.95', { temperature: 1, topK: 64, topP: 0.95 }],
  ['top-p 0.9', { temperature: 1, topP: 0.9 }],
]

export function* cases(session) {
  const { device } = session
  for (const rows of session.quick ? [1] : [1, 8]) {
    for (const [label, settings] of ways) {
      yield {
        name: `${label}, [${rows}, ${vocab}]`,
        operations: 3 * rows * vocab,
        bytes: 4 * rows * vocab,
        compute: 'f32',
        async prepare(copies) {
          const data = bells(rows * vocab, 1)
          const sets = await several(copies, () => Tensor.from(data, [rows, vocab], { device }))
          return {
            async call(i) {
              await sample(sets[i], settings)
              return []
            },
            dispose: sets.dispose,
            async check() {
              const got = await sample(sets[0], settings)
              let want
              if (settings.temperature === 0) {
                want = Array.from({ length: rows }, (_, r) => data.subarray(r * vocab, (r + 1) * vocab).reduce((best, x, i, row) => (x > row[best] ? i : best), 0))
              } else {
                const plain = await Tensor.from(data, [rows, vocab], { device: 'reference' })
                want = await sample(plain, settings)
                plain.dispose()
              }
              for (let r = 0; r < rows; r++) exact(got[r], want[r], `token of row ${r}`)
            },
          }
        },
      }
    }
  }
}
