"""PyTorch on the shapes that our own benchmarks have just run, on the same device: cuBLASLt int8 and bf16 products, SDPA's backends, FlexAttention.

    python3 bench/gpu/peers.py RESULTS.ndjson OUT.ndjson [--seconds 90]

RESULTS is what lapidary_gpu_bench wrote; each of its cases that PyTorch can do gets a line in OUT with the same family and case, the backend and
the time. Timed as ours: recorded in a CUDA graph, other buffers for every call (together more than twice the L2), median of the samples.
"""
import argparse
import json
import statistics
import time

import torch

DEVICE = "cuda"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("results")
    parser.add_argument("out")
    parser.add_argument("--seconds", type=float, default=90)
    arguments = parser.parse_args()
    end = time.monotonic() + arguments.seconds
    with open(arguments.results) as file:
        cases = [json.loads(line) for line in file if line.strip()]
    runners = {
        "gemm_int8": int8_product, "gemm_bf16": bf16_product, "gemv": skinny_product,
        "attention_prefill": prefill_attention, "attention_decode": decode_attention,
    }
    with open(arguments.out, "w") as out:
        for case in cases:
            if not case.get("ok") or case.get("family") not in runners:
                continue
            for backend, make in runners[case["family"]](case):
                if time.monotonic() > end:
                    return
                line = {"family": case["family"], "case": case["case"], "backend": backend}
                try:
                    line.update(measure(make))
                    print(f"{case['case']:50s} {backend:28s} {line['us']:10.2f} us   ours {case['us']:10.2f} us")
                except Exception as error:  # one backend that refuses a shape does not end the others
                    line["error"] = str(error).split("\n")[0][:200]
                    print(f"{case['case']:50s} {backend:28s} {line['error'][:60]}")
                finally:
                    torch.cuda.empty_cache()
                out.write(json.dumps(line) + "\n")
                out.flush()


def rotation(size_bytes):
    cold = 2 * torch.cuda.get_device_properties(0).L2_cache_size
    return max(2, min(256, int(cold / max(size_bytes, 1)) + 2))


def measure(make, seconds=0.25):
    """`make()` gives (call, sets): call(i) does the work on set i % sets."""
    call, sets = make()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), torch.inference_mode():
        for i in range(3):
            call(i % sets)
        stream.synchronize()
        begin, finish = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call(0)
        call(1 % sets)
        finish.record()
        finish.synchronize()
        each_ms = max(begin.elapsed_time(finish) / 2, 1e-4)
        calls = max(1, min(max(int(0.4 / each_ms), sets), int(seconds * 100 / each_ms), 2048))
        replay = graph_of(call, calls, sets, stream)
        for _ in range(3):
            replay()
        samples, start = [], time.monotonic()
        while len(samples) < 7 or (len(samples) < 51 and time.monotonic() - start < seconds):
            begin.record()
            replay()
            finish.record()
            finish.synchronize()
            samples.append(begin.elapsed_time(finish) * 1e3 / calls)
    samples.sort()
    tenth = len(samples) // 10
    return {"us": statistics.median(samples), "us_p10": samples[tenth], "us_p90": samples[-1 - tenth], "samples": len(samples), "calls_per_sample": calls}


def graph_of(call, calls, sets, stream):
    """The calls as one graph; as plain calls where something in them cannot be captured."""
    def plain():
        for i in range(calls):
            call(i % sets)
    try:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            plain()
        return graph.replay
    except Exception:
        torch.cuda.synchronize()
        return plain


def int8_matrix(rows, columns):
    return torch.randint(-127, 128, (rows, columns), dtype=torch.int8, device=DEVICE)


def bf16_matrix(*shape):
    return torch.rand(shape, device=DEVICE, dtype=torch.bfloat16) * 2 - 1


def int8_product(case):
    m, n, k = case["m"], case["n"], case["k"]

    def make():
        sets = rotation(n * k)
        x, weights = int8_matrix(m, k), [int8_matrix(n, k) for _ in range(sets)]
        return (lambda i: torch._int_mm(x, weights[i].t())), sets

    return [("torch._int_mm (cuBLASLt, int32 out)", make)] if m > 16 else []


def bf16_product(case):
    m, n, k = case["m"], case["n"], case["k"]

    def make():
        sets = rotation(2 * n * k)
        x, weights = bf16_matrix(m, k), [bf16_matrix(n, k) for _ in range(sets)]
        return (lambda i: torch.mm(x, weights[i].t())), sets

    return [("torch.mm (cuBLAS)", make)]


def skinny_product(case):
    return bf16_product(case) if case["case"].startswith("bf16 ") else []


def attention_inputs(case, query_tokens, key_tokens):
    heads, kv_heads, dim = case["heads"], case["kv_heads"], case["head_dim"]
    sets = min(rotation(4 * kv_heads * key_tokens * dim), 64) if query_tokens == 1 else 2
    q = bf16_matrix(1, heads, query_tokens, dim)
    kv = [(bf16_matrix(1, kv_heads, key_tokens, dim), bf16_matrix(1, kv_heads, key_tokens, dim)) for _ in range(sets)]
    return q, kv, sets


def sdpa(case, query_tokens, key_tokens, backend, causal):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    kind = getattr(SDPBackend, backend)

    def make():
        q, kv, sets = attention_inputs(case, query_tokens, key_tokens)

        def call(i):
            with sdpa_kernel(kind):
                k, v = kv[i]
                return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=case["heads"] != case["kv_heads"])
        return call, sets

    return f"SDPA {backend}", make


BACKENDS = ["FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION"]


def prefill_attention(case):
    if case["int8"]:
        return []
    if not case["window"]:
        return [sdpa(case, case["tokens"], case["tokens"], backend, True) for backend in BACKENDS]

    def make():
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention
        tokens, window = case["tokens"], case["window"]
        mask = create_block_mask(lambda b, h, q, k: (q >= k) & (q - k < window), None, None, tokens, tokens, device=DEVICE)
        compiled = torch.compile(flex_attention)
        q, kv, sets = attention_inputs(case, tokens, tokens)
        return (lambda i: compiled(q, kv[i][0], kv[i][1], block_mask=mask, enable_gqa=case["heads"] != case["kv_heads"])), sets

    return [("FlexAttention, compiled", make)]


def decode_attention(case):
    if case["int8"] or case["window"]:
        return []
    return [sdpa(case, 1, case["keys"], backend, False) for backend in BACKENDS]


if __name__ == "__main__":
    main()
