// Attention of one new token over a long cache, as a global layer has it, and over a local layer's window. Formulas: attention.mjs.
import { attentionCase } from './attention.mjs'
import { attentionModelsOf } from './data.mjs'

export const about = 'one token over a long bf16 cache'

export function* cases(session) {
  for (const model of attentionModelsOf(session)) {
    for (const keys of session.quick ? [2048] : [4096, 32_768]) yield attentionCase(session, model, 1, keys, null)
    yield attentionCase(session, model, 1, session.quick ? 2048 : 4096, model.window)
  }
}
