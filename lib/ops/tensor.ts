/** Arrays in a device's memory. */

import { awaitNative, callNative, callSite, invalid } from '../errors.js'
import { native } from '../loader.js'
import type { NativeKvCache, NativeTensor } from '../native.js'
import { type Reader, choice, describe, integer, readOptions } from '../options.js'
import { type DeviceChoice, resolveDevice } from '../devices.js'
import { inOrder } from './order.js'

/**
 * Element types: plain numbers, and the block types of GGUF, whose rows are whole blocks (32 or 256 elements) as in the file.
 * A 'bf16' array is given and read as Float32Array: rounded on the way in (to nearest, ties to even), widened on the way out.
 */
export type DType =
  | 'f32' | 'bf16' | 'f16' | 'i8' | 'i32' | 'u8'
  | 'q8_0' | 'q4_0' | 'q4_1' | 'q5_0' | 'q5_1' | 'q2_k' | 'q3_k' | 'q4_k' | 'q5_k' | 'q6_k'

/** What a tensor is made of, and what reading one gives. f16 and block types travel as bytes. */
export type TensorData = Float32Array | Int32Array | Int8Array | Uint8Array

export interface TensorOptions {
  /** Default: 'f32' for a Float32Array, 'i8' for an Int8Array, 'i32' for an Int32Array, 'u8' for a Uint8Array. */
  dtype?: DType
  /** Default 'auto': the graphics device when there is one. */
  device?: DeviceChoice
}

const dtypes = ['f32', 'bf16', 'f16', 'i8', 'i32', 'u8', 'q8_0', 'q4_0', 'q4_1', 'q5_0', 'q5_1', 'q2_k', 'q3_k', 'q4_k', 'q5_k', 'q6_k'] as const
export const deviceReader: Reader<DeviceChoice> = choice('reference', 'cpu', 'cuda', 'auto')
const optionReaders = { dtype: choice(...dtypes), device: deviceReader }

/** An array [..., columns] in a device's memory, rows one after another. Freed by dispose() or, some time later, by the garbage collector. */
export class Tensor implements Disposable {
  /** @internal */
  readonly handle: NativeTensor
  readonly shape: readonly number[]
  readonly dtype: DType
  readonly device: 'reference' | 'cpu' | 'cuda'
  /** Whether its memory has the order in which products read it (see `pack`): it is then a weight of `linear`, `gemmInt8` and `embed`, and nothing else. */
  readonly packed: boolean

  /** @internal */
  constructor(handle: NativeTensor) {
    this.handle = handle
    this.shape = Object.freeze([...handle.shape])
    this.dtype = handle.dtype as DType
    this.device = handle.device as Tensor['device']
    this.packed = handle.packed
  }

  /**
   * A tensor with these elements, 1 to 4 dimensions.
   * @throws invalid_argument when the shape asks for another number of elements
   */
  static async from(data: TensorData, shape: readonly number[], options?: TensorOptions): Promise<Tensor> {
    const site = callSite(Tensor.from)
    const read = readOptions('Tensor.from', options, optionReaders)
    const given = typeOf(data)
    const dtype = read.dtype ?? given
    const wanted = dtype === 'bf16' ? 'f32' : dtype === 'f32' || dtype === 'i8' || dtype === 'i32' ? dtype : 'u8'
    if (given !== wanted) throw invalid(`Tensor.from: a ${dtype} tensor is made of ${arrayName(wanted)}, received ${describe(data)}`)
    const checked = dims('Tensor.from: shape', shape), device = resolveDevice(read.device ?? 'auto')
    const bytes = dtype === 'bf16' ? roundToBf16(data as Float32Array) : data
    return inOrder(device, () => awaitNative(site, async () => new Tensor(await native().tensor(device, dtype, checked, bytes))))
  }

  /** A tensor of zeros. */
  static async zeros(shape: readonly number[], options?: TensorOptions): Promise<Tensor> {
    const site = callSite(Tensor.zeros)
    const read = readOptions('Tensor.zeros', options, optionReaders)
    const checked = dims('Tensor.zeros: shape', shape), device = resolveDevice(read.device ?? 'auto')
    return inOrder(device, () => awaitNative(site, async () => new Tensor(await native().tensor(device, read.dtype ?? 'f32', checked, null))))
  }

  /** The number of elements. */
  get size(): number {
    return this.shape.reduce((a, b) => a * b, 1)
  }

  /** The elements, once every operation before has finished. f32 and bf16: Float32Array; i8, i32: as such; else the bytes. Not of a packed weight. */
  toArray(): Promise<TensorData> {
    const site = callSite(this.toArray)
    return inOrder(this.device, async () => {
      const bytes = await awaitNative(site, () => this.handle.read())
      if (this.dtype === 'f32') return new Float32Array(bytes)
      if (this.dtype === 'bf16') return widenBf16(new Uint16Array(bytes))
      if (this.dtype === 'i8') return new Int8Array(bytes)
      if (this.dtype === 'i32') return new Int32Array(bytes)
      return new Uint8Array(bytes)
    })
  }

  /** Frees the memory, once what is running has let go of it. Idempotent; any use afterwards is a `disposed` error. */
  dispose(): void {
    callNative(() => this.handle.dispose())
  }

  [Symbol.dispose](): void {
    this.dispose()
  }
}

export interface KvCacheOptions {
  /** Key and value heads. */
  kvHeads: number
  headDim: number
  /** 'i8' keeps one f32 scale per position and head beside the numbers. Default 'bf16'. */
  dtype?: 'f32' | 'bf16' | 'i8'
  device?: DeviceChoice
}

const cacheReaders = { kvHeads: integer(1, 1 << 16), headDim: integer(1, 1 << 16), dtype: choice('f32', 'bf16', 'i8'), device: deviceReader }

/** Keys and values of one sequence in pages of 64 positions, as a model's global layers keep them. */
export class KvCache implements Disposable {
  /** @internal */
  readonly handle: NativeKvCache
  readonly device: Tensor['device']
  readonly kvHeads: number
  readonly headDim: number

  /** @internal */
  constructor(handle: NativeKvCache, device: Tensor['device'], kvHeads: number, headDim: number) {
    this.handle = handle
    this.device = device
    this.kvHeads = kvHeads
    this.headDim = headDim
  }

  static async create(options: KvCacheOptions): Promise<KvCache> {
    const site = callSite(KvCache.create)
    const { kvHeads, headDim, dtype = 'bf16', device: wanted = 'auto' } = readOptions('KvCache.create', options, cacheReaders)
    if (kvHeads === undefined || headDim === undefined) throw invalid('KvCache.create: kvHeads and headDim must be given')
    const device = resolveDevice(wanted)
    return inOrder(device, () => awaitNative(site, async () => new KvCache(await native().kvCache(device, dtype, kvHeads, headDim), device, kvHeads, headDim)))
  }

  /** Positions that are filled, operations still on their way not counted. */
  get length(): number {
    return callNative(() => this.handle.length)
  }

  /** Stores k and v, f32 [tokens, kvHeads, headDim], at the positions that follow, rounded or quantised to the cache's dtype. */
  append(k: Tensor, v: Tensor): Promise<void> {
    const site = callSite(this.append)
    return inOrder(this.device, () => awaitNative(site, () => this.handle.append(k.handle, v.handle)))
  }

  dispose(): void {
    callNative(() => this.handle.dispose())
  }

  [Symbol.dispose](): void {
    this.dispose()
  }
}

function typeOf(data: unknown): 'f32' | 'i32' | 'i8' | 'u8' {
  if (data instanceof Float32Array) return 'f32'
  if (data instanceof Int32Array) return 'i32'
  if (data instanceof Int8Array) return 'i8'
  if (data instanceof Uint8Array) return 'u8'
  throw invalid(`Tensor.from: data must be a Float32Array, Int32Array, Int8Array or Uint8Array, received ${describe(data)}`)
}

function arrayName(dtype: string): string {
  return dtype === 'f32' ? 'a Float32Array' : dtype === 'i8' ? 'an Int8Array' : dtype === 'i32' ? 'an Int32Array' : 'bytes in a Uint8Array'
}

function dims(name: string, shape: readonly number[]): number[] {
  if (!Array.isArray(shape) || shape.length < 1 || shape.length > 4) throw invalid(`${name} must be an array of 1 to 4 sizes, received ${describe(shape)}`)
  return shape.map((d, i) => integer(0)(d, `${name}[${i}]`))
}

/** To nearest, ties to even; NaN stays NaN. */
function roundToBf16(values: Float32Array): Uint16Array {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length), out = new Uint16Array(values.length)
  for (let i = 0; i < out.length; i++) {
    const u = bits[i]!
    out[i] = (u & 0x7fffffff) > 0x7f800000 ? (u >>> 16) | 0x40 : (u + 0x7fff + ((u >>> 16) & 1)) >>> 16
  }
  return out
}

function widenBf16(bits: Uint16Array): Float32Array {
  return new Float32Array(Uint32Array.from(bits, (b) => b << 16).buffer)
}
