// How likely a model finds each word of a text.  node examples/score.mjs [model] [text]
import { loadModel, probabilities } from 'lapidary'

const model = await loadModel(process.argv[2] ?? 'models/tiny')
try {
  const { tokenizer, info } = model
  const ids = [info.bosId, ...tokenizer.encode(process.argv[3] ?? 'The Secretary of the Navy')]
  const [logits] = await model.logits([ids])
  for (let i = 1; i < ids.length; i++) {
    const next = probabilities(logits.subarray((i - 1) * info.vocab, i * info.vocab))
    console.log(`${(100 * next[ids[i]]).toFixed(2).padStart(6)} %  ${JSON.stringify(tokenizer.decode([ids[i]]))}`)
  }
} finally {
  await model.close()
}
