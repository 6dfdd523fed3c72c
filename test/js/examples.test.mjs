// Every example runs, says something, and is short.
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import fs from 'node:fs'
import path from 'node:path'
import test from 'node:test'
import { root } from './support.mjs'

const examples = fs.readdirSync(path.join(root, 'examples')).filter((name) => /\.[cm]js$/.test(name))

for (const name of examples) {
  test(name, () => {
    const file = path.join(root, 'examples', name)
    assert.ok(fs.readFileSync(file, 'utf8').split('\n').length <= 40)
    const { status, stdout, stderr } = spawnSync(process.execPath, [file], { cwd: root, encoding: 'utf8', timeout: 120_000 })
    assert.equal(status, 0, stderr)
    assert.ok(stdout.trim().length > 10, stdout)
  })
}

test('there are examples', () => assert.ok(examples.length >= 4))
