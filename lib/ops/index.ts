/** lapidary/ops: the kernels themselves, for microbenchmarks and research. */

export { KvCache, Tensor } from './tensor.js'
export type { DType, KvCacheOptions, TensorData, TensorOptions } from './tensor.js'
export { add, attention, embed, geglu, gemmInt8, linear, pack, quantizeRows, rmsNorm, rope, sample, softCap, synchronize, timeProducts } from './functions.js'
export type { AttentionOptions, LinearOptions, RmsNormOptions } from './functions.js'
export { peaks } from './peaks.js'
export type { Peaks, PeaksOptions } from './peaks.js'
export { devices } from '../devices.js'
export type { Device, DeviceChoice } from '../devices.js'
export { LapidaryError } from '../errors.js'
export type { ErrorCode } from '../errors.js'
