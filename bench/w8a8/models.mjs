// The models that the table is about, and their texts. Two have token-wise outliers by construction (train_outliers.cc), two are as training left them.
import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import fs from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { loadModel } from 'lapidary'
import { buildAddon } from '../../scripts/build-addon.mjs'

const root = path.resolve(path.dirname(fileURLToPath(import.meta.url)), '../..')
const tiny = path.join(root, 'models/tiny')
const goldens = path.join(root, 'test/golden')
const english = (name) => path.join(goldens, 'gemma3-small', `${name}.txt`)

/** Tokens of a text of the English models: six windows of their local layers. */
const window = 384

export const models = {
  spiky: {
    title: 'constructed, trained from nothing (test/golden/gemma3-spiky)',
    gap: 0.95,
    folder: () => path.join(goldens, 'gemma3-spiky'),
    texts: ownTexts,
    options: {
      window: 127,
      search: { init: [], rivals: 9, heldOut: 16 },
      tune: { steps: 60, every: 20, batch: 8, heldOut: 16, learningRate: 0.02 },
      tuned: { greedy: { learningRate: 0.003, heldOut: 32 }, PrefixQuant: {} },
    },
  },
  'spiky-english': {
    title: 'constructed, models/tiny tuned for some minutes',
    gap: 0.95,
    folder: spikyEnglish,
    texts: englishTexts,
    options: englishOptions(),
  },
  natural: {
    title: 'naturally trained, from nothing (test/golden/gemma2-natural)',
    gap: 0.8,
    folder: () => path.join(goldens, 'gemma2-natural'),
    texts: ownTexts,
    options: {
      window: 499,
      search: { init: [], rivals: 9, heldOut: 16 },
      tune: { steps: 60, every: 20, batch: 8, heldOut: 16, learningRate: 0.003 },
    },
  },
  tiny: {
    title: 'naturally trained (models/tiny)',
    gap: 0.8,
    folder: () => tiny,
    texts: englishTexts,
    options: englishOptions(),
  },
}

function ownTexts(folder) {
  return JSON.parse(fs.readFileSync(path.join(folder, 'texts.json'), 'utf8'))
}

/** The search begins with BOS: from nothing it takes <eos> for `spiky-english`, which errs as little but is no beginning that the model knows. */
function englishOptions() {
  return {
    window: window - 1,
    search: { rivals: 9, stages: [{ tokens: 32, texts: 2, layers: 3, keep: 64 }, { tokens: window - 1, texts: 2, keep: 8 }] },
    tune: { steps: 30, every: 10, batch: 4, learningRate: 0.02, lambda: 0.3, gradient: 'through-scale' },
  }
}

/** Calibration on text that the model has seen, perplexity on text that it has not. */
async function englishTexts() {
  const model = await loadModel(tiny, { device: 'cpu' })
  try {
    const pieces = async (name, count) => {
      const [ids] = await model.tokenizer.encodeBatch([fs.readFileSync(english(name), 'utf8')])
      return Array.from({ length: count }, (_, i) => Array.from(ids.slice(i * window, (i + 1) * window))).filter((piece) => piece.length === window)
    }
    return { train: await pieces('calibration', 48), heldOut: await pieces('validation', 24) }
  } finally {
    await model.close()
  }
}

/** Made once for each state of its program's source. */
async function spikyEnglish(say) {
  const sources = ['train_outliers.cc', 'spike.h', 'backcopy.h', 'titles.h'].map((name) => path.join(root, 'bench/w8a8', name))
  const hash = createHash('sha1')
  for (const file of [...sources, path.join(tiny, 'model.safetensors'), english('calibration')]) hash.update(fs.readFileSync(file))
  const folder = path.join(root, '.cache/w8a8', `spiky-english-${hash.digest('hex').slice(0, 12)}`)
  if (fs.existsSync(folder)) return folder
  say('building the program that trains it')
  await buildAddon({ outliers: true })
  say('training it, which takes some minutes')
  fs.mkdirSync(path.dirname(folder), { recursive: true })
  const unfinished = `${folder}.${process.pid}`
  const { status } = spawnSync(path.join(root, 'build/Release/lapidary_outliers'), ['model', tiny, english('calibration'), unfinished], { stdio: ['ignore', 2, 2] })
  if (status !== 0) throw new Error(`training ended with ${status}`)
  fs.renameSync(unfinished, folder)
  return folder
}
