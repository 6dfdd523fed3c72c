// A made-up SentencePiece vocabulary with the layout of Gemma's: control tokens and byte pieces where they are in the real one, then words of up
// to four letters, each of which the scores let grow from its beginning. Enough to load a file and to tokenize text; it is nobody's language.

const kinds = { normal: 1, unknown: 2, control: 3, user: 4, byte: 6 }
const alphabet = [...'▁etaoinshrdlucmfwypvbgkjqxz']

function* words() {
  let longest = ['']
  for (;;) {
    const next = []
    for (const word of longest) {
      for (const letter of alphabet) {
        next.push(word + letter)
        yield word + letter
      }
    }
    longest = next
  }
}

/** Pieces, scores and types by id. At least 1024 pieces: the fixed ones go up to 512. */
export function vocabularyOf(family, count) {
  if (count < 1024) throw new Error(`a vocabulary of ${count} pieces is too small, 1024 are needed`)
  const [turn, newline, firstByte] = family === 'gemma2' ? [106, 108, 217] : [105, 107, 238]
  const pieces = [], scores = [], types = []
  const add = (piece, kind, score = -1000) => {
    pieces.push(piece)
    scores.push(score)
    types.push(kind)
  }
  for (const name of ['<pad>', '<eos>', '<bos>', '<unk>']) add(name, name === '<unk>' ? kinds.unknown : kinds.control)
  add('<mask>', kinds.control)
  for (let n = 0; pieces.length < turn; n++) add(`<unused${n}>`, kinds.control)
  add('<start_of_turn>', kinds.control)
  add('<end_of_turn>', kinds.control)
  for (let n = 1; pieces.length < newline + 31; n++) add('\n'.repeat(n), kinds.user)
  for (let n = 2; pieces.length < firstByte; n++) add('▁'.repeat(n), kinds.user)
  for (let byte = 0; byte < 256; byte++) add(`<0x${byte.toString(16).toUpperCase().padStart(2, '0')}>`, kinds.byte, 0)
  const taken = new Set(pieces)
  for (const letter of 'ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?\'"()-') add(letter, kinds.normal, -pieces.length)
  for (const word of words()) {
    if (pieces.length >= count) break
    if (!taken.has(word)) add(word, kinds.normal, -pieces.length)
  }
  return { pieces, scores, types }
}

/** The tokenizer's part of a GGUF file's metadata. */
export function tokenizerMetadata(family, count) {
  const { pieces, scores, types } = vocabularyOf(family, count)
  return [
    ['tokenizer.ggml.model', 'string', 'llama'],
    ['tokenizer.ggml.pre', 'string', 'default'],
    ['tokenizer.ggml.tokens', 'strings', pieces],
    ['tokenizer.ggml.scores', 'f32s', scores],
    ['tokenizer.ggml.token_type', 'i32s', types],
    ['tokenizer.ggml.bos_token_id', 'u32', 2],
    ['tokenizer.ggml.eos_token_id', 'u32', 1],
    ['tokenizer.ggml.unknown_token_id', 'u32', 3],
    ['tokenizer.ggml.padding_token_id', 'u32', 0],
    ['tokenizer.ggml.add_bos_token', 'bool', true],
    ['tokenizer.ggml.add_eos_token', 'bool', false],
    ['tokenizer.ggml.add_space_prefix', 'bool', false],
  ]
}
