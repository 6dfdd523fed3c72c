// `npm run build`: packages, dist/ and the addon, whatever is missing or stale.
import { setUp } from './setup.mjs'

try {
  await setUp()
} catch (error) {
  process.stderr.write(`lapidary: ${error.message}\n`)
  process.exitCode = 1
}
