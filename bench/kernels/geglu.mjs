// geglu: gelu(gate) · up, element by element, gelu(g) = g / 2 · (1 + tanh(√(2/π) · (g + 0.044715 · g³))).
//   operations  10 per element as the formula has it, tanh being one
//   bytes       gate and up 4 each, out 4 or 2 per element
import { geglu, Tensor } from 'lapidary/ops'
import { modelsOf, numbers } from './data.mjs'
import { near, several, spots } from './harness.mjs'

export const about = 'gelu(gate) · up, f32 in'

const gelu = (g) => (g / 2) * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (g + 0.044715 * g ** 3)))

export function* cases(session) {
  const { device } = session
  for (const { label, ffn } of modelsOf(session)) {
    for (const rows of session.quick ? [64] : [1, 512]) {
      for (const dtype of ['f32', 'bf16']) {
        yield {
          name: `${label} [${rows}, ${ffn}] → ${dtype}`,
          operations: 10 * rows * ffn,
          bytes: (4 + 4 + (dtype === 'f32' ? 4 : 2)) * rows * ffn,
          compute: 'f32',
          async prepare(copies) {
            const gate = numbers(rows * ffn, 1), up = numbers(rows * ffn, 2)
            const sets = await several(copies, async () => [await Tensor.from(gate, [rows, ffn], { device }), await Tensor.from(up, [rows, ffn], { device })])
            const call = async (i) => [await geglu(...sets[i], { dtype })]
            return {
              call,
              dispose: sets.dispose,
              async check() {
                const [out] = await call(0), got = await out.toArray()
                for (const i of spots(rows * ffn, 999)) {
                  const want = gelu(gate[i]) * up[i]
                  near(got[i], want, Math.abs(want) + 1e-3, dtype === 'f32' ? 1e-5 : 2 ** -8, `out[${i}]`)
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
