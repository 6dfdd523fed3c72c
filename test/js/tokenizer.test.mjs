// The tokenizer through the public API: exact on the real Gemma vocabularies and on the embedded one.
import assert from 'node:assert/strict'
import fs from 'node:fs'
import path from 'node:path'
import test, { before } from 'node:test'
import { loadTokenizer } from 'lapidary'
import { failsWith, golden, readJson, realTokenizer, root, temporaryFolder, tiny } from './support.mjs'

for (const family of ['gemma2', 'gemma3']) {
  test(`${family}: ids and text of the golden file`, async () => {
    const tokenizer = await loadTokenizer(realTokenizer(family))
    const rows = readJson(golden('tokenizer', `${family}.json`))
    const together = await tokenizer.encodeBatch(rows.map((row) => row.text), { special: true })
    for (const [i, row] of rows.entries()) {
      assert.deepEqual(tokenizer.encode(row.text, { special: true }), row.ids, JSON.stringify(row.text))
      assert.deepEqual(together[i], row.ids)
      assert.equal(tokenizer.decode(row.ids), row.decoded, JSON.stringify(row.text))
    }
  })
}

let tokenizer
before(async () => {
  tokenizer = await loadTokenizer(tiny)
})

test('the embedded vocabulary is exact', () => {
  for (const { text, ids } of readJson(golden('gemma3-small/tokens.json'))) assert.deepEqual(tokenizer.encode(text, { special: true }), ids, JSON.stringify(text))
})

test('facts of a vocabulary', () => {
  assert.equal(tokenizer.size, 4096)
  assert.deepEqual([tokenizer.padId, tokenizer.eosId, tokenizer.bosId, tokenizer.unkId], [0, 1, 2, 3])
  assert.equal(tokenizer.addBos, true)
  assert.equal(tokenizer.find('<end_of_turn>'), 6)
  assert.equal(tokenizer.find('no such piece'), -1)
  assert.equal(tokenizer.piece(6), '<end_of_turn>')
  assert.ok(tokenizer.isControl(6))
  assert.ok(!tokenizer.isControl(300))
})

test('control tokens are parsed only where asked', () => {
  const text = 'a<end_of_turn>b<bos>'
  const plain = tokenizer.encode(text)
  assert.ok(!plain.includes(6) && !plain.includes(2))
  assert.equal(tokenizer.decode(plain), text)
  const parsed = tokenizer.encode(text, { special: true })
  assert.ok(parsed.includes(6) && parsed.at(-1) === 2)
  assert.equal(tokenizer.decode(parsed), text)
  assert.equal(tokenizer.decode(parsed, { special: false }), 'ab')
})

test('any text survives encoding and decoding', () => {
  for (const text of ['', ' ', '\n\n \t', 'Grüße, 日本語 👩‍👩‍👧', '\u0000\u007f', 'a'.repeat(1000), '\u2028 x', ' lead and trail ']) {
    assert.equal(tokenizer.decode(tokenizer.encode(text)), text)
  }
})

test('a stream never splits a character and joins to the whole', () => {
  const text = 'Grüße 👩‍👩‍👧 日本語'
  const ids = tokenizer.encode(text)
  const stream = tokenizer.stream()
  const pieces = ids.map((id) => stream.push(id))
  pieces.push(stream.flush())
  assert.equal(pieces.join(''), text)
  for (const piece of pieces) assert.ok(!piece.includes('\ufffd'), JSON.stringify(pieces))
  const cut = tokenizer.stream()
  const [first] = tokenizer.encode('👩')
  assert.equal(cut.push(tokenizer.encode('👩').length > 1 ? first : 300) + cut.flush(), tokenizer.decode([tokenizer.encode('👩').length > 1 ? first : 300]))
})

test('what does not fit is refused by name', async (t) => {
  assert.throws(() => tokenizer.encode(5), failsWith('invalid_argument', /encode: text must be a string, received 5/))
  assert.throws(() => tokenizer.encode('a', { specials: true }), failsWith('invalid_argument', /unknown option "specials"; did you mean "special"\?/))
  assert.throws(() => tokenizer.decode([4096]), failsWith('invalid_argument', /decode: ids\[0\] must be a token id from 0 to 4095, received 4096/))
  assert.throws(() => tokenizer.decode([1.5]), failsWith('invalid_argument'))
  assert.throws(() => tokenizer.piece(-1), failsWith('invalid_argument'))
  await assert.rejects(loadTokenizer('/no/such/folder'), failsWith('bad_file', /no\/such\/folder/))
  const folder = temporaryFolder(t)
  await assert.rejects(loadTokenizer(folder), failsWith('bad_file'))
  fs.writeFileSync(path.join(folder, 'tokenizer.json'), '{"model": {')
  await assert.rejects(loadTokenizer(folder), failsWith('bad_file'))
})

test('a rejection carries the stack of its call', async () => {
  const error = await loadTokenizer('/no/such/folder').catch((e) => e)
  assert.match(error.stack, /tokenizer\.test\.mjs/)
})

test('a vocabulary inside a GGUF file', async () => {
  const folder = golden('gguf/gemma3-tiny')
  const file = fs.readdirSync(folder).find((name) => name.endsWith('.gguf'))
  const inside = await loadTokenizer(path.join(folder, file))
  for (const { text, ids } of readJson(folder, 'tokens.json')) assert.deepEqual(inside.encode(text, { special: true }), ids, JSON.stringify(text))
})

test('a tokenizer.json by its own path', async () => {
  const direct = await loadTokenizer(path.join(root, 'models/tiny/tokenizer.json'))
  assert.deepEqual(direct.encode('Hello, world!'), tokenizer.encode('Hello, world!'))
})
