// The text models of Gemma as data: widths, the tensors with their names in both kinds of files, and what the files say of them.

const gemma3 = { family: 'gemma3', headDim: 256, vocab: 262_144, positions: 32_768, window: 512, pattern: 6, ropeFactor: 1 }

/** `vocab` is the rows of the embedding, a little more than the tokenizer has in the 4B; every `pattern`-th layer is global. */
export const shapes = {
  '270M': { ...gemma3, layers: 18, hidden: 640, ffn: 2048, heads: 4, kvHeads: 1 },
  '1B': { ...gemma3, layers: 26, hidden: 1152, ffn: 6912, heads: 4, kvHeads: 1 },
  '4B': { ...gemma3, layers: 34, hidden: 2560, ffn: 10_240, heads: 8, kvHeads: 4, vocab: 262_208, positions: 131_072, window: 1024, ropeFactor: 8 },
  'gemma2-2B': {
    family: 'gemma2', layers: 26, hidden: 2304, ffn: 9216, heads: 8, kvHeads: 4, headDim: 256, vocab: 256_000, positions: 8192, window: 4096,
    pattern: 2, ropeFactor: 1,
  },
}

export function shapeOf(size) {
  if (Object.hasOwn(shapes, size)) return shapes[size]
  throw new Error(`there is no model ${size}; there are ${Object.keys(shapes).join(', ')}`)
}

/**
 * Every tensor in the order of the files: { hf, gguf, shape: [out, in] or [n], role }. Roles: 'embedding', 'norm', and the matrices by what they do,
 * since the mixes of GGUF treat them differently.
 */
export function* tensorsOf(s) {
  yield { hf: 'model.embed_tokens.weight', gguf: 'token_embd.weight', shape: [s.vocab, s.hidden], role: 'embedding' }
  const q = s.heads * s.headDim, kv = s.kvHeads * s.headDim
  for (let i = 0; i < s.layers; i++) {
    const tensor = (hf, gguf, shape, role) => ({ hf: `model.layers.${i}.${hf}.weight`, gguf: `blk.${i}.${gguf}.weight`, shape, role, layer: i })
    yield tensor('input_layernorm', 'attn_norm', [s.hidden], 'norm')
    yield tensor('self_attn.q_proj', 'attn_q', [q, s.hidden], 'query')
    yield tensor('self_attn.k_proj', 'attn_k', [kv, s.hidden], 'key')
    yield tensor('self_attn.v_proj', 'attn_v', [kv, s.hidden], 'value')
    yield tensor('self_attn.o_proj', 'attn_output', [s.hidden, q], 'output')
    if (s.family === 'gemma3') {
      yield tensor('self_attn.q_norm', 'attn_q_norm', [s.headDim], 'norm')
      yield tensor('self_attn.k_norm', 'attn_k_norm', [s.headDim], 'norm')
    }
    yield tensor('post_attention_layernorm', 'post_attention_norm', [s.hidden], 'norm')
    yield tensor('pre_feedforward_layernorm', 'ffn_norm', [s.hidden], 'norm')
    yield tensor('mlp.gate_proj', 'ffn_gate', [s.ffn, s.hidden], 'gate')
    yield tensor('mlp.up_proj', 'ffn_up', [s.ffn, s.hidden], 'up')
    yield tensor('mlp.down_proj', 'ffn_down', [s.hidden, s.ffn], 'down')
    yield tensor('post_feedforward_layernorm', 'post_ffw_norm', [s.hidden], 'norm')
  }
  yield { hf: 'model.norm.weight', gguf: 'output_norm.weight', shape: [s.hidden], role: 'norm' }
}

export const elementsOf = (shape) => shape.reduce((a, b) => a * b, 1)

/** Weights of the text model, the tied embedding once. */
export function parametersOf(s) {
  let total = 0
  for (const { shape } of tensorsOf(s)) total += elementsOf(shape)
  return total
}

const isGlobal = (s, layer) => layer % s.pattern === s.pattern - 1

/** config.json of a Hugging Face folder. */
export function configOf(s) {
  const gemma2 = s.family === 'gemma2'
  return {
    architectures: [gemma2 ? 'Gemma2ForCausalLM' : 'Gemma3ForCausalLM'],
    model_type: gemma2 ? 'gemma2' : 'gemma3_text',
    dtype: 'bfloat16',
    attention_bias: false,
    attn_logit_softcapping: gemma2 ? 50 : null,
    final_logit_softcapping: gemma2 ? 30 : null,
    bos_token_id: 2,
    eos_token_id: 1,
    pad_token_id: 0,
    head_dim: s.headDim,
    hidden_activation: 'gelu_pytorch_tanh',
    hidden_size: s.hidden,
    intermediate_size: s.ffn,
    max_position_embeddings: s.positions,
    num_attention_heads: s.heads,
    num_hidden_layers: s.layers,
    num_key_value_heads: s.kvHeads,
    query_pre_attn_scalar: s.headDim,
    rms_norm_eps: 1e-6,
    layer_types: Array.from({ length: s.layers }, (_, i) => (isGlobal(s, i) ? 'full_attention' : 'sliding_attention')),
    sliding_window: s.window,
    tie_word_embeddings: true,
    use_cache: true,
    vocab_size: s.vocab,
    rope_theta: gemma2 ? 1e4 : 1e6,
    ...(gemma2 ? {} : { rope_local_base_freq: 1e4, rope_scaling: s.ropeFactor === 1 ? null : { factor: s.ropeFactor, rope_type: 'linear' } }),
  }
}

/** Metadata of a GGUF file without the tokenizer's, as [key, type, value]. */
export function metadataOf(s, name, fileType) {
  const a = s.family
  return [
    ['general.architecture', 'string', a],
    ['general.type', 'string', 'model'],
    ['general.name', 'string', name],
    ['general.file_type', 'u32', fileType],
    ['general.quantization_version', 'u32', 2],
    [`${a}.context_length`, 'u32', s.positions],
    [`${a}.embedding_length`, 'u32', s.hidden],
    [`${a}.block_count`, 'u32', s.layers],
    [`${a}.feed_forward_length`, 'u32', s.ffn],
    [`${a}.attention.head_count`, 'u32', s.heads],
    [`${a}.attention.head_count_kv`, 'u32', s.kvHeads],
    [`${a}.attention.key_length`, 'u32', s.headDim],
    [`${a}.attention.value_length`, 'u32', s.headDim],
    [`${a}.attention.layer_norm_rms_epsilon`, 'f32', 1e-6],
    [`${a}.attention.sliding_window`, 'u32', s.window],
    ...(a === 'gemma2'
      ? [[`${a}.attn_logit_softcapping`, 'f32', 50], [`${a}.final_logit_softcapping`, 'f32', 30]]
      : [[`${a}.rope.freq_base`, 'f32', 1e6], [`${a}.rope.freq_base_swa`, 'f32', 1e4]]),
    ...(s.ropeFactor === 1 ? [] : [[`${a}.rope.scaling.type`, 'string', 'linear'], [`${a}.rope.scaling.factor`, 'f32', s.ropeFactor]]),
  ]
}
