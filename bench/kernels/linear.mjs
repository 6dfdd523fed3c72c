// linear: y[m, n] = x[m, k] · w[n, k]ᵀ, f32 out. Weights f32 (x f32), bf16, Q8_0, Q4_0 (x bf16), and int8 with a scale per row, where x bf16 is
// quantised on the way, a scale per token.
//   operations  2 · m · n · k
//   bytes       x 4 or 2 · m · k + w n · k · (4, 2, 1, 34/32, 18/32) + y 4 · m · n; int8: + scales 4 · n
// Peak: int8 for int8 weights. The others: f32 on the processor, whose contract is exact widening; tensor cores (bf16) on cuda but for f32.
import { linear, Tensor } from 'lapidary/ops'
import { dot, matricesOf, numbers, quantized, scales, weight } from './data.mjs'
import { exact, near, several, spots } from './harness.mjs'

export const about = 'x · weightᵀ → f32'

/** Beside the norms' product: f32 sums in another order; tensor cores also cut off bits of each step. */
const tolerance = { reference: 1e-5, cpu: 1e-5, cuda: 1e-4 }

export function* cases(session) {
  const { device } = session
  for (const { label, n, k } of matricesOf(session)) {
    for (const dtype of ['f32', 'bf16', 'i8', 'q8_0', 'q4_0']) {
      let host
      const rowBytes = k * { f32: 4, bf16: 2, i8: 1, q8_0: 34 / 32, q4_0: 18 / 32 }[dtype], xType = dtype === 'f32' ? 'f32' : 'bf16'
      for (const m of session.quick ? [1, 64] : [1, 512]) {
        yield {
          name: `${dtype} ${label} [${n}, ${k}], m = ${m}`,
          operations: 2 * m * n * k,
          bytes: m * k * (xType === 'f32' ? 4 : 2) + n * rowBytes + (dtype === 'i8' ? 4 * n : 0) + 4 * m * n,
          compute: dtype === 'i8' ? 'int8' : dtype === 'f32' ? 'f32' : session.halfUnit,
          working: n * rowBytes,
          product: 'linear',
          async prepare(copies) {
            host ??= { w: weight(dtype, n, k, 1), s: dtype === 'i8' ? scales(n, 2) : null }
            const data = numbers(m * k, 3)
            const sets = await several(copies, async () => [
              await Tensor.from(data, [m, k], { dtype: xType, device }), await Tensor.from(host.w.data, [n, k], { dtype, device }),
              host.s && (await Tensor.from(host.s, [n], { device })),
            ])
            const call = async (i) => {
              const [x, w, s] = sets[i]
              return [await linear(x, w, s ? { scales: s } : {})]
            }
            return {
              call,
              inputs: sets.map((set) => set.filter(Boolean)),
              dispose: sets.dispose,
              async check() {
                const [y] = await call(0), got = await y.toArray()
                for (const r of spots(m)) {
                  const x = data.subarray(r * k, (r + 1) * k), { q, scale } = dtype === 'i8' ? quantized(x) : {}
                  for (const c of spots(n)) {
                    const w = host.w.row(c), at = `y[${r}, ${c}]`
                    if (dtype === 'i8') exact(got[r * n + c], Math.fround(Math.fround(dot(q, w)) * Math.fround(scale * host.s[c])), at)
                    else near(got[r * n + c], dot(x, w), Math.sqrt(dot(x, x) * dot(w, w)), tolerance[device], at)
                  }
                }
                y.dispose()
              },
            }
          },
        }
      }
    }
  }
}
