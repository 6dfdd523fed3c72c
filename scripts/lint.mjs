// `npm run lint`: Biome over TypeScript and JavaScript, clang-format over C++ where it is installed. `--fix` rewrites.
import { spawnSync } from 'node:child_process'
import { readdirSync } from 'node:fs'
import path from 'node:path'
import { root } from './setup.mjs'

function cppFiles() {
  return ['native', 'cuda', 'test/native', 'test/fuzz'].flatMap((folder) =>
    readdirSync(path.join(root, folder), { recursive: true }).filter((name) => /\.(h|cc|cu|cuh)$/.test(name)).map((name) => path.join(folder, name)))
}

/** The checks that ran, as [name, passed]. */
export function lint({ fix = false } = {}) {
  const run = (command, args) => spawnSync(command, args, { cwd: root, stdio: ['ignore', 2, 2] })
  const biome = path.join(root, 'node_modules/@biomejs/biome/bin/biome')
  const results = [['biome', run(process.execPath, [biome, 'lint', '--error-on-warnings', ...(fix ? ['--write'] : []), '.']).status === 0]]
  if (spawnSync('clang-format', ['--version'], { stdio: 'ignore' }).status === 0) {
    results.push(['clang-format', run('clang-format', [...(fix ? ['-i'] : ['--dry-run', '--Werror']), ...cppFiles()]).status === 0])
  } else {
    process.stderr.write('clang-format is not installed: C++ formatting is not checked\n')
  }
  return results
}

if (process.argv[1] && path.basename(process.argv[1]) === 'lint.mjs') {
  if (!lint({ fix: process.argv.includes('--fix') }).every(([, ok]) => ok)) process.exitCode = 1
}
