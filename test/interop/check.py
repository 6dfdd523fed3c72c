"""Loads the checkpoints that lapidary wrote with transformers and compressed-tensors, and compares logits: check.py FOLDER

The library rounds by its own rule (scale = max / 127.5, q in [-128, 127]), so its logits are compared with those that lapidary computes by that
very rule. Static scales: equal to rounding, but for the rows after a chance tie (one in some ten thousand roundings). Dynamic ones: a row whose largest value is negative lies exactly between -127 and
-128, so the last bit of a sum decides there; the distance must be a fraction of the quantisation's own. Per-tensor dynamic ones have one such row a site. lapidary's own rule is compared by KL.
"""
import pathlib
import sys

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

LOGITS = 1e-4  # relative: sums of f32 in another order
STATIC_TIES, DYNAMIC_TIES = 0.05, 0.4  # of the quantisation's own KL; another rule of rounding is at 1 and more
OURS = 1.15  # our rule's KL to the unquantised model, against the library's


def kl(p, q):
    p, q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).mean().item()


def relative(got, want):
    return ((got - want).norm() / want.norm()).item()


def logits_of(folder, ids):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    layer = model.model.layers[0].self_attn.q_proj
    kinds = {name: parameter.dtype for name, parameter in layer.named_parameters()}
    with torch.no_grad():
        return model(ids.long()[None]).logits[0].float(), kinds


def main():
    torch.set_num_threads(1)
    passed = failed = 0

    def check(ok, text):
        nonlocal passed, failed
        passed, failed = passed + bool(ok), failed + (not ok)
        print(("ok   " if ok else "FAIL ") + text)

    for folder in sorted(path for path in pathlib.Path(sys.argv[1]).iterdir() if path.is_dir()):
        ours = load_file(folder / "logits.safetensors")
        with safe_open(folder / "logits.safetensors", "pt") as file:
            source = file.metadata()["source"]
        plain, _ = logits_of(source, ours["ids"])
        check(relative(ours["unquantised"], plain) <= LOGITS, f"{folder.name}: unquantised, relative {relative(ours['unquantised'], plain):.1e}")
        theirs, kinds = logits_of(folder, ours["ids"])
        check(kinds["weight"] == torch.int8 and kinds["weight_scale"] == torch.float32, f"{folder.name}: loaded as {kinds}")
        own, between = kl(plain, theirs), kl(theirs, ours["writer_rule"])
        static = folder.name.endswith("static")
        if static:
            errors = sorted(relative(a, b) for a, b in zip(ours["writer_rule"], theirs))
            median, exact = errors[len(errors) // 2], sum(error <= LOGITS for error in errors)
            check(median <= LOGITS, f"{folder.name}: their rule here and there, {exact} of {len(errors)} rows equal, median relative {median:.1e}")
        check(between <= (STATIC_TIES if static else DYNAMIC_TIES) * own, f"{folder.name}: their rule here and there, KL {between:.1e}; theirs to the unquantised {own:.1e}")
        mine = kl(plain, ours["ours"])
        check(mine <= OURS * own, f"{folder.name}: our rule to the unquantised, KL {mine:.2e}, {mine / own:.3f} of theirs")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


sys.exit(main())
