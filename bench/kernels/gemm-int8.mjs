// gemmInt8: y[m, n] = (Σ a[m, k] · b[n, k]) · (sa[m] · sb[n]), int8 in, int32 sums, f32 out.
// b is packed before the clock starts, as a model's weights are.
//   operations  2 · m · n · k
//   bytes       a m · k + b n · k + scales 4 · (m + n) + y 4 · m · n
import { gemmInt8, pack, Tensor } from 'lapidary/ops'
import { dot, int8s, matricesOf, scales, weight } from './data.mjs'
import { exact, several, spots } from './harness.mjs'

export const about = 'int8 · int8 → f32'

export function* cases(session) {
  const { device } = session
  for (const { label, n, k } of matricesOf(session)) {
    let host
    for (const m of session.quick ? [1, 64] : [1, 16, 512]) {
      yield {
        name: `${label} [${n}, ${k}], m = ${m}`,
        operations: 2 * m * n * k,
        bytes: m * k + n * k + 4 * (m + n) + 4 * m * n,
        compute: 'int8',
        working: n * k,
        product: 'gemmInt8',
        async prepare(copies) {
          host ??= { w: weight('i8', n, k, 1), s: scales(n, 2) }
          const x = int8s(m * k, 3), s = scales(m, 4)
          const sets = await several(copies, async () => {
            const rows = await Tensor.from(host.w.data, [n, k], { device }), packed = await pack(rows)
            rows.dispose()
            return [await Tensor.from(x, [m, k], { device }), await Tensor.from(s, [m], { device }), packed, await Tensor.from(host.s, [n], { device })]
          })
          const call = async (i) => [await gemmInt8(...sets[i])]
          return {
            call,
            inputs: sets,
            dispose: sets.dispose,
            async check() {
              const [y] = await call(0), got = await y.toArray()
              for (const r of spots(m)) {
                for (const c of spots(n)) {
                  const want = Math.fround(Math.fround(dot(x.subarray(r * k, (r + 1) * k), host.w.row(c))) * Math.fround(s[r] * host.s[c]))
                  exact(got[r * n + c], want, `y[${r}, ${c}]`)
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
