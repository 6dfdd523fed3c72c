// Let a model choose between given answers by allowing only their tokens.  node examples/constrained.mjs [model]
import { loadModel } from 'lapidary'

const model = await loadModel(process.argv[2] ?? 'models/tiny')
try {
  const answers = [' whale', ' ship', ' Congress'].map((text) => model.tokenizer.encode(text))
  const [end] = model.info.eosIds
  const { text } = await model.generate('The captain looked at the', {
    mask: (generated) => {
      const open = answers.filter((ids) => generated.every((id, i) => ids[i] === id))
      return open.map((ids) => ids[generated.length] ?? end)
    },
  })
  console.log(`The captain looked at the${text}`)
} finally {
  await model.close()
}
