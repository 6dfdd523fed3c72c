// What models cost to run: bytes of their weights, tokens a second of a prompt and of what follows it.

const rounds = 25

/**
 * `{ bytes, prefill, decode }` of each model, the middle of some rounds in which all take turns, so that a busy moment of the machine falls on all
 * alike. Prompts are random and differ, so that nothing is found in a cache.
 */
export async function speedsOf(models) {
  const rates = models.map(() => ({ prefill: [], decode: [] }))
  for (let round = 0; round <= rounds; round++) {
    for (const [i, model] of models.entries()) {
      const { vocab, maxPositions } = model.info
      const prompt = Math.min(256, maxPositions >> 1), tokens = Math.min(64, maxPositions - prompt - 2)
      const ids = Int32Array.from({ length: prompt }, () => 4 + Math.floor(Math.random() * (vocab - 4)))
      const { usage } = await model.generate(ids, { temperature: 0, ignoreEos: true, maxTokens: tokens + 1 })
      if (round === 0) continue // touches everything once
      rates[i].prefill.push((prompt / usage.prefillMs) * 1e3)
      rates[i].decode.push((tokens / usage.decodeMs) * 1e3)
    }
  }
  const middle = (values) => values.sort((a, b) => a - b)[rounds >> 1]
  return models.map((model, i) => ({ bytes: model.memory().weightBytes, prefill: middle(rates[i].prefill), decode: middle(rates[i].decode) }))
}
