// A process for conversation.test.mjs to kill: saves a growing conversation over and over.
import { loadModel } from 'lapidary'
import { tiny } from './support.mjs'

if (process.send) {
  const model = await loadModel(tiny, { device: 'cpu' })
  const chat = model.chat()
  for (let i = 0; ; i++) {
    if (i % 50 === 0) await chat.send('On and on.', { maxTokens: 10, ignoreEos: true }).result
    await chat.save(process.argv[2])
    if (i === 0) process.send('saving')
  }
}
