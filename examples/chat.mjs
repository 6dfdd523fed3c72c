// A conversation of two turns, a second future of it, and a saved copy.  node examples/chat.mjs [model]
// The embedded model learnt to continue text, not to answer: give an instruction-tuned model to read more than blanks.
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { loadModel } from 'lapidary'

const folder = mkdtempSync(path.join(tmpdir(), 'lapidary-'))
const model = await loadModel(process.argv[2] ?? 'models/tiny')
try {
  const chat = model.chat({ system: 'Be brief.' })
  for await (const part of chat.send('What is a whale?', { maxTokens: 30, seed: 1 })) process.stdout.write(part.text)
  console.log('\n--')

  // The second turn computes only what is new; the fork shares the past with it.
  const other = chat.fork()
  console.log((await chat.send('And a ship?', { maxTokens: 20, seed: 1 }).result).text)
  console.log((await other.send('And the sea?', { maxTokens: 20, seed: 1 }).result).text)

  const file = path.join(folder, 'conversation')
  await chat.save(file)
  const restored = await model.loadChat(file)
  console.log(`restored ${restored.messages.length} messages`)
} finally {
  await model.close()
  rmSync(folder, { recursive: true })
}
