// One report out of two of the same processor and instruction set: the newest of every part.

const key = ({ model, format }) => `${model} ${format}`

/** `next` with what it lacks of `last`; `last` alone counts for nothing where it is of another processor or instruction set. */
export function keepNewest(last, next) {
  if (last.processor !== next.processor || last.flags !== next.flags || last.instructionSet !== next.instructionSet) return next
  const measured = new Set(next.models.map(key))
  const older = last.models.filter((entry) => !measured.has(key(entry)))
  return { ...next, kernels: next.kernels ?? last.kernels, models: [...older, ...next.models] }
}
