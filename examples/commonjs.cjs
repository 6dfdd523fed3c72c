// The same from CommonJS, with a time limit.  node examples/commonjs.cjs [model]
const { LapidaryError, loadModel } = require('lapidary')

async function main() {
  const model = await loadModel(process.argv[2] ?? 'models/tiny')
  try {
    const { text } = await model.generate('I have the honor to', { maxTokens: 20, signal: AbortSignal.timeout(10_000) })
    console.log(text)
  } catch (error) {
    if (error instanceof LapidaryError) console.error(`${error.code}: ${error.message}`)
    else throw error
  } finally {
    await model.close()
  }
}

main()
