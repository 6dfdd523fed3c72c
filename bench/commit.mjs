// The state of the sources that a report is of.
import { spawnSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'

const folder = fileURLToPath(new URL('.', import.meta.url))

/** The short hash of the commit, with " and changes" where files differ from it; null outside of a repository. */
export function commit() {
  const git = (...args) => spawnSync('git', args, { cwd: folder, encoding: 'utf8' })
  const { status, stdout } = git('rev-parse', '--short', 'HEAD')
  if (status !== 0) return null
  return `${stdout.trim()}${git('status', '--porcelain', '--untracked-files=no').stdout.trim() ? ' and changes' : ''}`
}
