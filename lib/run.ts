/** A generation under way: parts as they come, and the result at the end. */

import { type CallSite, LapidaryError, invalid, toLapidaryError } from './errors.js'
import { type GenerateResult, type GeneratedPart, type Generation, type TokenLogprob, maskBits } from './generation.js'
import type { NativeModel, NativeOutcome, NativeRun, NativeRunEvent, NativeSequence, NativeTokenEvent } from './native.js'

/** What a run needs to begin. */
export interface RunPlan {
  readonly native: NativeModel
  readonly generation: Generation
  readonly site: CallSite
  /** Gives the prompt's ids; may tokenise off the thread. */
  prepare(): Promise<Int32Array>
  readonly sequence: NativeSequence | null
  /** Extra end tokens of this kind of run. */
  readonly stopIds?: readonly number[]
  /** Called once, before anyone else learns of the end: with what there is, aborted or not, or with null after an error. */
  onEnd?(result: GenerateResult | null): void
}

/** Text and tokens gathered so far. */
class Transcript {
  text = ''
  readonly tokens: number[] = []
  readonly logprobs: Array<TokenLogprob & { top: readonly TokenLogprob[] }> = []

  add(event: NativeTokenEvent, wantLogprobs: boolean): GeneratedPart {
    this.text += event.text
    if (event.id < 0) return { text: event.text }
    this.tokens.push(event.id)
    if (!wantLogprobs) return { text: event.text, token: event.id }
    this.logprobs.push({ id: event.id, logprob: event.logprob, top: event.top })
    return { text: event.text, token: event.id, logprob: event.logprob, top: event.top }
  }
}

const noUsage = { promptTokens: 0, cachedTokens: 0, generatedTokens: 0, queueMs: 0, prefillMs: 0, decodeMs: 0 }

/**
 * Iterate it for parts, or await `result`. Leaving the loop early aborts the run. A reader slower than the model slows only this
 * run: generation pauses until parts are taken. Asking for `result` before iterating lets the run go on without a reader.
 */
export class Run implements AsyncIterable<GeneratedPart> {
  readonly #plan: RunPlan
  readonly #transcript: Transcript = new Transcript()
  readonly #result: Promise<GenerateResult>
  #settle!: { resolve(result: GenerateResult): void; reject(reason: unknown): void }
  #native: NativeRun | null = null
  #queue: GeneratedPart[] = []
  #wake: (() => void) | null = null
  #reading = false
  #free = false
  #aborted = false
  #ended = false
  #failure: { reason: unknown } | null = null
  readonly #onSignal = (): void => this.#fail(this.#plan.generation.signal?.reason)

  /** @internal */
  constructor(plan: RunPlan) {
    this.#plan = plan
    this.#result = new Promise((resolve, reject) => {
      this.#settle = { resolve, reject }
    })
    // A reader may take its failure from the iterator alone.
    this.#result.catch(() => {})
    void this.#begin()
  }

  /** Resolves at the end; rejects with the signal's reason, or with what went wrong. */
  get result(): Promise<GenerateResult> {
    if (!this.#reading && !this.#free) {
      this.#free = true
      this.#native?.acknowledge(this.#queue.length)
    }
    return this.#result
  }

  /** @internal */
  get ended(): boolean {
    return this.#ended
  }

  /** Ends the run within one step: the result then has the finish reason 'aborted'. */
  abort(): void {
    this.#aborted = true
    this.#native?.abort()
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<GeneratedPart, void, undefined> {
    if (this.#reading) throw invalid('this run is already being read: a run has one reader')
    this.#reading = true
    try {
      for (;;) {
        const part = this.#queue.shift()
        if (part) {
          if (!this.#free) this.#native?.acknowledge(1)
          yield part
        } else if (this.#ended) {
          if (this.#failure) throw this.#failure.reason
          return
        } else {
          await new Promise<void>((resolve) => {
            this.#wake = resolve
          })
        }
      }
    } finally {
      if (!this.#ended) this.abort()
      this.#queue = []
      await this.#result.catch(() => {})
    }
  }

  async #begin(): Promise<void> {
    const { native, generation, sequence, stopIds = [], site } = this.#plan
    const { signal } = generation
    try {
      signal?.throwIfAborted()
      signal?.addEventListener('abort', this.#onSignal, { once: true })
      const prompt = await this.#plan.prepare()
      if (this.#failure || this.#aborted) return this.#end(null)
      this.#native = native.generate({
        prompt,
        sequence,
        sampling: generation.sampling,
        seed: BigInt(generation.seed),
        maxTokens: generation.maxTokens,
        ignoreEos: generation.ignoreEos,
        stopIds: [...generation.stopIds, ...stopIds],
        stopStrings: generation.stopStrings,
        topLogprobs: generation.topLogprobs,
        masked: generation.mask !== undefined,
      }, (event) => this.#onEvent(event))
    } catch (error) {
      // What was given up before it began has no failure of its own.
      if (!this.#aborted) this.#failure ??= { reason: toLapidaryError(error, site) }
      this.#end(null)
    }
  }

  /** Called by the native side on the JavaScript thread. Nothing may be thrown into it. */
  #onEvent(event: NativeRunEvent): void {
    if (event.kind === 'tokens') this.#onTokens(event.tokens)
    else if (event.kind === 'mask') void this.#onMask(event.generated)
    else if (event.kind === 'finish') this.#end(event.outcome)
    else {
      this.#failure ??= { reason: toLapidaryError(event.error, this.#plan.site) }
      this.#end(null)
    }
  }

  #onTokens(tokens: readonly NativeTokenEvent[]): void {
    const { onToken, topLogprobs } = this.#plan.generation
    for (const token of tokens) {
      const part = this.#transcript.add(token, topLogprobs >= 0)
      this.#queue.push(part)
      if (this.#failure || !onToken) continue
      try {
        onToken(part)
      } catch (error) {
        this.#fail(error)
      }
    }
    if (this.#free) this.#native?.acknowledge(tokens.length)
    this.#notify()
  }

  async #onMask(generated: readonly number[]): Promise<void> {
    const { native, generation } = this.#plan
    try {
      const allowed = await generation.mask!(generated)
      if (!this.#ended) this.#native?.provideMask(maskBits(allowed, native.info.vocab))
    } catch (error) {
      this.#fail(toLapidaryError(error, this.#plan.site))
    }
  }

  #fail(reason: unknown): void {
    this.#failure ??= { reason }
    this.#native?.abort()
  }

  #end(outcome: NativeOutcome | null): void {
    if (this.#ended) return
    this.#ended = true
    this.#plan.generation.signal?.removeEventListener('abort', this.#onSignal)
    const result = this.#makeResult(outcome ?? { reason: 'aborted', stopSequence: '', ...noUsage })
    try {
      this.#plan.onEnd?.(outcome || !this.#failure ? result : null)
    } catch (error) {
      this.#failure ??= { reason: error }
    }
    if (this.#failure) this.#settle.reject(this.#failure.reason)
    else this.#settle.resolve(result)
    this.#notify()
  }

  #makeResult(outcome: NativeOutcome): GenerateResult {
    const { reason, stopSequence, ...usage } = outcome
    const { generation } = this.#plan
    return {
      text: this.#transcript.text,
      tokens: this.#transcript.tokens,
      finishReason: reason,
      ...(reason === 'stop-sequence' ? { stopSequence } : {}),
      usage,
      seed: generation.seed,
      ...(generation.topLogprobs >= 0 ? { logprobs: this.#transcript.logprobs } : {}),
    }
  }

  #notify(): void {
    this.#wake?.()
    this.#wake = null
  }
}

/** Use of something closed. */
export function disposed(what: string): LapidaryError {
  return new LapidaryError('disposed', `the ${what} is closed`)
}
