// Files with random weights: safetensors folders as Hugging Face has them and GGUF, the same weights in each. Tensors are written as parts of
// the table.
import fs from 'node:fs'
import path from 'node:path'
import { ggufFormats, typeOf } from './formats.mjs'
import { encodeTable, types } from './quantize.mjs'
import { configOf, elementsOf, metadataOf, tensorsOf } from './shapes.mjs'
import { blockElements, stretches } from './table.mjs'
import { tokenizerMetadata } from './vocabulary.mjs'

/** A file under another name until it is whole, so that one cut short is never taken for a model. */
function writeWhole(file, body) {
  const partial = `${file}.${process.pid}.part`, fd = fs.openSync(partial, 'w')
  const put = (bytes) => {
    for (let at = 0; at < bytes.length;) at += fs.writeSync(fd, bytes, at)
  }
  try {
    body(put)
    fs.closeSync(fd)
    fs.renameSync(partial, file)
  } catch (error) {
    fs.rmSync(partial, { force: true })
    throw error
  }
}

/** Parts of the table as bytes of a type, each type encoded once. */
class Parts {
  #encoded = new Map()

  constructor(table) {
    this.table = table
  }

  *of(tensor, type) {
    const { elements, bytes } = types[type], count = elementsOf(tensor.shape)
    if (count % elements || blockElements % elements) throw new Error(`${tensor.hf}: ${count} numbers are no whole blocks of ${type}`)
    if (!this.#encoded.has(type)) this.#encoded.set(type, encodeTable(this.table, type))
    const all = this.#encoded.get(type)
    for (const [first, length] of stretches(this.table, tensor.hf, count)) {
      const from = (first * blockElements) / elements
      yield all.subarray(from * bytes, (from + length / elements) * bytes)
    }
  }
}

const pad = (length, to) => Buffer.alloc((to - (length % to)) % to)

export function writeFolder(folder, shape, table) {
  const header = { __metadata__: { format: 'pt' } }, parts = new Parts(table)
  let offset = 0
  for (const tensor of tensorsOf(shape)) {
    const end = offset + 2 * elementsOf(tensor.shape)
    header[tensor.hf] = { dtype: 'BF16', shape: tensor.shape, data_offsets: [offset, end] }
    offset = end
  }
  const text = Buffer.from(JSON.stringify(header)), padded = Buffer.concat([text, pad(text.length, 8).fill(' ')]), size = Buffer.alloc(8)
  size.writeBigUInt64LE(BigInt(padded.length))
  fs.mkdirSync(folder, { recursive: true })
  fs.writeFileSync(path.join(folder, 'config.json'), `${JSON.stringify(configOf(shape), null, 1)}\n`)
  writeWhole(path.join(folder, 'model.safetensors'), (put) => {
    put(size)
    put(padded)
    for (const tensor of tensorsOf(shape)) for (const part of parts.of(tensor, 'bf16')) put(part)
  })
}

/** Growing bytes of a GGUF header. */
class Header {
  #chunks = []
  length = 0

  bytes(chunk) {
    this.#chunks.push(chunk)
    this.length += chunk.length
  }

  number(width, write) {
    const chunk = Buffer.alloc(width)
    write(chunk)
    this.bytes(chunk)
  }

  u32(x) {
    this.number(4, (b) => b.writeUInt32LE(x))
  }

  u64(x) {
    this.number(8, (b) => b.writeBigUInt64LE(BigInt(x)))
  }

  string(text) {
    const chunk = Buffer.from(text)
    this.u64(chunk.length)
    this.bytes(chunk)
  }

  /** A value after the code of its type: a scalar, or a list after the code and number of its items. */
  value(type, x) {
    const scalars = {
      u32: [4, () => this.u32(x)],
      f32: [6, () => this.number(4, (b) => b.writeFloatLE(x))],
      bool: [7, () => this.number(1, (b) => b.writeUInt8(x ? 1 : 0))],
      string: [8, () => this.string(x)],
    }
    const lists = {
      i32s: [5, () => this.bytes(Buffer.from(Int32Array.from(x).buffer))],
      f32s: [6, () => this.bytes(Buffer.from(Float32Array.from(x).buffer))],
      strings: [8, () => x.forEach((item) => void this.string(item))],
    }
    const [code, write] = scalars[type] ?? lists[type]
    if (type in lists) {
      this.u32(9)
      this.u32(code)
      this.u64(x.length)
    } else {
      this.u32(code)
    }
    write()
  }

  join() {
    return Buffer.concat(this.#chunks)
  }
}

const alignment = 32

export function writeGguf(file, shape, table, format, name) {
  const parts = new Parts(table), header = new Header(), tensors = [...tensorsOf(shape)].map((t) => ({ ...t, type: typeOf(format, t, shape) }))
  const metadata = [...metadataOf(shape, name, ggufFormats[format].fileType), ...tokenizerMetadata(shape.family, shape.vocab)]
  header.bytes(Buffer.from('GGUF'))
  header.u32(3)
  header.u64(tensors.length)
  header.u64(metadata.length)
  for (const [key, type, value] of metadata) {
    header.string(key)
    header.value(type, value)
  }
  let offset = 0
  for (const { gguf, shape: sizes, type } of tensors) {
    header.string(gguf)
    header.u32(sizes.length)
    for (const size of [...sizes].reverse()) header.u64(size)
    header.u32(types[type].code)
    header.u64(offset)
    const bytes = (elementsOf(sizes) / types[type].elements) * types[type].bytes
    offset += Math.ceil(bytes / alignment) * alignment
  }
  fs.mkdirSync(path.dirname(file), { recursive: true })
  writeWhole(file, (put) => {
    put(header.join())
    put(pad(header.length, alignment))
    for (const tensor of tensors) {
      let length = 0
      for (const part of parts.of(tensor, tensor.type)) {
        const bytes = tensor.role === 'norm' ? onePlus(part) : part
        put(bytes)
        length += bytes.length
      }
      put(pad(length, alignment))
    }
  })
}

/** GGUF stores 1 + w of a norm's w. */
function onePlus(bytes) {
  const numbers = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4).map((x) => 1 + x)
  return new Uint8Array(numbers.buffer)
}
