/** The public names, nothing else. */

export { estimateMemory, inspect, loadModel } from './load.js'
export { loadTokenizer } from './tokenizer.js'
export { devices } from './devices.js'
export { probabilities } from './sampling.js'
export { LapidaryError } from './errors.js'

export type { ErrorCode } from './errors.js'
export type { Device, DeviceChoice } from './devices.js'
export type { EstimateOptions, Inspection, LoadOptions, LoadProgress, MemoryEstimate, MemoryOptions, TensorFact } from './load.js'
export type { ModelInfo } from './info.js'
export type { MemoryUse, Model, Precision, Quantized, ScoreOptions } from './model.js'
export type {
  ActivationOptions, Activations, ChoiceScores, Divergence, DivergenceByPosition, EvaluationOptions, EvaluationText, Likelihood, LikelihoodByPosition,
  Question, SiteStatistics, Spike, WindowOptions,
} from './evaluation.js'
export type {
  Cushion, CushionHeldOut, CushionReport, CushionSearchOptions, CushionSearchStep, CushionTuneOptions, CushionWatch, ScreenStage,
} from './cushion.js'
export type { QuantizeCushion, QuantizeOptions, QuantizeProgress, QuantizeReport, QuantizeWatch, SiteScale } from './quantize.js'
export type { Progress } from './work.js'
export type { DecodeOptions, EncodeOptions, TextDecoderStream, Tokenizer } from './tokenizer.js'
export type { Run } from './run.js'
export type { AllowedTokens, FinishReason, GenerateOptions, GenerateResult, GeneratedPart, TokenLogprob, Usage } from './generation.js'
export type { SamplingDefaults, SamplingSettings } from './sampling.js'
export type { Chat, ChatOptions, RestoreOptions } from './conversation.js'
export type { ChatFamily, ContentPart, Message } from './chat.js'
