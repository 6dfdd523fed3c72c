// The program from outside: results on stdout, everything else on stderr, exit codes.
import assert from 'node:assert/strict'
import fs from 'node:fs'
import path from 'node:path'
import test from 'node:test'
import { devices, loadModel } from 'lapidary'
import { assertSameBits, golden, program, readJson, readSafetensors, temporaryFolder, tiny } from './support.mjs'

const commands = ['generate', 'chat', 'inspect', 'tokenize', 'logits', 'perplexity', 'eval', 'quantize', 'bench', 'devices', 'build']

test('help of the program and of every command, without the addon', async () => {
  const env = { LAPIDARY_BINARY: '/nowhere.node' }
  const { stdout, code } = await program(['--help'], { env })
  assert.equal(code, 0)
  for (const name of commands) {
    assert.match(stdout, new RegExp(`^ {2}${name} `, 'm'))
    const page = await program([name, '--help'], { env })
    assert.equal(page.code, 0)
    assert.match(page.stdout, new RegExp(`^usage: lapidary ${name}`))
    assert.equal(page.stderr, '')
  }
  assert.match((await program(['--version'])).stdout, /^\d+\.\d+\.\d+\n$/)
})

test('mistakes in the command line end with 2 and say what was meant', async () => {
  for (const [args, pattern] of [
    [[], /usage:/],
    [['generat'], /unknown command "generat"; did you mean "generate"\?/],
    [['generate'], /expected MODEL, received 0 arguments/],
    [['generate', tiny], /--prompt is needed/],
    [['generate', tiny, '--promt', 'x'], /unknown flag --promt; did you mean "prompt"\?/],
    [['generate', tiny, '--prompt', 'x', '--top-k', 'many'], /--top-k must be a number, received "many"/],
    [['generate', tiny, '--prompt', 'x', '--device', 'gpu'], /--device must be one of/],
    [['tokenize', tiny], /--jsonl is needed/],
    [['perplexity', tiny, '--text', golden('gemma3-small/validation.txt'), '--window', '99999'], /--window must be from 1 to 2047/],
  ]) {
    const { code, stdout, stderr } = await program(args)
    assert.equal(code, 2, args.join(' '))
    assert.equal(stdout, '')
    assert.match(stderr, pattern)
  }
})

test('failures end with 1 and a message without a stack', async () => {
  const { code, stdout, stderr } = await program(['generate', '/no/such/model', '--prompt', 'x'])
  assert.equal(code, 1)
  assert.equal(stdout, '')
  assert.match(stderr, /^lapidary: .*no\/such\/model.* \(bad_file\)\n$/)
})

test('generate', async () => {
  const { samples } = readJson(golden('gemma3-small/expected.json'))
  const flags = ['--precision', 'f32', '--max-tokens', '200', '--temperature', '0', '--ignore-eos']
  const { stdout, stderr, code } = await program(['generate', tiny, '--prompt', samples[1].prompt, ...flags])
  assert.equal(code, 0, stderr)
  assert.equal(stdout, `${samples[1].greedy}\n`)
  assert.equal(stderr, '')
  const fromStdin = await program(['generate', tiny, '--prompt', '-', '--json', ...flags], { input: samples[2].prompt })
  const result = JSON.parse(fromStdin.stdout)
  assert.equal(result.text, samples[2].greedy)
  assert.equal(result.finishReason, 'length')
  assert.equal(result.usage.generatedTokens, 200)
  assert.equal(result.tokens.length, 200)
  const seeded = ['generate', tiny, '--prompt', 'Once', '--temperature', '1', '--seed', '12345678901234567890', '--max-tokens', '10', '--json', '--logprobs', '1']
  const [a, b] = await Promise.all([program(seeded), program(seeded)])
  assert.equal(JSON.parse(a.stdout).text, JSON.parse(b.stdout).text)
  assert.equal(JSON.parse(a.stdout).seed, '12345678901234567890')
  assert.equal(JSON.parse(a.stdout).logprobs[0].top.length, 1)
  const biased = await program(['generate', tiny, '--prompt', 'Once', '--logit-bias', '1=1000', '--json'])
  assert.equal(JSON.parse(biased.stdout).finishReason, 'stop')
})

test('Ctrl-C ends a generation with 130', async () => {
  let sent = false
  const { code, signal } = await program(['generate', tiny, '--prompt', 'The', '--ignore-eos'], {
    onStdout: (child, text) => {
      if (sent || text.length < 10) return
      sent = true
      child.kill('SIGINT')
    },
  })
  assert.equal(signal, null)
  assert.equal(code, 130)
})

test('chat, line by line from a pipe', async (t) => {
  const file = path.join(temporaryFolder(t), 'talk')
  const flags = ['--max-tokens', '8', '--seed', '1', '--json']
  const first = await program(['chat', tiny, ...flags, '--system', 'Be brief.'], { input: `Hello.\nWhy?\n/undo\nWhy?\n/save ${file}\n` })
  assert.equal(first.code, 0, first.stderr)
  const answers = first.stdout.trim().split('\n').map((line) => JSON.parse(line))
  assert.equal(answers.length, 3)
  assert.equal(answers[2].text, answers[1].text)
  const second = await program(['chat', tiny, ...flags, '--load', file], { input: 'Again.\n/exit\nnever\n' })
  assert.equal(second.code, 0, second.stderr)
  assert.equal(second.stdout.trim().split('\n').length, 1)
  const plain = await program(['chat', tiny, '--max-tokens', '4'], { input: 'Hello.\n/what\n' })
  assert.match(plain.stderr, /unknown: \/what/)
  assert.ok(plain.stdout.endsWith('\n'))
})

test('inspect: folder, single file, GGUF', async () => {
  const gguf = golden('gguf/gemma3-tiny', fs.readdirSync(golden('gguf/gemma3-tiny')).find((name) => name.endsWith('.gguf')))
  for (const target of [tiny, path.join(tiny, 'model.safetensors'), gguf]) {
    const text = await program(['inspect', target])
    assert.equal(text.code, 0, text.stderr)
    assert.match(text.stdout, /^family {10}gemma3$/m)
    assert.match(text.stdout, /^layers .* local \(window \d+\), \d+ global$/m)
    assert.match(text.stdout, /^tensors /m)
    const { info, tensors, memory } = JSON.parse((await program(['inspect', target, '--json', '--context', '128'])).stdout)
    assert.ok(info.parameters > 0)
    assert.ok(tensors.length > 10)
    assert.ok(memory.totalBytes > 0)
  }
})

test('tokenize: ids, errors, order, every kind of line separator inside text', async () => {
  const lines = [
    { text: 'Hello, world!' }, { text: 'a\u2028b\r\nc' }, { text: 5 }, { text: '' }, { text: '<bos>' }, { no: 'text' },
  ].map((line) => JSON.stringify(line))
  lines.splice(3, 0, 'not json', '7')
  const model = await loadModel(tiny, { device: 'cpu' })
  for (const special of [false, true]) {
    const { stdout, code } = await program(['tokenize', tiny, '--jsonl', ...(special ? ['--special'] : [])], { input: lines.join('\n') })
    assert.equal(code, 0)
    const answers = stdout.trimEnd().split('\n').map((line) => JSON.parse(line))
    assert.equal(answers.length, lines.length)
    assert.deepEqual(answers[0].ids, model.tokenizer.encode('Hello, world!'))
    assert.deepEqual(answers[1].ids, model.tokenizer.encode('a\u2028b\r\nc'))
    for (const i of [2, 3, 4, 7]) assert.equal(typeof answers[i].error, 'string')
    assert.deepEqual(answers[5].ids, [])
    assert.deepEqual(answers[6].ids, special ? [2] : model.tokenizer.encode('<bos>'))
  }
  await model.close()
})

test('tokenize --chat: user text is text, unless --special', async () => {
  const line = JSON.stringify({ messages: [{ role: 'user', content: 'a<end_of_turn>' }], generationPrompt: true })
  const ends = async (...flags) => {
    const { stdout } = await program(['tokenize', tiny, '--jsonl', '--chat', 'gemma3', ...flags], { input: `${line}\n{"messages": 5}\n` })
    const [answer, failed] = stdout.trim().split('\n').map((l) => JSON.parse(l))
    assert.equal(typeof failed.error, 'string')
    assert.equal(answer.text, '<bos><start_of_turn>user\na<end_of_turn><end_of_turn>\n<start_of_turn>model\n')
    return answer.ids.filter((id) => id === 6).length
  }
  assert.equal(await ends(), 1)
  assert.equal(await ends('--special'), 2)
})

test('logits', async (t) => {
  const folder = temporaryFolder(t)
  const tokens = path.join(folder, 'tokens.json'), out = path.join(folder, 'out.safetensors')
  const sequences = [[2, 300, 400, 500], [7]]
  fs.writeFileSync(tokens, JSON.stringify(sequences))
  const { code, stdout, stderr } = await program(['logits', tiny, '--tokens', tokens, '--out', out])
  assert.equal(code, 0, stderr)
  assert.equal(stdout, '')
  const model = await loadModel(tiny, { precision: 'f32' })
  const written = readSafetensors(out)
  assert.deepEqual(Object.keys(written).sort(), ['logits.0', 'logits.1'])
  for (const [i, want] of (await model.logits(sequences)).entries()) {
    assert.deepEqual(written[`logits.${i}`].shape, [sequences[i].length, 4096])
    assertSameBits(written[`logits.${i}`].data, want, `logits.${i}`)
  }
  await model.close()
  fs.writeFileSync(tokens, '[2, 300]')
  assert.equal((await program(['logits', tiny, '--tokens', tokens, '--out', out])).code, 0)
  assert.deepEqual(readSafetensors(out)['logits.0'].shape, [2, 4096])
  for (const bad of ['[', '{}', '[]', '[[4096]]', '[[1.5]]']) {
    fs.writeFileSync(tokens, bad)
    const failed = await program(['logits', tiny, '--tokens', tokens, '--out', out])
    assert.equal(failed.code, 1, bad)
    assert.match(failed.stderr, /invalid_argument/)
  }
  assert.deepEqual(readSafetensors(out)['logits.0'].shape, [2, 4096])
})

test('perplexity: every token once, and the windows as documented', async () => {
  const flags = ['--text', golden('gemma3-small/validation.txt'), '--json', '--max-tokens', '600']
  const ask = async (...more) => JSON.parse((await program(['perplexity', tiny, ...flags, ...more])).stdout)
  const plain = await ask('--window', '200')
  assert.equal(plain.tokens, 600)
  assert.ok(Math.abs(plain.natsPerToken - plain.nats / 600) < 1e-9)
  assert.ok(Math.abs(plain.perplexity - Math.exp(plain.natsPerToken)) < 1e-9)
  assert.ok(plain.natsPerToken > 3 && plain.natsPerToken < 5, `${plain.natsPerToken} nats per token`)
  const overlapping = await ask('--window', '200', '--stride', '50')
  assert.equal(overlapping.tokens, 600)
  assert.ok(overlapping.nats < plain.nats, 'more context predicts better')
  const text = await program(['perplexity', tiny, ...flags.filter((flag) => flag !== '--json')])
  assert.match(text.stdout, /^600 tokens, \d\.\d{4} nats per token, perplexity \d+\.\d{3}\n$/)
})

test('devices', async () => {
  assert.deepEqual(JSON.parse((await program(['devices', '--json'])).stdout), devices())
  assert.match((await program(['devices'])).stdout, /^cpu /m)
})

test('a reader that goes away is no failure', async () => {
  const { code, stderr } = await program(['generate', tiny, '--prompt', 'The', '--ignore-eos', '--max-tokens', '300'], {
    onStdout: (child) => child.stdout.destroy(),
  })
  assert.equal(stderr, '')
  assert.equal(code, 0)
})
