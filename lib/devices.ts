/** Which devices there are, and which one a request for a device means. */

import { LapidaryError, callNative } from './errors.js'
import { native } from './loader.js'

export interface Device {
  readonly kind: 'cpu' | 'cuda'
  /** The processor's or graphics device's name. */
  readonly name: string
  readonly available: boolean
  /** Why it is not available, else ''. */
  readonly reason: string
  /** The instruction set that the kernels use: CPU 'avx2', 'avx512vnni', 'neondot', ...; CUDA the device's architecture, 'sm_90'. */
  readonly instructionSet: string
  /** CPU: every instruction set that this processor can run, best first. */
  readonly instructionSets: readonly string[]
  readonly cores: number
  readonly memoryBytes: number
}

/** What `loadModel` can run on here. Devices that are absent are listed too, with the reason. */
export function devices(): Device[] {
  return callNative(() => native().devices()) as Device[]
}

export type DeviceChoice = 'reference' | 'cpu' | 'cuda' | 'auto'

/** The device that a choice means on this machine: 'auto' takes the graphics device when it is usable. */
export function resolveDevice(choice: DeviceChoice): 'reference' | 'cpu' | 'cuda' {
  if (choice === 'reference' || choice === 'cpu') return choice
  const cuda = devices().find((device) => device.kind === 'cuda')
  if (cuda?.available) return 'cuda'
  if (choice === 'auto') return 'cpu'
  throw new LapidaryError('cuda', `device 'cuda' is not available: ${cuda?.reason || 'this build has no CUDA support'}; use 'cpu' or 'auto'`)
}
