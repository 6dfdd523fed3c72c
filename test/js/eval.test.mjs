// Evaluations through the API and `lapidary eval`, against straightforward computations from model.logits.
import assert from 'node:assert/strict'
import { once } from 'node:events'
import fs from 'node:fs'
import path from 'node:path'
import test, { after, before } from 'node:test'
import { Worker } from 'node:worker_threads'
import { loadModel } from 'lapidary'
import { failsWith, golden, logSoftmax, meanKl, program, temporaryFolder, testDevice, tiny } from './support.mjs'

let model, rough
before(async () => {
  model = await loadModel(tiny, { device: testDevice, precision: 'f32' })
  rough = await loadModel(tiny, { device: testDevice, precision: 'f32', weights: 'int8' })
})
after(() => Promise.all([model.close(), rough.close()]))

const file = golden('gemma3-small/validation.txt')
const text = () => fs.readFileSync(file, 'utf8')
const someIds = async (count) => (await model.tokenizer.encodeBatch([text()]))[0].slice(0, count)
const close = (got, want, share = 1e-5) => assert.ok(Math.abs(got - want) <= share * Math.abs(want) + 1e-12, `${got}, expected ${want}`)

/** Every scored token with both models' rows: windows one after another, first tokens as context only. */
async function* scoredRows(ids, window, stride, ...models) {
  const vocab = model.info.vocab
  for (let start = 0, done = 1; done < ids.length; start += stride) {
    const piece = ids.slice(start, start + window)
    const logits = await Promise.all(models.map(async (m) => (await m.logits([[m.info.bosId, ...piece]]))[0]))
    for (const end = start + piece.length; done < end; done++) {
      yield { next: ids[done], place: done - start, rows: logits.map((all) => all.subarray((done - start) * vocab, (done - start + 1) * vocab)) }
    }
  }
}

test('perplexity: odd windows and strides, by position too', async () => {
  const ids = await someIds(307)
  for (const [window, stride] of [[101, undefined], [97, 13], [307, 306], [512, undefined]]) {
    const got = await model.perplexity([ids], { window, stride, firstTokens: false })
    let nats = 0, within = 0
    const seen = [0, 0]
    for await (const { next, place, rows } of scoredRows(ids, window, stride ?? window - 1, model)) {
      const surprise = -logSoftmax(rows[0])[next]
      nats += surprise
      if (place < model.info.window) within += surprise
      seen[place < model.info.window ? 0 : 1]++
    }
    assert.equal(got.tokens, 306)
    assert.deepEqual([got.within.tokens, got.beyond.tokens], seen)
    close(got.nats, nats)
    close(got.within.nats, within)
    close(got.perplexity, Math.exp(nats / 306))
  }
  assert.equal((await model.perplexity([ids.slice(0, 40), ids.slice(0, 1)], { window: 2, firstTokens: false })).tokens, 39)
  const whole = await model.perplexity([ids], { window: 101 })
  assert.equal(whole.tokens, 307, 'BOS before a window predicts its first token')
  close((await model.perplexity([text().slice(0, 500)], { window: 50 })).nats, (await model.perplexity([model.tokenizer.encode(text().slice(0, 500))], { window: 50 })).nats)
})

test('divergence from another model', async () => {
  const ids = await someIds(211)
  const got = await rough.divergence(model, [ids], { window: 90, stride: 41 })
  const auto = await rough.divergence(model, [ids], { window: 90, stride: 41, firstTokens: false })
  const kls = []
  let agreed = 0
  const top = (row) => row.indexOf(Math.max(...row))
  for await (const { rows: [a, b] } of scoredRows(ids, 90, 41, model, rough)) {
    kls.push(meanKl(a, b, a.length))
    if (top(a) === top(b)) agreed++
  }
  assert.equal(got.tokens, 211)
  assert.equal(auto.tokens, 210)
  close(auto.meanKl, kls.reduce((sum, kl) => sum + kl) / 210, 1e-4)
  kls.sort((a, b) => a - b)
  close(auto.p99Kl, kls[Math.ceil(0.99 * 210) - 1], 1e-4)
  close(auto.maxKl, kls[209], 1e-4)
  close(auto.agreement, agreed / 210)
  assert.ok(auto.meanKl > 0 && auto.beyond.tokens + auto.within.tokens === 210)
  const other = await loadModel(golden('gemma3-tiny'), { device: testDevice })
  assert.notEqual(other.info.vocab, model.info.vocab)
  await assert.rejects(model.divergence(other, [[3, 4]]), failsWith('invalid_argument', /vocabularies differ/))
  await other.close()
})

test('scoreChoices: tokens across the border of prompt and choice, sums and per byte', async () => {
  const questions = [
    { prompt: 'Once upon a', choices: [' time', ' whale in the sea', 'n é'] },
    { prompt: '', choices: ['The', 'It'] },
  ]
  const got = await model.scoreChoices(questions)
  for (const [i, { prompt, choices }] of questions.entries()) {
    const whole = choices.map((choice) => model.tokenizer.encode(prompt + choice))
    const alone = model.tokenizer.encode(prompt)
    const context = Math.min(...whole.map((ids) => { let n = 0; while (n < alone.length && ids[n] === alone[n]) n++; return n }))
    for (const [j, ids] of whole.entries()) {
      const [logProbabilities] = await model.logProbabilities([[model.info.bosId, ...ids]])
      const sum = logProbabilities.slice(context).reduce((a, b) => a + b)
      close(got[i].logProbabilities[j], sum)
      close(got[i].perByte[j], sum / Buffer.byteLength(choices[j]))
    }
  }
  await assert.rejects(model.scoreChoices([{ prompt: 'a', choices: ['b', ''] }]), failsWith('invalid_argument', /choices\[1\] must not be empty/))
})

test('activations: one entry per layer and site, spikes that point at tokens', async () => {
  const ids = await someIds(150)
  const { tokens, sites } = await model.activations([ids, ids.slice(0, 10)], { window: 100 })
  assert.equal(tokens, 160 + 3)
  assert.equal(sites.length, 4 * model.info.layers)
  for (const [i, site] of sites.entries()) {
    assert.equal(site.layer, Math.floor(i / 4))
    assert.equal(site.site, ['attn_in', 'o_in', 'mlp_in', 'down_in'][i % 4])
    assert.ok(site.max >= site.meanTokenMax && site.max >= site.p90 && site.p90 > site.median && site.median > 0 && site.notFinite === 0)
    assert.equal(site.spikes[0].value, site.max)
    close(site.tokenRatio, site.max / site.medianTokenMax)
    close(site.maxOverMedian, site.max / site.median)
    for (const { position, id } of site.spikes) assert.equal(id, position < 0 ? model.info.bosId : ids[position])
  }
})

test('progress, abort, errors of callbacks, close', async () => {
  const ids = await someIds(2000)
  const told = []
  await model.perplexity([ids.slice(0, 300)], { window: 50, onProgress: (p) => told.push(p) })
  assert.deepEqual(told.at(-1), { done: 300, total: 300 })
  const abort = new AbortController()
  const reason = new Error('enough')
  const stopped = model.perplexity([ids], { window: 3, stride: 1, signal: abort.signal, onProgress: () => abort.abort(reason) })
  await assert.rejects(stopped, (error) => error === reason)
  await assert.rejects(model.activations([ids], { signal: AbortSignal.abort(reason) }), (error) => error === reason)
  const mine = new TypeError('mine')
  const failing = () => { throw mine }
  await assert.rejects(model.divergence(rough, [ids], { window: 3, stride: 1, onProgress: failing }), (error) => error === mine)
  await assert.rejects(model.perplexity([ids], { window: 10, stride: 11 }), failsWith('invalid_argument', /stride is 11/))
  await assert.rejects(model.perplexity('text'), failsWith('invalid_argument', /array of texts/))
  await assert.rejects(model.perplexity([[-1]]), failsWith('invalid_argument', /texts\[0\]\[0\]/))

  const closing = await loadModel(tiny, { device: testDevice })
  const cut = closing.perplexity([ids], { window: 3, stride: 1 })
  // A generation takes turns with the evaluation and is done long before it.
  const { text: generated } = await closing.generate('Once', { maxTokens: 5, temperature: 0 })
  assert.ok(generated.length > 0)
  await Promise.all([closing.close(), assert.rejects(cut, failsWith('disposed'))])
  await assert.rejects(closing.perplexity([ids]), failsWith('disposed'))
})

test('a worker ends in the middle of an evaluation', async () => {
  const code = `
    import { parentPort, workerData } from 'node:worker_threads'
    const { loadModel } = await import(workerData.library)
    const model = await loadModel(workerData.model, { device: workerData.device, precision: 'f32' })
    model.perplexity([workerData.ids], { window: 3, stride: 1, onProgress: ({ done }) => parentPort.postMessage(done) })`
  const workerData = { library: import.meta.resolve('lapidary'), model: tiny, device: testDevice, ids: await someIds(3000) }
  for (let i = 0; i < 5; i++) {
    const worker = new Worker(new URL(`data:text/javascript,${encodeURIComponent(code)}`), { workerData })
    await once(worker, 'message')
    assert.equal(await worker.terminate(), 1)
  }
})

test('lapidary eval: text, another model, statistics, as JSON and as tables', async () => {
  const flags = ['--text', file, '--max-tokens', '300', '--window', '101']
  const { stdout, stderr, code } = await program(['eval', tiny, ...flags, '--json'])
  assert.equal(code, 0, stderr)
  const { text: scored, stats } = JSON.parse(stdout)
  assert.equal(scored.likelihood.tokens, 299)
  assert.equal(scored.stride, 100)
  close(scored.likelihood.nats, (await model.perplexity([await someIds(300)], { window: 101, firstTokens: false })).nats)
  assert.equal(stats, null)
  const beside = await program(['eval', tiny, ...flags, '--against', tiny, '--stats', '--json'])
  const report = JSON.parse(beside.stdout)
  assert.equal(report.text.divergence.meanKl, 0)
  assert.equal(report.text.divergence.agreement, 1)
  assert.deepEqual(report.stats.model, report.stats.against)
  const tables = await program(['eval', tiny, ...flags, '--against', tiny, '--stats'])
  assert.match(tables.stdout, /^all +299 +[\d.]+ +[\d.]+ +0\.000 +0\.000 +0\.000 +100\.00 %$/m)
  assert.match(tables.stdout, /^0 down_in +\d/m)
})

test('lapidary eval: tasks', async (t) => {
  const folder = temporaryFolder(t)
  const write = (name, lines) => {
    const out = path.join(folder, name)
    fs.writeFileSync(out, lines.map((line) => (typeof line === 'string' ? line : JSON.stringify(line))).join('\n'))
    return out
  }
  const questions = [
    { prompt: 'Once upon a', choices: [' time', ' qxj', ' whale of the deep sea'], answer: 0 },
    { prompt: 'The', choices: [' zzz', ' other'], answer: 0 },
    { task: 'second', prompt: 'I', choices: [' was', ' qqqq'], answer: 0 },
  ]
  const scores = await model.scoreChoices(questions.map(({ prompt, choices }) => ({ prompt, choices })))
  const right = (i, list) => (list.indexOf(Math.max(...list)) === questions[i].answer ? 1 : 0)
  const share = (name, at) => at.reduce((sum, i) => sum + right(i, scores[i][name]), 0) / at.length
  const good = write('first.jsonl', [...questions, ''])
  const { stdout, stderr, code } = await program(['eval', tiny, '--tasks', good, '--json', '--against', tiny])
  assert.equal(code, 0, stderr)
  const want = [['first', [0, 1]], ['second', [2]]].map(([task, at]) => (
    { task, questions: at.length, accuracy: share('logProbabilities', at), normalisedAccuracy: share('perByte', at) }))
  assert.deepEqual(JSON.parse(stdout).tasks, want.map((score) => ({ ...score, against: score })))

  for (const [line, pattern] of [
    ['{"prompt": ', /line 2: not JSON/],
    ['[]', /line 2: expected an object, received an array of 0/],
    [{ choices: ['a', 'b'], answer: 0 }, /line 2: "prompt" must be a string, received undefined/],
    [{ prompt: 'a', choices: ['b'], answer: 0 }, /line 2: "choices" must be an array of at least two/],
    [{ prompt: 'a', choices: ['b', ''], answer: 0 }, /line 2: "choices" must hold strings that are not empty/],
    [{ prompt: 'a', choices: ['b', 'c'], answer: 2 }, /line 2: "answer" must be an index from 0 to 1, received 2/],
    [{ prompt: 'a', choices: ['b', 'c'], answer: 0, task: 1 }, /line 2: "task" must be a string/],
  ]) {
    const bad = await program(['eval', tiny, '--tasks', write('bad.jsonl', [questions[0], line])])
    assert.equal(bad.code, 1)
    assert.match(bad.stderr, pattern)
  }
  assert.match((await program(['eval', tiny, '--tasks', write('none.jsonl', ['', ' '])])).stderr, /holds no questions/)
  for (const [args, pattern] of [
    [[], /--text or --tasks is needed/],
    [['--tasks', good, '--stats'], /need --text/],
    [['--text', file, '--window', '1'], /--window must be from 2/],
    [['--text', file, '--window', '10', '--stride', '10'], /--stride must be from 1 to the window less 1, 9/],
  ]) {
    const wrong = await program(['eval', tiny, ...args])
    assert.equal(wrong.code, 2)
    assert.match(wrong.stderr, pattern)
  }
})

test('lapidary eval: plots, or what to install for them', async (t) => {
  const folder = path.join(temporaryFolder(t), 'plots')
  const { stderr, code } = await program(['eval', tiny, '--text', file, '--max-tokens', '60', '--plots', folder, '--against', tiny])
  const installed = await import('vega').then(() => import('vega-lite')).then(() => true, () => false)
  if (!installed) {
    assert.equal(code, 1)
    assert.match(stderr, /npm install vega@6 vega-lite@6/)
    return
  }
  assert.equal(code, 0, stderr)
  for (const name of ['activation-maxima.svg', 'token-ratios.svg']) {
    const svg = fs.readFileSync(path.join(folder, name), 'utf8')
    assert.match(svg, /^<svg /)
    for (const site of ['attn_in', 'o_in', 'mlp_in', 'down_in']) assert.ok(svg.includes(`>${site}<`), site)
  }
})

test('plot specifications hold every layer, site and model', async () => {
  const { plotSpec } = await import('../../dist/cli/eval-plots.js')
  const site = (layer, name, max) => ({ layer, site: name, max, p90: max / 2, median: 0 })
  const activations = { tokens: 1, sites: [site(0, 'attn_in', 4), site(0, 'down_in', 8), site(1, 'attn_in', Infinity)] }
  const measures = [['largest', (s) => s.max], ['90 %', (s) => s.p90], ['median', (s) => s.median]]
  const { data } = plotSpec('x', measures, [{ name: 'before', activations }, { name: 'after', activations }])
  // Zeros and infinities have no place on a logarithmic axis.
  assert.deepEqual(data.values.filter(({ model: name }) => name === 'after'), [
    { model: 'after', layer: 0, site: 'attn_in', measure: 'largest', value: 4 },
    { model: 'after', layer: 0, site: 'attn_in', measure: '90 %', value: 2 },
    { model: 'after', layer: 0, site: 'down_in', measure: 'largest', value: 8 },
    { model: 'after', layer: 0, site: 'down_in', measure: '90 %', value: 4 },
  ])
})
