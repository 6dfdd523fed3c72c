/** How good a model is: options and results of its evaluations. The work is native; here texts become ids and figures become results. */

import { invalid } from './errors.js'
import type { NativeDivergence, NativeLikelihood, NativeWindowOptions } from './native.js'
import { type Reader, boolean, callback, describe, integer, signal, string, tokenIds } from './options.js'
import type { Tokenizer } from './tokenizer.js'
import type { Progress } from './work.js'

/** Text, or its token ids without BOS. */
export type EvaluationText = string | readonly number[] | Int32Array

export interface EvaluationOptions {
  /** Called now and then; what it throws ends the work. */
  onProgress?: (progress: Progress) => void
  /** Ends the work within one layer; the promise rejects with the signal's reason. */
  signal?: AbortSignal
}

export interface WindowOptions extends EvaluationOptions {
  /** Tokens of a window, BOS aside: each window is a text of its own to the model. Default 512, or less if the model was made for fewer. */
  window?: number
  /** Distance of windows; where they overlap, a token counts in the first that can score it. Default: the largest, so that nearly none is read twice. */
  stride?: number
  /**
   * Whether the first token of a window is scored too. Behind a cushion that holds BOS it cannot be, so figures of models with and without such a
   * cushion compare only with false: windows then overlap by a token, and every token but a text's first is scored, once. Default: where it can be.
   */
  firstTokens?: boolean
}

export interface Likelihood {
  /** Tokens scored. */
  readonly tokens: number
  /** The sum of their negative log-probabilities. */
  readonly nats: number
  readonly natsPerToken: number
  readonly perplexity: number
}

/** Over all tokens, and over those before and from the local layers' window on, counted from the beginning of a window of the text. */
export interface LikelihoodByPosition extends Likelihood {
  readonly within: Likelihood
  readonly beyond: Likelihood
}

export interface Divergence {
  /** Tokens compared. */
  readonly tokens: number
  /** KL(reference || model) in nats per token; the 99th percentile; the largest. */
  readonly meanKl: number
  readonly p99Kl: number
  readonly maxKl: number
  /** Share of tokens where both have the same likeliest next token. */
  readonly agreement: number
  readonly referenceNatsPerToken: number
  readonly referencePerplexity: number
  readonly natsPerToken: number
  readonly perplexity: number
}

/** Parted as a likelihood is. */
export interface DivergenceByPosition extends Divergence {
  readonly within: Divergence
  readonly beyond: Divergence
}

export interface Question {
  prompt: string
  choices: readonly string[]
}

export interface ChoiceScores {
  /** Of each choice as the continuation of the prompt: the sum over its tokens. */
  readonly logProbabilities: readonly number[]
  /** The same, divided by the choice's bytes in UTF-8. */
  readonly perByte: readonly number[]
}

export interface ActivationOptions extends EvaluationOptions {
  /** Tokens of a window, BOS aside. Default 512, or less if the model was made for fewer. */
  window?: number
}

export interface Spike {
  /** Which of the texts, and which of its tokens; -1 is the BOS before a window. */
  readonly text: number
  readonly position: number
  readonly id: number
  readonly channel: number
  readonly value: number
}

/** Magnitudes of what enters the matrix products of one place in one layer. Quantiles come from a histogram, within 1.6 %. */
export interface SiteStatistics {
  readonly layer: number
  /** Input of q, k, v; of o; of gate and up; of down. */
  readonly site: 'attn_in' | 'o_in' | 'mlp_in' | 'down_in'
  readonly max: number
  /** Mean and median over tokens of the token's largest. */
  readonly meanTokenMax: number
  readonly medianTokenMax: number
  /** 10 % of all values are larger. */
  readonly p90: number
  readonly median: number
  readonly maxOverMedian: number
  /** max / medianTokenMax: about 1 where no token stands out. */
  readonly tokenRatio: number
  /** Values that are no finite numbers; left out of the rest. */
  readonly notFinite: number
  /** The tokens with the largest values, largest first. */
  readonly spikes: readonly Spike[]
}

export interface Activations {
  /** Tokens looked at, BOS included. */
  readonly tokens: number
  /** Layer by layer, the four sites of each in order. */
  readonly sites: readonly SiteStatistics[]
}

type ReadersOf<T> = { [K in keyof T]-?: Reader<NonNullable<T[K]>> }

export const evaluationReaders: ReadersOf<EvaluationOptions> = { onProgress: callback<NonNullable<EvaluationOptions['onProgress']>>(), signal }
export const activationReaders: ReadersOf<ActivationOptions> = { ...evaluationReaders, window: integer(1) }
export const windowReaders: ReadersOf<WindowOptions> = { ...activationReaders, stride: integer(1), firstTokens: boolean }

export function nativeWindow(read: WindowOptions, maxPositions: number): NativeWindowOptions {
  return { window: read.window ?? defaultWindow(maxPositions), stride: read.stride ?? 0, firstTokens: read.firstTokens ?? null }
}

export function defaultWindow(maxPositions: number): number {
  return Math.min(512, maxPositions - 1)
}

export async function textIds(owner: string, texts: unknown, vocab: number, tokenizer: () => Tokenizer): Promise<Int32Array[]> {
  if (!Array.isArray(texts)) throw invalid(`${owner}: texts must be an array of texts or of arrays of token ids, received ${describe(texts)}`)
  const written = texts.filter((text) => typeof text === 'string')
  const encoded = written.length > 0 ? await tokenizer().encodeBatch(written) : []
  return texts.map((text: unknown, i) => (typeof text === 'string' ? Int32Array.from(encoded.shift()!) : tokenIds(text, `${owner}: texts[${i}]`, vocab)))
}

/**
 * Prompt and choice are tokenized as one text, since tokens may reach across their border. What all choices of a question have in common with the
 * prompt's own tokens is the context, all else is scored: for every choice the same characters and its own.
 */
export async function questionIds(owner: string, questions: unknown, tokenizer: Tokenizer): Promise<Array<{ prompt: Int32Array; choices: Int32Array[] }>> {
  const checked = checkQuestions(owner, questions)
  const ids = await tokenizer.encodeBatch(checked.flatMap(({ prompt, choices }) => [prompt, ...choices.map((choice) => prompt + choice)]))
  let at = 0
  return checked.map(({ choices }) => {
    const prompt = ids[at]!, whole = ids.slice(at + 1, at + 1 + choices.length)
    at += 1 + choices.length
    const context = Math.min(prompt.length, ...whole.map((text) => commonLength(prompt, text)))
    return { prompt: Int32Array.from(prompt.slice(0, context)), choices: whole.map((text) => Int32Array.from(text.slice(context))) }
  })
}

export function checkQuestions(owner: string, questions: unknown): Question[] {
  if (!Array.isArray(questions)) throw invalid(`${owner}: questions must be an array, received ${describe(questions)}`)
  return questions.map((question: unknown, i) => {
    const name = `${owner}: questions[${i}]`
    if (typeof question !== 'object' || question === null) throw invalid(`${name} must be an object, received ${describe(question)}`)
    const { prompt, choices } = question as Record<string, unknown>
    if (!Array.isArray(choices) || choices.length === 0) throw invalid(`${name}.choices must be an array of at least one text, received ${describe(choices)}`)
    for (const [j, choice] of choices.entries()) {
      if (string(choice, `${name}.choices[${j}]`) === '') throw invalid(`${name}.choices[${j}] must not be empty`)
    }
    return { prompt: string(prompt, `${name}.prompt`), choices: choices as string[] }
  })
}

function commonLength(a: readonly number[], b: readonly number[]): number {
  let n = 0
  while (n < a.length && n < b.length && a[n] === b[n]) n++
  return n
}

export function likelihood({ tokens, nats }: NativeLikelihood): Likelihood {
  return { tokens, nats, natsPerToken: nats / tokens, perplexity: Math.exp(nats / tokens) }
}

export function divergenceOf({ tokens, meanKl, p99Kl, maxKl, agreement, referenceNats, nats }: NativeDivergence): Divergence {
  const reference = referenceNats / tokens, own = nats / tokens
  return {
    tokens, meanKl, p99Kl, maxKl, agreement, referenceNatsPerToken: reference, referencePerplexity: Math.exp(reference), natsPerToken: own,
    perplexity: Math.exp(own),
  }
}

export function choiceScores(question: Question, logProbabilities: readonly number[]): ChoiceScores {
  return { logProbabilities, perByte: logProbabilities.map((value, i) => value / Buffer.byteLength(question.choices[i]!)) }
}
