// Prefill and decode at the true shapes of Gemma 3, through the public API, with random weights: what a user waits for, without a download.
//   node bench/gpu/end-to-end.mjs [--device cuda] [--shapes 270M,1B,4B] [--json FILE] [--seconds 80] [--read-gbps X] [--tiny]
// One line of JSON per figure. --read-gbps, measured by lapidary_gpu_bench, gives decode its floor: every weight read once per token.
import { appendFileSync, closeSync, mkdtempSync, openSync, rmSync, statfsSync, writeFileSync, writeSync } from 'node:fs'
import { randomFillSync } from 'node:crypto'
import os from 'node:os'
import path from 'node:path'
import { parseArgs } from 'node:util'
import { loadModel } from 'lapidary'

const { values: options } = parseArgs({
  options: {
    device: { type: 'string', default: 'cuda' }, shapes: { type: 'string', default: '270M,1B,4B' }, json: { type: 'string' },
    seconds: { type: 'string', default: '80' }, 'read-gbps': { type: 'string', default: '0' }, tiny: { type: 'boolean' },
  },
})
const end = performance.now() + Number(options.seconds) * 1e3
const median = (list) => [...list].sort((a, b) => a - b)[list.length >> 1]

const shapes = {
  '270M': { layers: 18, hidden: 640, ffn: 2048, heads: 4, kvHeads: 1, headDim: 256, window: 512, vocab: 262144 },
  '1B': { layers: 26, hidden: 1152, ffn: 6912, heads: 4, kvHeads: 1, headDim: 256, window: 512, vocab: 262144 },
  '4B': { layers: 34, hidden: 2560, ffn: 10240, heads: 8, kvHeads: 4, headDim: 256, window: 1024, vocab: 262144 },
  tiny: { layers: 2, hidden: 64, ffn: 128, heads: 2, kvHeads: 1, headDim: 32, window: 16, vocab: 512 },
}

function configOf(s) {
  return {
    architectures: ['Gemma3ForCausalLM'], model_type: 'gemma3_text', dtype: 'bfloat16', attention_bias: false, attn_logit_softcapping: null,
    final_logit_softcapping: null, bos_token_id: 2, eos_token_id: 1, pad_token_id: 0, head_dim: s.headDim, hidden_activation: 'gelu_pytorch_tanh',
    hidden_size: s.hidden, intermediate_size: s.ffn, num_attention_heads: s.heads, num_hidden_layers: s.layers, num_key_value_heads: s.kvHeads,
    layer_types: Array.from({ length: s.layers }, (_, i) => (i % 6 === 5 ? 'full_attention' : 'sliding_attention')), max_position_embeddings: 32768,
    query_pre_attn_scalar: s.headDim, rms_norm_eps: 1e-6, rope_theta: 1e6, rope_local_base_freq: 1e4, sliding_window: s.window, tie_word_embeddings: true,
    vocab_size: s.vocab, use_cache: true,
  }
}

function* tensorsOf(s) {
  yield ['model.embed_tokens.weight', [s.vocab, s.hidden]]
  for (let i = 0; i < s.layers; i++) {
    const layer = `model.layers.${i}`
    for (const norm of ['input_layernorm', 'post_attention_layernorm', 'pre_feedforward_layernorm', 'post_feedforward_layernorm']) {
      yield [`${layer}.${norm}.weight`, [s.hidden]]
    }
    for (const norm of ['q_norm', 'k_norm']) yield [`${layer}.self_attn.${norm}.weight`, [s.headDim]]
    yield [`${layer}.self_attn.q_proj.weight`, [s.heads * s.headDim, s.hidden]]
    for (const name of ['k_proj', 'v_proj']) yield [`${layer}.self_attn.${name}.weight`, [s.kvHeads * s.headDim, s.hidden]]
    yield [`${layer}.self_attn.o_proj.weight`, [s.hidden, s.heads * s.headDim]]
    for (const name of ['gate_proj', 'up_proj']) yield [`${layer}.mlp.${name}.weight`, [s.ffn, s.hidden]]
    yield [`${layer}.mlp.down_proj.weight`, [s.hidden, s.ffn]]
  }
  yield ['model.norm.weight', [s.hidden]]
}

/** bf16 of magnitude 2^-7 to 2^-5 with random signs, about what a trained matrix has: 32 MiB that are written again and again. */
function randomBlock() {
  const bits = new Uint16Array(1 << 24)
  randomFillSync(bits)
  for (let i = 0; i < bits.length; i++) bits[i] = (bits[i] & 0x80ff) | 0x3c00
  return Buffer.from(bits.buffer)
}

/** A checkpoint folder with random weights; gives the number of weights. */
function writeModel(folder, s, block) {
  const header = {}
  let offset = 0, weights = 0
  for (const [name, shape] of tensorsOf(s)) {
    const count = shape.reduce((a, b) => a * b)
    header[name] = { dtype: 'BF16', shape, data_offsets: [offset, offset + 2 * count] }
    offset += 2 * count
    weights += count
  }
  const text = Buffer.from(JSON.stringify(header))
  const padded = Buffer.concat([text, Buffer.alloc((8 - (text.length % 8)) % 8, 0x20)])
  const size = Buffer.alloc(8)
  size.writeBigUInt64LE(BigInt(padded.length))
  const file = openSync(path.join(folder, 'model.safetensors'), 'w')
  try {
    writeSync(file, size)
    writeSync(file, padded)
    for (let left = offset; left > 0;) left -= writeSync(file, block, 0, Math.min(left, block.length))
  } finally {
    closeSync(file)
  }
  writeFileSync(path.join(folder, 'config.json'), JSON.stringify(configOf(s)))
  return weights
}

function folderWithRoom(bytes) {
  const room = (folder) => {
    try {
      const { bavail, bsize } = statfsSync(folder)
      return bavail * bsize
    } catch {
      return 0
    }
  }
  return ['/dev/shm', os.tmpdir()].find((folder) => room(folder) > 1.2 * bytes)
}

function report(figure) {
  process.stdout.write(`${Object.entries(figure).map(([k, v]) => `${k} ${typeof v === 'number' && !Number.isInteger(v) ? v.toPrecision(4) : v}`).join('  ')}\n`)
  if (options.json) appendFileSync(options.json, `${JSON.stringify(figure)}\n`)
}

async function measure(name, s, weights, folder, parameters) {
  const start = performance.now()
  const model = await loadModel(folder, { device: options.device, weights, prefixCache: 0, maxBatchTokens: 2048, prefillChunk: 2048 })
  const base = { family: 'end to end', model: name, weights, device: model.device }
  try {
    report({ ...base, case: 'load', ms: performance.now() - start })
    const ids = (count) => Int32Array.from({ length: count }, () => 8 + Math.floor(Math.random() * (s.vocab - 8)))
    const run = (prompt, maxTokens) => model.generate(ids(prompt), { maxTokens, temperature: 0, ignoreEos: true })
    await run(16, 4)
    const rounds = options.tiny ? 1 : 3, decode = options.tiny ? 3 : 64
    for (const prompt of options.tiny ? [20] : [512, 2048, 8192]) {
      const prefill = [], tokens = [], first = []
      for (let i = 0; i < rounds && performance.now() < end; i++) {
        const { usage } = await run(prompt, decode)
        prefill.push((usage.promptTokens / usage.prefillMs) * 1e3)
        first.push(usage.prefillMs)
        tokens.push(((usage.generatedTokens - 1) / usage.decodeMs) * 1e3)
      }
      if (!prefill.length) return
      report({ ...base, case: `prefill ${prompt}`, tokens_per_second: median(prefill), first_token_ms: median(first) })
      const bytes = parameters * (weights === 'int8' ? 1 : 2), gbps = (bytes * median(tokens)) / 1e9
      const share = Number(options['read-gbps']) > 0 && !options.tiny ? { share_of_read_bandwidth: gbps / Number(options['read-gbps']) } : {}
      report({ ...base, case: `decode after ${prompt}`, tokens_per_second: median(tokens), weight_gbps: gbps, ...share })
    }
    const together = options.tiny ? 2 : 8
    const began = performance.now()
    const results = await Promise.all(Array.from({ length: together }, () => run(16, decode)))
    const generated = results.reduce((sum, r) => sum + r.usage.generatedTokens, 0)
    report({ ...base, case: `${together} at once`, tokens_per_second: generated / ((performance.now() - began) / 1e3) })
  } finally {
    await model.close()
  }
}

let failed = 0
const block = randomBlock()
for (const name of options.tiny ? ['tiny'] : options.shapes.split(',')) {
  const s = shapes[name]
  if (!s) throw new Error(`--shapes: there is no ${name}; there are ${Object.keys(shapes).join(', ')}`)
  if (performance.now() > end) {
    report({ family: 'end to end', model: name, skipped: 'no time left' })
    continue
  }
  const bytes = [...tensorsOf(s)].reduce((sum, [, shape]) => sum + 2 * shape.reduce((a, b) => a * b), 0)
  const place = folderWithRoom(bytes)
  if (!place) {
    report({ family: 'end to end', model: name, skipped: `no folder has room for ${(bytes / 1e9).toFixed(1)} GB of weights` })
    continue
  }
  const folder = mkdtempSync(path.join(place, 'lapidary-shape-'))
  try {
    const parameters = writeModel(folder, s, block)
    for (const weights of ['as-is', 'int8']) if (performance.now() < end) await measure(name, s, weights, folder, parameters)
  } catch (error) {
    failed++
    report({ family: 'end to end', model: name, error: error.message })
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}
process.exitCode = failed ? 1 : 0
