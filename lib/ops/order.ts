/** Operations of one device run one after another, in the order of the calls, whether or not the caller awaits each. */

const last = new Map<string, Promise<unknown>>()

export function inOrder<T>(device: string, work: () => Promise<T>): Promise<T> {
  const result = (last.get(device) ?? Promise.resolve()).then(work)
  last.set(device, result.catch(() => {}))
  return result
}
