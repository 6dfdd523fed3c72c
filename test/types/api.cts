// The same package from CommonJS.
import lapidary = require('lapidary')

async function use(): Promise<string> {
  const model: lapidary.Model = await lapidary.loadModel('models/tiny', { device: 'auto' })
  const result: lapidary.GenerateResult = await model.generate('Once')
  if (!(result instanceof lapidary.LapidaryError)) return result.text
  const error: lapidary.LapidaryError = result
  return error.code
}
export = use
