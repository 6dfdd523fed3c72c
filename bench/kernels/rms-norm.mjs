// rmsNorm: x · (1 / sqrt(mean(x²) + eps)) · (1 + w) of f32 rows, f32 or bf16 out.
//   operations  5 per element: the square and its sum, two products, 1 + w
//   bytes       x 4 · rows · dim + w 4 · dim + out 4 or 2 · rows · dim
import { rmsNorm, Tensor } from 'lapidary/ops'
import { dot, modelsOf, numbers } from './data.mjs'
import { near, several, spots } from './harness.mjs'

export const about = 'rows of f32'

export function* cases(session) {
  const { device } = session, tokens = session.quick ? 64 : 512
  for (const { label, hidden, heads, headDim } of modelsOf(session)) {
    const shapes = [['hidden', 1, hidden], ['hidden', tokens, hidden], ['query heads', tokens * heads, headDim]]
    for (const [what, rows, dim] of shapes) {
      for (const dtype of ['f32', 'bf16']) {
        yield {
          name: `${label} ${what} [${rows}, ${dim}] → ${dtype}`,
          operations: 5 * rows * dim,
          bytes: 4 * rows * dim + 4 * dim + (dtype === 'f32' ? 4 : 2) * rows * dim,
          compute: 'f32',
          async prepare(copies) {
            const data = numbers(rows * dim, 1), gain = numbers(dim, 2)
            const sets = await several(copies, async () => [await Tensor.from(data, [rows, dim], { device }), await Tensor.from(gain, [dim], { device })])
            const call = async (i) => [await rmsNorm(...sets[i], { dtype })]
            return {
              call,
              dispose: sets.dispose,
              async check() {
                const [out] = await call(0), got = await out.toArray()
                for (const r of spots(rows)) {
                  const x = data.subarray(r * dim, (r + 1) * dim), inverse = 1 / Math.sqrt(dot(x, x) / dim + 1e-6)
                  for (let i = 0; i < dim; i++) {
                    const want = x[i] * inverse * (1 + gain[i])
                    near(got[r * dim + i], want, Math.abs(want), dtype === 'f32' ? 1e-5 : 2 ** -8, `out[${r}, ${i}]`)
                  }
                }
                out.dispose()
              },
            }
          },
        }
      }
    }
  }
}
