// Compiled, never run: every public function used as its types allow, and refused where they do not.
import {
  type Activations, type Chat, type ChoiceScores, type CushionReport, type Device, type DivergenceByPosition, type ErrorCode, type GeneratedPart, type GenerateResult,
  type Inspection, LapidaryError, type Likelihood, type LikelihoodByPosition, type MemoryEstimate, type Message, type Model, type Quantized, type Run, type Tokenizer,
  devices, estimateMemory, inspect, loadModel, loadTokenizer, probabilities,
} from 'lapidary'
import * as ops from 'lapidary/ops'

type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false
function same<A, B>(_: Same<A, B>): void {}

const model: Model = await loadModel('models/tiny', { device: 'cpu', precision: 'f32', kvCache: 'int8', threads: 2, onProgress: ({ loaded, total }) => loaded / total })
// @ts-expect-error no such device
await loadModel('models/tiny', { device: 'gpu' })
// @ts-expect-error no such option
await loadModel('models/tiny', { devices: 'cpu' })

const result = await model.generate('Once', { maxTokens: 5, temperature: 0.5, seed: 1n, stop: ['a', 'b'], logitBias: { 3: -1 }, logprobs: 2 })
same<typeof result, GenerateResult>(true)
same<GenerateResult['finishReason'], 'stop' | 'length' | 'stop-sequence' | 'aborted'>(true)
await model.generate(new Int32Array([1, 2]), { mask: async (generated: readonly number[]) => (generated.length > 3 ? null : [1, 2]) })
await model.generate([1, 2], { logitBias: new Map([[1, 2]]), mask: () => new Uint32Array(128) })
// @ts-expect-error a prompt is text or ids
await model.generate(5)

const run: Run = model.stream('Once')
for await (const part of run) same<typeof part, GeneratedPart>(true)
same<Run['result'], Promise<GenerateResult>>(true)
// @ts-expect-error a run is not a promise
run.then(() => {})

const logits = await model.logits([[1, 2], [3]], { signal: new AbortController().signal })
same<typeof logits, Float32Array[]>(true)
await model.logits([new Int32Array([1])])
const hidden: Float32Array[] = await model.hiddenStates([1, 2, 3])

const { perplexity, within }: LikelihoodByPosition = await model.perplexity(['a', [1, 2], new Int32Array(2)], { window: 10, stride: 5, firstTokens: false })
same<typeof within, Likelihood>(true)
const small: Quantized = await model.quantize({ scheme: 'w8a8', activations: 'static', smooth: 0.5, calibration: ['a', [1, 2]], prefix: null, onProgress: ({ phase, secondsLeft }) => `${phase} ${secondsLeft}` })
const { report: { sites } } = small
const { report: { cushionReport } } = await model.quantize({ weights: 'tensor', activations: 'tensor', cushion: { search: { texts: ['a'], tau: 0.4 }, tune: true } })
same<typeof cushionReport, CushionReport | null>(true)
// @ts-expect-error progress is told for the whole
await model.quantize({ cushion: { search: { texts: ['a'], onProgress() {} } } })
await small.save('out', { signal: AbortSignal.abort() })
const apart: DivergenceByPosition = await model.divergence(model, ['a'], { onProgress: ({ done, total }) => done / total })
const [scores]: ChoiceScores[] = await model.scoreChoices([{ prompt: 'a', choices: ['b'] }], { signal: new AbortController().signal })
const activations: Activations = await model.activations(['a'], { window: 10 })
same<Activations['sites'][number]['site'], 'attn_in' | 'o_in' | 'mlp_in' | 'down_in'>(true)
// @ts-expect-error a question has choices
await model.scoreChoices([{ prompt: 'a' }])
// @ts-expect-error activations have no stride
await model.activations(['a'], { stride: 1 })

const history: Message[] = [{ role: 'user', content: [{ type: 'text', text: 'a' }] }, { role: 'assistant', content: 'b' }]
const chat: Chat = model.chat({ system: 'Be brief.', messages: history, format: 'gemma3' })
for await (const { text } of chat.send('Hello', { maxTokens: 3 })) text.trim()
const { usage } = await chat.send('Again').result
usage.promptTokens.toFixed()
const copy: Chat = chat.fork()
copy.rewind(1)
await chat.save('x')
const restored: Chat = await model.loadChat('x', { format: 'gemma2' })
same<Chat['messages'], readonly Message[]>(true)
// @ts-expect-error messages cannot be pushed to
restored.messages.push({ role: 'user', content: '' })
await chat[Symbol.asyncDispose]()

same<Model['tokenizer'], Tokenizer | null>(true)
const tokenizer: Tokenizer = await loadTokenizer('models/tiny')
const ids: number[] = tokenizer.encode('a', { special: true })
const text: string = tokenizer.decode(ids)
const batch: number[][] = await tokenizer.encodeBatch(['a'])

const list: Device[] = devices()
same<Device['kind'], 'cpu' | 'cuda'>(true)
const estimate: MemoryEstimate = await estimateMemory('models/tiny', { sequences: 4, contextTokens: 100 })
const facts: Inspection = await inspect('models/tiny')
const p: Float32Array = probabilities(new Float32Array(4), { temperature: 0.5, topK: 2 }, [1])
try {
  await model.close()
} catch (error) {
  if (error instanceof LapidaryError) same<typeof error.code, ErrorCode>(true)
}

const x: ops.Tensor = await ops.Tensor.from(new Float32Array(64), [2, 32], { dtype: 'bf16', device: 'cpu' })
const { q, scales } = await ops.quantizeRows(x, { scale: 0.5 })
const product: ops.Tensor = await ops.linear(x, q, { scales, activations: 'token' })
// @ts-expect-error int8 weights or their activations have three forms
await ops.linear(x, q, { scales, activations: 'row' })
// @ts-expect-error no such element type
await ops.Tensor.zeros([2, 2], { dtype: 'f64' })
const cache: ops.KvCache = await ops.KvCache.create({ kvHeads: 1, headDim: 32 })
await ops.attention(x, cache, { window: 8, imageBlocks: [[0, 4]], prefix: { k: x, v: x } })
// @ts-expect-error a prefix is keys and values
await ops.attention(x, cache, { prefix: { k: x } })
const drawn: Int32Array = await ops.sample(product, [{ topK: 2 }, { temperature: 0 }], { seeds: [1, 2n] })
const peaks: ops.Peaks | null = await ops.peaks({ device: 'auto', seconds: 0.1 })
same<ops.Peaks['bf16'], number | null>(true)
same<ops.Peaks['source'], 'measured' | 'datasheet'>(true)
x.dispose()

export { activations, apart, batch, drawn, estimate, facts, hidden, list, p, peaks, perplexity, scores, sites, small, text }
