// How long the event loop was held up, without the time in which other threads had the processor: a busy machine delays
// every loop, and that is no fault of what is measured.
import fs from 'node:fs'

/** Milliseconds that this process's main thread has waited for a processor; 0 where the system does not tell. */
function waitedMs() {
  try {
    return Number(fs.readFileSync(`/proc/self/task/${process.pid}/schedstat`, 'latin1').split(' ')[1]) / 1e6
  } catch {
    return 0
  }
}

/** The longest time between two turns of a 1 ms timer during `work`, less that millisecond and the wait for a processor. */
export async function longestHold(work) {
  let longest = 0, last = performance.now(), waited = waitedMs(), timer
  const tick = () => {
    const now = performance.now(), waitedNow = waitedMs()
    longest = Math.max(longest, now - last - 1 - (waitedNow - waited))
    last = now
    waited = waitedNow
    timer = setTimeout(tick, 1)
  }
  timer = setTimeout(tick, 1)
  try {
    await work()
    await new Promise((resolve) => setTimeout(resolve, 3)) // the last turn counts too
  } finally {
    clearTimeout(timer)
  }
  return longest
}
