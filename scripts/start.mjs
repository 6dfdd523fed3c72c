// `npm start`: sets up what is missing, then runs the command line tool; without arguments it writes a text with the embedded model.
// `npm start -- <arguments>` passes the arguments on. Needs nothing but Node until the set-up has run.
import { spawn } from 'node:child_process'
import path from 'node:path'
import { root, setUp } from './setup.mjs'

const sample = ['generate', path.join(root, 'models/tiny'), '--prompt', 'Fellow-citizens of the Senate', '--max-tokens', '80', '--temperature', '0.8', '--seed', '7']

const [major] = process.versions.node.split('.').map(Number)
if (major < 20) {
  process.stderr.write(`lapidary needs Node 20 or newer; this is ${process.version}\n`)
  process.exit(1)
}

try {
  await setUp()
} catch (error) {
  process.stderr.write(`lapidary: ${error.message}\n`)
  process.exit(1)
}

const given = process.argv.slice(2)
const child = spawn(process.execPath, [path.join(root, 'dist/cli/main.js'), ...(given.length ? given : sample)], { stdio: 'inherit' })
process.on('SIGINT', () => {}) // the tool gets it too, and decides
process.on('SIGTERM', () => child.kill('SIGTERM'))
child.on('error', (error) => {
  process.stderr.write(`lapidary: ${error.message}\n`)
  process.exit(1)
})
child.on('close', (code, signal) => process.exit(signal ? 130 : code))
