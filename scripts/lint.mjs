// `npm run lint`: Biome over TypeScript and JavaScript, clang-format over C++ where it is at hand. `--fix` rewrites.
import { spawnSync } from 'node:child_process'
import { readdirSync } from 'node:fs'
import path from 'node:path'
import { root } from './setup.mjs'

function cppFiles() {
  return ['native', 'cuda', 'test/native', 'test/fuzz', 'test/cuda', 'test/emulator', 'bench/gpu', 'bench/w8a8'].flatMap((folder) =>
    readdirSync(path.join(root, folder), { recursive: true }).filter((name) => /\.(h|cc|cu|cuh)$/.test(name)).map((name) => path.join(folder, name)))
}

/** The one in .cache (see .ci/run), which has the version that the sources are formatted with; else CLANG_FORMAT or nothing. */
function clangFormat() {
  const candidates = [process.env.CLANG_FORMAT, path.join(root, '.cache/clang-format/bin/clang-format')]
  return candidates.find((file) => file && spawnSync(file, ['--version'], { stdio: 'ignore' }).status === 0)
}

/** The checks that ran, as [name, passed]. */
export function lint({ fix = false } = {}) {
  const run = (command, args) => spawnSync(command, args, { cwd: root, stdio: ['ignore', 2, 2] })
  const biome = path.join(root, 'node_modules/@biomejs/biome/bin/biome')
  const results = [['biome', run(process.execPath, [biome, 'lint', '--error-on-warnings', ...(fix ? ['--write'] : []), '.']).status === 0]]
  const formatter = clangFormat()
  if (formatter) {
    results.push(['clang-format', run(formatter, [...(fix ? ['-i'] : ['--dry-run', '--Werror']), ...cppFiles()]).status === 0])
  } else {
    process.stderr.write('clang-format is not at hand: C++ formatting is not checked\n')
  }
  return results
}

if (process.argv[1] && path.basename(process.argv[1]) === 'lint.mjs') {
  if (!lint({ fix: process.argv.includes('--fix') }).every(([, ok]) => ok)) process.exitCode = 1
}
