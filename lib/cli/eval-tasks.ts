/** Multiple choice from JSONL: reading questions, and how many were answered rightly. */

import path from 'node:path'
import { type LapidaryError, invalid } from '../errors.js'
import type { EvaluationOptions, Model, Question } from '../index.js'
import { describe } from '../options.js'
import { readInput } from './text-windows.js'

export interface TaskQuestion extends Question {
  readonly task: string
  /** Index of the right choice. */
  readonly answer: number
}

export interface TaskScore {
  readonly task: string
  readonly questions: number
  /** Shares of questions where the right choice is the likeliest, and the likeliest per byte. */
  readonly accuracy: number
  readonly normalisedAccuracy: number
}

/** Lines {"prompt", "choices", "answer"}, and "task" where a file holds several; otherwise the file's name without its ending is the task's. */
export async function readTasks(file: string): Promise<TaskQuestion[]> {
  const name = path.basename(file, path.extname(file))
  const lines = (await readInput('tasks', file)).replace(/^\uFEFF/, '').split('\n')
  const questions = lines.flatMap((line, i) => (line.trim() === '' ? [] : [readQuestion(line, `--tasks: ${file}, line ${i + 1}`, name)]))
  if (questions.length === 0) throw invalid(`--tasks: ${file} holds no questions`)
  return questions
}

function readQuestion(line: string, where: string, name: string): TaskQuestion {
  const wrong = (what: string): LapidaryError => invalid(`${where}: ${what}`)
  let value: unknown
  try {
    value = JSON.parse(line)
  } catch (error) {
    throw wrong(`not JSON: ${(error as Error).message}`)
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw wrong(`expected an object, received ${describe(value)}`)
  const { prompt, choices, answer, task = name } = value as Record<string, unknown>
  if (typeof prompt !== 'string') throw wrong(`"prompt" must be a string, received ${describe(prompt)}`)
  if (!Array.isArray(choices) || choices.length < 2) throw wrong(`"choices" must be an array of at least two strings, received ${describe(choices)}`)
  for (const choice of choices as unknown[]) {
    if (typeof choice !== 'string' || choice === '') throw wrong(`"choices" must hold strings that are not empty, received ${describe(choice)}`)
  }
  if (!Number.isInteger(answer) || (answer as number) < 0 || (answer as number) >= choices.length) {
    throw wrong(`"answer" must be an index from 0 to ${choices.length - 1}, received ${describe(answer)}`)
  }
  if (typeof task !== 'string') throw wrong(`"task" must be a string, received ${describe(task)}`)
  return { task, prompt, choices: choices as string[], answer: answer as number }
}

/** One score per task, in the order in which tasks appear. */
export async function scoreTasks(model: Model, questions: readonly TaskQuestion[], options: EvaluationOptions): Promise<TaskScore[]> {
  const scores = await model.scoreChoices(questions.map(({ prompt, choices }) => ({ prompt, choices })), options)
  const counts = new Map<string, { questions: number; right: number; rightPerByte: number }>()
  for (const [i, { task, answer }] of questions.entries()) {
    const count = counts.get(task) ?? { questions: 0, right: 0, rightPerByte: 0 }
    counts.set(task, count)
    count.questions++
    if (likeliest(scores[i]!.logProbabilities) === answer) count.right++
    if (likeliest(scores[i]!.perByte) === answer) count.rightPerByte++
  }
  return [...counts].map(([task, c]) => ({ task, questions: c.questions, accuracy: c.right / c.questions, normalisedAccuracy: c.rightPerByte / c.questions }))
}

/** Of equal ones the first. */
function likeliest(values: readonly number[]): number {
  let best = 0
  for (const [i, value] of values.entries()) if (value > values[best]!) best = i
  return best
}
