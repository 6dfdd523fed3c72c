// Attention of a whole prompt, full and windowed. Formulas: attention.mjs.
import { attentionCase } from './attention.mjs'
import { attentionModelsOf } from './data.mjs'

export const about = 'a prompt over its own keys, bf16 cache'

export function* cases(session) {
  for (const model of attentionModelsOf(session)) {
    const tokens = session.quick ? 256 : 2048
    yield attentionCase(session, model, tokens, tokens, null)
    // A window of half the prompt at most, so that it shows.
    yield attentionCase(session, model, tokens, tokens, Math.min(model.window, tokens / 2))
  }
}
