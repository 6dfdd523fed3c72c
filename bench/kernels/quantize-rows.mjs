// quantizeRows: q = round(x · (1 / scale)), scale = max |row| / 127, of f32 or bf16 rows.
//   operations  4 per element: magnitude, maximum, product, rounding
//   bytes       x 4 or 2 · rows · dim + q rows · dim + scales 4 · rows
import { quantizeRows, Tensor } from 'lapidary/ops'
import { modelsOf, numbers, quantized } from './data.mjs'
import { exact, several, spots } from './harness.mjs'

export const about = 'rows to int8, a scale each'

export function* cases(session) {
  const { device } = session, rows = session.quick ? 64 : 512
  for (const { label, hidden, ffn } of modelsOf(session)) {
    for (const dim of [hidden, ffn]) {
      for (const dtype of ['f32', 'bf16']) {
        yield {
          name: `${label} ${dtype} [${rows}, ${dim}]`,
          operations: 4 * rows * dim,
          bytes: (dtype === 'f32' ? 4 : 2) * rows * dim + rows * dim + 4 * rows,
          compute: 'f32',
          async prepare(copies) {
            const data = numbers(rows * dim, 1)
            const sets = await several(copies, async () => [await Tensor.from(data, [rows, dim], { dtype, device })])
            const call = async (i) => Object.values(await quantizeRows(sets[i][0]))
            return {
              call,
              dispose: sets.dispose,
              async check() {
                const { q, scales } = await quantizeRows(sets[0][0])
                const got = await q.toArray(), gotScales = await scales.toArray()
                for (const r of spots(rows)) {
                  const want = quantized(data.subarray(r * dim, (r + 1) * dim))
                  exact(gotScales[r], want.scale, `scales[${r}]`)
                  for (let i = 0; i < dim; i++) exact(got[r * dim + i], want.q[i], `q[${r}, ${i}]`)
                }
                q.dispose()
                scales.dispose()
              },
            }
          },
        }
      }
    }
  }
}
