// Continue a prompt, once as a whole and once as it comes.  node examples/generate.mjs [model]
import { loadModel } from 'lapidary'

const model = await loadModel(process.argv[2] ?? 'models/tiny')
try {
  const { text, finishReason, usage } = await model.generate('The whale', { maxTokens: 24, temperature: 0.7, topK: 40, seed: 1 })
  console.log(`The whale${text}\n[${finishReason}, ${usage.generatedTokens} tokens in ${usage.decodeMs.toFixed(0)} ms]\n`)

  process.stdout.write('In the year')
  for await (const part of model.stream('In the year', { maxTokens: 24, stop: '.' })) process.stdout.write(part.text)
  console.log()
} finally {
  await model.close()
}
