/** The roofline of a device: what no kernel can exceed. */

import { awaitNative, callSite } from '../errors.js'
import { native } from '../loader.js'
import { number, readOptions } from '../options.js'
import { type DeviceChoice, devices, resolveDevice } from '../devices.js'
import { inOrder } from './order.js'
import { deviceReader } from './tensor.js'

/** A multiplication and an addition are two operations. */
export interface Peaks {
  /** Bytes a second between memory and the processor: reading, on 'cpu'. */
  readonly bandwidth: number
  /** f32 operations a second, outside of tensor cores. */
  readonly f32: number
  /** int8 operations a second, summed in int32. */
  readonly int8: number
  /** bf16 operations a second, summed in f32; null: the processor has no instruction for it, and bf16 is computed as f32. */
  readonly bf16: number | null
  /** Of the last-level caches together; null: the system does not say. */
  readonly cacheBytes: number | null
  /** Where the numbers are from: this machine, or the maker's table for the device's name (dense, at boost clock). */
  readonly source: 'measured' | 'datasheet'
}

export interface PeaksOptions {
  /** Default 'auto'. 'reference' has the peaks of the processor that it runs on. */
  device?: DeviceChoice
  /** How long each figure is measured; the best sample counts. Default 0.25. */
  seconds?: number
}

const optionReaders = { device: deviceReader, seconds: number(0, 60, true) }

/**
 * On the processor: measured on all threads with the instruction set in use, from a buffer of at least four times the last-level cache (an eighth of
 * the memory at most). Let nothing else run meanwhile. On 'cuda': the datasheet's, or null for a device whose name is not known here.
 */
export async function peaks(options?: PeaksOptions): Promise<Peaks | null> {
  const site = callSite(peaks)
  const read = readOptions('peaks', options, optionReaders)
  const device = resolveDevice(read.device ?? 'auto')
  if (device === 'cuda') return datasheet(devices().find((d) => d.kind === 'cuda')!.name)
  const { bandwidth, f32, int8, bf16, cacheBytes } = await inOrder('cpu', () => awaitNative(site, () => native().cpuPeaks(read.seconds ?? 0.25)))
  return { bandwidth, f32, int8, bf16: bf16 || null, cacheBytes: cacheBytes || null, source: 'measured' }
}

/** [what the driver's name contains, GB/s, f32, int8, bf16 in 10^12 operations a second, MB of L2]; the first that fits counts. */
const sheets: ReadonlyArray<readonly [RegExp, number, number, number, number, number]> = [
  [/\bH200 NVL\b/, 4800, 60, 1671, 835.5, 50],
  [/\bH200\b/, 4800, 67, 1979, 989.5, 50],
  [/\bH100 NVL\b/, 3938, 60, 1671, 835.5, 50],
  [/\bH100 PCIe\b/, 2039, 51, 1513, 756.5, 50],
  [/\bH100\b/, 3352, 67, 1979, 989.5, 50],
  [/\bA100 80GB PCIe\b/, 1935, 19.5, 624, 312, 40],
  [/\bA100-SXM4-80GB\b/, 2039, 19.5, 624, 312, 40],
  [/\bA100\b/, 1555, 19.5, 624, 312, 40],
  [/\bL40S\b/, 864, 91.6, 733, 362, 96],
  [/\bRTX 4090\b(?! (D|Laptop))/, 1008, 82.6, 660.6, 165.2, 72],
]

function datasheet(name: string): Peaks | null {
  const sheet = sheets.find(([pattern]) => pattern.test(name))
  if (!sheet) return null
  const [, gigabytes, f32, int8, bf16, cache] = sheet
  return { bandwidth: gigabytes * 1e9, f32: f32 * 1e12, int8: int8 * 1e12, bf16: bf16 * 1e12, cacheBytes: cache * 2 ** 20, source: 'datasheet' }
}
