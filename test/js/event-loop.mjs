// A process for latency.test.mjs: prints how long the event loop was held up, in ms, phase by phase.
import { loadModel } from 'lapidary'
import { tiny } from './support.mjs'

if (process.argv[2] === 'measure') {
  // One pass before, so that what is measured is the library and not the first compilation of its JavaScript.
  const warm = await loadModel(tiny, { device: 'cpu', threads: 1 })
  await warm.generate('Once', { maxTokens: 5 })
  for await (const _ of warm.chat().send('Hello', { maxTokens: 5 }));
  await warm.close()

  // Time between turns of the loop; the work of a turn shows as the gap before the next.
  let longest = 0, last = 0, running = true
  const tick = () => {
    const now = performance.now()
    longest = Math.max(longest, now - last)
    last = now
    if (running) setImmediate(tick)
  }
  const phases = {}
  const phase = async (name, work) => {
    await new Promise((resolve) => setTimeout(resolve, 20))
    last = performance.now()
    longest = 0
    running = true
    setImmediate(tick)
    const result = await work()
    await new Promise((resolve) => setImmediate(resolve))
    running = false
    phases[name] = longest
    return result
  }

  // What the machine does to a process that has nothing to do.
  await phase('idle', () => new Promise((resolve) => setTimeout(resolve, 1000)))
  const model = await phase('load', () => loadModel(tiny, { device: 'cpu', threads: 1 }))
  const text = 'The receipts of the year from all sources during the fiscal year. '.repeat(200)
  await phase('prefill', () => model.generate(text.slice(0, 5_000), { maxTokens: 1 }))
  await phase('decode', () => model.generate('The whale', { maxTokens: 200, ignoreEos: true }))
  await phase('stream', async () => {
    for await (const _ of model.stream('The whale', { maxTokens: 200, ignoreEos: true }));
  })
  await phase('batch', () => Promise.all(Array.from({ length: 8 }, (_, i) => model.generate('In the year', { maxTokens: 50, seed: i, temperature: 1, ignoreEos: true }))))
  await phase('logits', () => model.logits([Array(500).fill(5)]))
  await phase('close', () => model.close())
  console.log(JSON.stringify(phases))
}
