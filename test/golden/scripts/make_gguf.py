"""Makes test/golden/gguf: GGUF files of the golden text checkpoints with llama.cpp's own converter and quantizer, their
logits by transformers in f32 on the dequantised weights, and token ids by SentencePiece.

Needs llama.cpp's convert_hf_to_gguf.py and a prebuilt libllama (the folder of shared objects of the npm package
@node-llama-cpp/linux-x64 will do), and from PyPI: torch, transformers, safetensors, sentencepiece, gguf, numpy.

    python make_gguf.py --converter LLAMA_CPP/convert_hf_to_gguf.py --libraries FOLDER_WITH_LIBLLAMA [--only NAME] [--out FOLDER]
"""
import argparse
import ctypes
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
import sentencepiece
import torch
from safetensors.torch import load_file
from safetensors.numpy import save_file
from transformers import AutoConfig, AutoModelForCausalLM

GOLDEN = Path(__file__).resolve().parents[1]
# llama.cpp's numbers of file types (enum llama_ftype).
QUANTIZED = {'Q4_0': 2, 'Q4_1': 3, 'Q5_0': 8, 'Q5_1': 9, 'Q2_K': 10, 'Q3_K_M': 12, 'Q4_K_M': 15, 'Q5_K_M': 17, 'Q6_K': 18}
CONVERTED = ('f32', 'f16', 'bf16', 'q8_0')
# Together these hold every element type that is read: the _M mixes of gemma3-head256 all the K blocks.
FILES = {
    'gemma2-tiny': ['f32', 'bf16', 'q8_0'],
    'gemma3-tiny': ['f16', 'q8_0', 'Q4_0', 'Q4_1', 'Q5_0', 'Q5_1'],
    'gemma3-head256': ['Q2_K', 'Q3_K_M', 'Q4_K_M'],
}
TEXTS = [
    'The house of the state.', 'people  and   government', ' leading and trailing ', 'Umlaute: äöü ÄÖÜ ß', '数据 and Ελληνικά', '\U0001f9ea\U0001f468‍\U0001f469‍\U0001f467',
    '<start_of_turn>model\nYes.<end_of_turn>\n', '<end_of_turn', '2024-11-30', '\n\n\n', 'a\r\nb', '▁▁▁', '', ' ', 'x' * 40,
]


def train_vocabulary(rows, folder):
    """A SentencePiece BPE vocabulary of exactly `rows` pieces with Gemma's settings."""
    sentencepiece.SentencePieceTrainer.train(
        input=str(GOLDEN / 'gemma3-small/validation.txt'), model_prefix=str(folder / 'tokenizer'), model_type='bpe', vocab_size=rows,
        byte_fallback=True, split_digits=True, add_dummy_prefix=False, remove_extra_whitespaces=False, normalization_rule_name='identity',
        allow_whitespace_only_pieces=True, character_coverage=0.98, pad_id=0, eos_id=1, bos_id=2, unk_id=3,
        user_defined_symbols=['<mask>', '<start_of_turn>', '<end_of_turn>', '\n', '\n\n', '▁▁'], minloglevel=2)
    return sentencepiece.SentencePieceProcessor(model_file=str(folder / 'tokenizer.model'))


class QuantizeParams(ctypes.Structure):
    """The leading fields of llama_model_quantize_params; the rest keeps the library's defaults."""
    _fields_ = [('threads', ctypes.c_int32), ('file_type', ctypes.c_int32), ('output_type', ctypes.c_int32), ('embedding_type', ctypes.c_int32),
                ('rest', ctypes.c_uint8 * 256)]


def load_libllama(folder):
    for name in ('libggml-base', 'libggml-cpu-x64', 'libggml.', 'libggml.v', 'libllama.'):
        for path in sorted(Path(folder).glob(name + '*')):
            library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    library.llama_model_quantize_default_params.restype = QuantizeParams
    library.llama_model_quantize.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(QuantizeParams)]
    library.llama_model_quantize.restype = ctypes.c_uint32
    library.llama_backend_init()
    return library


def quantize(library, source, target, file_type):
    params = library.llama_model_quantize_default_params()
    params.threads, params.file_type = 1, file_type
    assert library.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)) == 0, target


def dequantized_state(path):
    """The GGUF file's weights under transformers' names, in f32, with the norms shifted back."""
    rename = {'attn_q': 'self_attn.q_proj', 'attn_k': 'self_attn.k_proj', 'attn_v': 'self_attn.v_proj', 'attn_output': 'self_attn.o_proj',
              'attn_q_norm': 'self_attn.q_norm', 'attn_k_norm': 'self_attn.k_norm', 'ffn_gate': 'mlp.gate_proj', 'ffn_up': 'mlp.up_proj',
              'ffn_down': 'mlp.down_proj', 'attn_norm': 'input_layernorm', 'post_attention_norm': 'post_attention_layernorm',
              'ffn_norm': 'pre_feedforward_layernorm', 'post_ffw_norm': 'post_feedforward_layernorm'}
    top = {'token_embd': 'model.embed_tokens', 'output_norm': 'model.norm'}
    state, kinds = {}, {}
    for tensor in gguf.GGUFReader(path).tensors:
        parts = tensor.name.split('.')
        name = f'model.layers.{parts[1]}.{rename[parts[2]]}.weight' if parts[0] == 'blk' else f'{top[parts[0]]}.weight'
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        values = values.reshape([int(d) for d in reversed(tensor.shape)])
        # 1 + w was rounded to f32 by the converter; the model adds the one again.
        state[name] = torch.from_numpy(values - np.float32(1) if name.endswith('norm.weight') else values)
        kinds[tensor.tensor_type.name] = kinds.get(tensor.tensor_type.name, 0) + 1
    return state, kinds


def expected_logits(checkpoint, path, ids):
    config = AutoConfig.from_pretrained(checkpoint)
    config.query_pre_attn_scalar = config.head_dim  # which GGUF does not carry
    model = AutoModelForCausalLM.from_config(config, attn_implementation='eager', dtype=torch.float32).eval()
    state, kinds = dequantized_state(path)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {'lm_head.weight'}, (missing, unexpected)
    model.tie_weights()
    with torch.no_grad():
        return model(torch.from_numpy(ids)[None].long(), use_cache=False).logits[0].float().numpy(), kinds


def make(name, kinds, args, library):
    checkpoint, out = GOLDEN / name, args.out / name
    out.mkdir(parents=True, exist_ok=True)
    rows = load_file(checkpoint / 'model.safetensors')['model.embed_tokens.weight'].shape[0]
    expected, index = {}, []
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / 'source'
        source.mkdir()
        for file in ('config.json', 'generation_config.json', 'model.safetensors'):
            shutil.copyfile(checkpoint / file, source / file)
        vocabulary = train_vocabulary(rows, source)
        assert vocabulary.vocab_size() == rows

        def convert(kind, target):
            subprocess.run([sys.executable, args.converter, str(source), '--outtype', kind, '--outfile', str(target), '--model-name', name], check=True,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        convert('f32', Path(scratch) / 'f32.gguf')
        for number, kind in enumerate(kinds):
            path = out / f'{name}-{kind}.gguf'
            convert(kind, path) if kind in CONVERTED else quantize(library, Path(scratch) / 'f32.gguf', path, QUANTIZED[kind])
            ids = np.random.default_rng(number).integers(3, rows, 40).astype(np.int32)
            ids[0] = vocabulary.bos_id()
            logits, found = expected_logits(checkpoint, path, ids)
            expected |= {f'{path.stem}.ids': ids, f'{path.stem}.logits_f32': logits}
            index.append({'file': path.name, 'tensors': found})
        texts = [{'text': text, 'ids': vocabulary.encode(text)} for text in TEXTS]
    save_file(expected, out / 'expected.safetensors')
    (out / 'expected.json').write_text(json.dumps(index, indent=1) + '\n')
    (out / 'tokens.json').write_text(json.dumps(texts, indent=None, ensure_ascii=False).replace('}, ', '},\n') + '\n')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--converter', required=True)
    parser.add_argument('--libraries', required=True)
    parser.add_argument('--only', choices=FILES)
    parser.add_argument('--out', type=Path, default=GOLDEN / 'gguf')
    args = parser.parse_args()
    library = load_libllama(args.libraries)
    for name, kinds in FILES.items():
        if args.only in (None, name):
            make(name, kinds, args, library)


if __name__ == '__main__':
    main()
