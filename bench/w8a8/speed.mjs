// What a model costs to run: bytes of its weights, tokens a second of a prompt and of what follows it.

const repeats = 5

/** `{ bytes, prefill, decode }`, the middle of five repeats; prompts are random and differ, so that nothing is found in a cache. */
export async function speedOf(model) {
  const { vocab, maxPositions } = model.info
  const prompt = Math.min(256, maxPositions >> 1), tokens = Math.min(64, maxPositions - prompt - 2)
  const rates = { prefill: [], decode: [] }
  for (let i = 0; i <= repeats; i++) {
    const ids = Int32Array.from({ length: prompt }, () => 4 + Math.floor(Math.random() * (vocab - 4)))
    const { usage } = await model.generate(ids, { temperature: 0, ignoreEos: true, maxTokens: tokens + 1 })
    if (i === 0) continue // touches everything once
    rates.prefill.push((prompt / usage.prefillMs) * 1e3)
    rates.decode.push((tokens / usage.decodeMs) * 1e3)
  }
  const middle = (values) => values.sort((a, b) => a - b)[repeats >> 1]
  return { bytes: model.memory().weightBytes, prefill: middle(rates.prefill), decode: middle(rates.decode) }
}
