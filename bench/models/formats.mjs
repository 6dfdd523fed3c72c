// Which type a tensor has in a GGUF file of a format: the mixes that public files have.
import { types } from './quantize.mjs'

/** Layers whose value and down projections the _M mixes keep in more bits: the first and last eighth and every third between. */
function keepsMore(layer, layers) {
  const eighth = Math.floor(layers / 8)
  return layer < eighth || layer >= Math.floor((7 * layers) / 8) || (layer - eighth) % 3 === 2
}

/** The type's stand-in where rows are no multiple of its block. */
const narrower = { q4_k: 'q5_0', q6_k: 'q8_0' }

function fitting(type, rowElements) {
  const fits = rowElements % types[type].elements === 0 ? type : narrower[type]
  if (!fits || rowElements % types[fits].elements) throw new Error(`rows of ${rowElements} cannot be ${type}`)
  return fits
}

/** `fileType` is the number in general.file_type. The embedding is the head too, so no mix makes it small. */
export const ggufFormats = {
  bf16: { fileType: 32, choose: () => 'bf16' },
  q8_0: { fileType: 7, choose: () => 'q8_0' },
  q4_0: { fileType: 2, choose: ({ role }) => (role === 'embedding' ? 'q6_k' : 'q4_0') },
  q4_k_m: {
    fileType: 15,
    choose: ({ role, layer }, shape) => {
      if (role === 'embedding') return 'q6_k'
      return (role === 'value' || role === 'down') && keepsMore(layer, shape.layers) ? 'q6_k' : 'q4_k'
    },
  },
}

/** The type of a tensor; norms are f32 in every GGUF file. */
export function typeOf(format, tensor, shape) {
  return tensor.role === 'norm' ? 'f32' : fitting(ggufFormats[format].choose(tensor, shape), tensor.shape[1])
}
