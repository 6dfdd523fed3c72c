// lapidary/ops: every operation against a few lines of arithmetic, on the processor (and on the graphics device where there is one), and what it refuses.
import assert from 'node:assert/strict'
import test from 'node:test'
import { createRequire } from 'node:module'
import * as ops from 'lapidary/ops'

const { Tensor, KvCache } = ops
const places = ['reference', 'cpu', ...(ops.devices().some((d) => d.kind === 'cuda' && d.available) ? ['cuda'] : [])]

/** Numbers that repeat from run to run, about normal. */
function bells(count, seed) {
  let state = seed * 2654435761 + 1 >>> 0
  const next = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return state / 2 ** 31 - 1
  }
  return Float32Array.from({ length: count }, () => next() + next() + next())
}
const norm = (x) => Math.sqrt(x.reduce((s, v) => s + v * v, 0))
function close(got, want, bar, what) {
  assert.equal(got.length, want.length, what)
  const error = norm(Float64Array.from(want, (w, i) => got[i] - w)) / norm(Float64Array.from(want))
  assert.ok(error <= bar, `${what}: relative error ${error}`)
}
const rejects = (promise, code, pattern) => assert.rejects(promise, (e) => e instanceof ops.LapidaryError && e.code === code && pattern.test(e.message))

for (const device of places) {
  const from = (data, shape, dtype) => Tensor.from(data, shape, { device, ...(dtype && { dtype }) })

  test(`${device}: tensors go in and come out`, async () => {
    const x = await from(bells(12, 1), [3, 4])
    assert.deepEqual([x.shape, x.dtype, x.device, x.size], [[3, 4], 'f32', device, 12])
    assert.deepEqual(await x.toArray(), bells(12, 1))
    const rounded = await (await from(Float32Array.of(1, 1.00390625, -Math.PI, NaN, 1 + 2 ** -8), [5], 'bf16')).toArray()
    assert.deepEqual([...rounded], [1, 1, -3.140625, NaN, 1])
    assert.deepEqual(await (await from(Int8Array.of(-128, 127), [2])).toArray(), Int8Array.of(-128, 127))
    assert.deepEqual(await (await Tensor.zeros([2], { device, dtype: 'i32' })).toArray(), new Int32Array(2))
    x.dispose()
    x.dispose()
    await rejects(x.toArray(), 'disposed', /disposed/)
  })

  test(`${device}: rmsNorm, geglu, add, softCap, rope`, async () => {
    const rows = 3, dim = 40, x = bells(rows * dim, 2), w = bells(dim, 3), y = bells(rows * dim, 4)
    const tx = await from(x, [rows, dim]), ty = await from(y, [rows, dim])
    const normed = Float64Array.from(x, (v, i) => {
      const row = x.subarray(Math.floor(i / dim) * dim, Math.floor(i / dim) * dim + dim)
      return v / Math.sqrt(row.reduce((s, r) => s + r * r, 0) / dim + 1e-6) * (1 + w[i % dim])
    })
    close(await (await ops.rmsNorm(tx, await from(w, [dim]))).toArray(), normed, 1e-6, 'rmsNorm')
    close(await (await ops.rmsNorm(tx, await from(w, [dim]), { dtype: 'bf16' })).toArray(), normed, 4e-3, 'rmsNorm to bf16')
    const gelu = (v) => 0.5 * v * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (v + 0.044715 * v ** 3)))
    close(await (await ops.geglu(tx, ty)).toArray(), x.map((v, i) => gelu(v) * y[i]), 1e-6, 'geglu')
    close(await (await ops.add(tx, ty)).toArray(), x.map((v, i) => Math.fround(v + y[i])), 0, 'add')
    close(await (await ops.softCap(tx, 2)).toArray(), x.map((v) => 2 * Math.tanh(v / 2)), 1e-6, 'softCap')
    const positions = [0, 7, 1000], heads = await from(x, [rows, 2, 20])
    const rotated = Float64Array.from(x, (v, i) => {
      const j = i % 20 % 10, angle = positions[Math.floor(i / dim)] * 10000 ** (-2 * j / 20), other = i % 20 < 10 ? -x[i + 10] : x[i - 10]
      return v * Math.cos(angle) + other * Math.sin(angle)
    })
    close(await (await ops.rope(heads, positions)).toArray(), rotated, 1e-5, 'rope')
  })

  test(`${device}: products and quantisation`, async () => {
    const m = 5, n = 24, k = 64, x = bells(m * k, 5), w = bells(n * k, 6)
    const tx = await from(x, [m, k]), product = new Float64Array(m * n)
    for (let i = 0; i < m; i++) for (let j = 0; j < n; j++) for (let l = 0; l < k; l++) product[i * n + j] += x[i * k + l] * w[j * k + l]
    close(await (await ops.linear(tx, await from(w, [n, k]))).toArray(), product, 1e-5, 'linear')
    close(await (await ops.linear(await from(x, [m, k], 'bf16'), await from(w, [n, k], 'bf16'))).toArray(), product, 1e-2, 'linear in bf16')
    const a = await ops.quantizeRows(tx), b = await ops.quantizeRows(await from(w, [n, k]))
    const [qa, sa, qb, sb] = await Promise.all([a.q.toArray(), a.scales.toArray(), b.q.toArray(), b.scales.toArray()])
    for (let i = 0; i < m; i++) {
      const most = Math.max(...x.subarray(i * k, i * k + k).map(Math.abs))
      assert.equal(sa[i], Math.fround(most / 127))
      assert.ok(qa.subarray(i * k, i * k + k).every((q, l) => Math.abs(q * sa[i] - x[i * k + l]) <= sa[i] * 0.50001))
    }
    const exact = Float32Array.from({ length: m * n }, (_, i) => {
      let sum = 0
      for (let l = 0; l < k; l++) sum += qa[Math.floor(i / n) * k + l] * qb[i % n * k + l]
      return Math.fround(sum) * Math.fround(sa[Math.floor(i / n)] * sb[i % n])
    })
    assert.deepEqual(await (await ops.gemmInt8(a.q, a.scales, b.q, b.scales)).toArray(), exact)
    assert.deepEqual(await (await ops.linear(tx, b.q, { scales: b.scales })).toArray(), exact, 'a linear layer with int8 weights is the same product')
    close(await (await ops.linear(tx, b.q, { scales: b.scales, activations: 'none' })).toArray(), product, 1e-2, 'weight-only')
    const packed = await ops.pack(b.q)
    assert.equal(packed.packed, device === 'cpu')
    assert.deepEqual([packed.shape, packed.dtype, packed.device, b.q.packed], [[n, k], 'i8', device, false])
    b.q.dispose()
    assert.deepEqual(await (await ops.gemmInt8(a.q, a.scales, packed, b.scales)).toArray(), exact, 'a packed weight has the same products')
    const twice = await ops.pack(packed)
    packed.dispose()
    assert.deepEqual(await (await ops.linear(tx, twice, { scales: b.scales })).toArray(), exact, 'packing twice changes nothing')
    close(await (await ops.embed([3], twice, { scales: b.scales })).toArray(), [...w.subarray(3 * k, 4 * k)], 2e-2, 'embed from a packed table')
    for (const dtype of ['f32', 'bf16']) {
      const rows = await from(w, [n, k], dtype), made = await ops.pack(rows)
      close(await (await ops.linear(tx, made)).toArray(), await (await ops.linear(tx, rows)).toArray(), 1e-5, `packed ${dtype}`)
    }
    close(await (await ops.embed([3, 0, 3], await from(w, [n, k]), { scale: 2 })).toArray(), [3, 0, 3].flatMap((id) => [...w.subarray(id * k, id * k + k)].map((v) => 2 * v)), 1e-7, 'embed')
  })

  test(`${device}: attention over a cache`, async () => {
    const tokens = 70, heads = 4, kvHeads = 2, dim = 32
    const q = bells(tokens * heads * dim, 7), k = bells(tokens * kvHeads * dim, 8), v = bells(tokens * kvHeads * dim, 9)
    const plain = (window, cap) => {
      const out = new Float64Array(q.length)
      for (let t = 0; t < tokens; t++) {
        for (let h = 0; h < heads; h++) {
          const g = Math.floor(h / 2), scores = []
          for (let p = Math.max(0, t - window + 1); p <= t; p++) {
            let s = 0
            for (let d = 0; d < dim; d++) s += q[(t * heads + h) * dim + d] * k[(p * kvHeads + g) * dim + d]
            s /= Math.sqrt(dim)
            scores.push([p, Math.exp(cap ? cap * Math.tanh(s / cap) : s)])
          }
          const total = scores.reduce((s, [, e]) => s + e, 0)
          for (const [p, e] of scores) for (let d = 0; d < dim; d++) out[(t * heads + h) * dim + d] += e / total * v[(p * kvHeads + g) * dim + d]
        }
      }
      return out
    }
    for (const [dtype, bar] of [['f32', 1e-5], ['bf16', 1e-2], ['i8', 2e-2]]) {
      const cache = await KvCache.create({ kvHeads, headDim: dim, dtype, device })
      const cut = 50 * kvHeads * dim
      // Not awaited: calls of one device keep their order.
      void cache.append(await from(k.slice(0, cut), [50, kvHeads, dim]), await from(v.slice(0, cut), [50, kvHeads, dim]))
      await cache.append(await from(k.slice(cut), [20, kvHeads, dim]), await from(v.slice(cut), [20, kvHeads, dim]))
      assert.equal(cache.length, tokens)
      const tq = await from(q, [tokens, heads, dim])
      close(await (await ops.attention(tq, cache)).toArray(), plain(Infinity, 0), bar, `${dtype} full`)
      close(await (await ops.attention(tq, cache, { window: 9, softcap: 3 })).toArray(), plain(9, 3), bar, `${dtype} window, softcap`)
      const last = await from(q.slice(-2 * heads * dim), [2, heads, dim])
      close(await (await ops.attention(last, cache, { window: 9 })).toArray(), plain(9, 0).slice(-2 * heads * dim), bar, `${dtype} two tokens`)
      await rejects(ops.attention(tq, cache, { firstPosition: 1 }), 'invalid_argument', /positions 1 to 70, the cache holds 70/)
    }
  })

  test(`${device}: sampling`, async () => {
    const logits = await from(bells(3 * 500, 10), [3, 500])
    const greedy = await ops.sample(logits, { temperature: 0 })
    const values = await logits.toArray()
    for (let r = 0; r < 3; r++) assert.equal(values[r * 500 + greedy[r]], Math.max(...values.subarray(r * 500, r * 500 + 500)))
    const settings = [{ topK: 5 }, { topP: 0.5 }, { minP: 0.1, temperature: 0.7 }]
    assert.deepEqual(await ops.sample(logits, settings, { seeds: [1, 2, 3n] }), await ops.sample(await Tensor.from(values, [3, 500], { device: 'reference' }), settings, { seeds: [1, 2, 3n] }))
    await rejects(ops.sample(logits, [{}]), 'invalid_argument', /3 rows/)
  })

  test(`${device}: products are timed one by one`, { skip: device === 'cuda' && 'a product there is only queued' }, async () => {
    const [m, n, k] = [2, 48, 64], a = await ops.quantizeRows(await from(bells(m * k, 1), [m, k])), b = await ops.quantizeRows(await from(bells(n * k, 2), [n, k]))
    const wide = await from(bells(m * k, 3), [m, k]), input = [a.q, a.scales, b.q, b.scales], start = performance.now()
    const seconds = [await ops.timeProducts('gemmInt8', [input, input], 5), await ops.timeProducts('linear', [[wide, b.q, b.scales], [wide, wide]], 4)]
    const wall = (performance.now() - start) / 1e3
    assert.deepEqual(seconds.map((list) => list.length), [5, 4])
    assert.ok(seconds.flat().every((s) => s > 0) && seconds.flat().reduce((sum, s) => sum + s, 0) < wall)
    await rejects(ops.timeProducts('gemmInt8', [input], 0), 'invalid_argument', /calls/)
    await rejects(ops.timeProducts('add', [input], 1), 'invalid_argument', /product/)
    await rejects(ops.timeProducts('gemmInt8', [], 1), 'invalid_argument', /no inputs/)
    await rejects(ops.timeProducts('gemmInt8', [[a.q, a.scales, wide, b.scales]], 1), 'invalid_argument', /b must be i8/)
  })

  if (device !== 'cuda') {
    test(`${device}: products over no columns are zeros, for few rows and for many`, async () => {
      for (const m of [1, 16, 40]) {
        const q = await Tensor.zeros([m, 0], { device, dtype: 'i8' }), scales = await from(new Float32Array(m).fill(1), [m])
        const w = await Tensor.zeros([48, 0], { device, dtype: 'i8' }), rowScales = await from(new Float32Array(48).fill(1), [48]), x = await Tensor.zeros([m, 0], { device })
        const results = [await ops.gemmInt8(q, scales, w, rowScales), await ops.linear(x, w, { scales: rowScales }), await ops.linear(x, await Tensor.zeros([48, 0], { device }))]
        for (const y of results) assert.deepEqual([y.shape, await y.toArray()], [[m, 48], new Float32Array(m * 48)])
      }
    })
  }

  test(`${device}: what does not fit is refused with both sides named`, async () => {
    const a = await from(bells(6, 1), [2, 3]), b = await from(bells(8, 1), [2, 4]), q = await Tensor.zeros([2, 3], { device, dtype: 'i8' })
    await rejects(ops.linear(a, b), 'invalid_argument', /\[2, 3\].*\[2, 4\]/)
    await rejects(ops.pack(await Tensor.zeros([4], { device })), 'invalid_argument', /pack: weight must be \[out, in\].*\[4\]/)
    await rejects(ops.pack(await Tensor.zeros([2, 4], { device, dtype: 'i32' })), 'invalid_argument', /it is i32/)
    if (device === 'cpu') {
      const packed = await ops.pack(q)
      await rejects(packed.toArray(), 'unsupported', /packed weight cannot be read/)
      await rejects(ops.gemmInt8(packed, a, q, a), 'invalid_argument', /a is a packed weight/)
    }
    await rejects(ops.add(a, b), 'invalid_argument', /\[2, 3\].*\[2, 4\]/)
    await rejects(ops.rmsNorm(a, await from(bells(4, 1), [4])), 'invalid_argument', /rows of 3.*4/)
    await rejects(ops.gemmInt8(a, a, q, a), 'invalid_argument', /a must be i8, it is f32/)
    await rejects(ops.linear(a, q), 'invalid_argument', /weight scales is missing/)
    await rejects(ops.embed([9], a), 'invalid_argument', /ids\[0\]/)
    await rejects(ops.rmsNorm(a, b, { epsilon: 1 }), 'invalid_argument', /unknown option "epsilon"/)
    await rejects(Tensor.from(bells(3, 1), [2, 2], { device }), 'invalid_argument', /16 bytes, got 12/)
    await rejects(Tensor.from(bells(4, 1), [2, 2], { device, dtype: 'i8' }), 'invalid_argument', /an Int8Array/)
    await rejects(Tensor.zeros([2, 33], { device, dtype: 'q8_0' }), 'invalid_argument', /whole blocks of 32/)
    await rejects(ops.add(a, await Tensor.from(bells(6, 1), [2, 3], { device: device === 'cpu' ? 'reference' : 'cpu' })), 'invalid_argument', /one device/)
  })
}

test('peaks: the processor measured, within what a core can do', async () => {
  const { cores } = ops.devices().find((d) => d.kind === 'cpu')
  const p = await ops.peaks({ device: 'cpu', seconds: 0.02 })
  assert.equal(p.source, 'measured')
  // Far above what memory gives a core, and what its widest units do in a cycle at 7 GHz: a loop that the compiler threw out would be beyond these.
  const most = { bandwidth: 2e11, f32: 128 * 7e9, int8: 1024 * 7e9, bf16: 512 * 7e9 }
  for (const [name, perCore] of Object.entries(most)) {
    if (name === 'bf16' && p.bf16 === null) continue
    assert.ok(p[name] > 1e7 && p[name] < perCore * cores, `${name}: ${p[name]} on ${cores} cores`)
  }
  assert.ok(p.cacheBytes === null || (p.cacheBytes >= 2 ** 17 && Number.isInteger(p.cacheBytes)), `cacheBytes: ${p.cacheBytes}`)
  assert.deepEqual(Object.keys(await ops.peaks({ device: 'reference', seconds: 0.001 })), Object.keys(p), 'the reference runs on the processor')
  await rejects(ops.peaks({ seconds: 0 }), 'invalid_argument', /seconds must be a finite number above 0/)
})

test('require gives the same operations', async () => {
  const required = createRequire(import.meta.url)('lapidary/ops')
  assert.deepEqual(Object.keys(required).sort(), Object.keys(ops).sort())
  const x = await required.Tensor.from(Float32Array.of(1, 2), [1, 2], { device: 'cpu' })
  assert.deepEqual(await (await required.add(x, x)).toArray(), Float32Array.of(2, 4))
})

test('a device that is not there is named', async () => {
  if (places.includes('cuda')) return
  await rejects(Tensor.zeros([1], { device: 'cuda' }), 'cuda', /not available/)
})
