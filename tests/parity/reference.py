"""The reference implementation, in a process of its own: nothing else of the project imports torch or transformers.

    python tests/parity/reference.py make FOLDER NAME ...   # of `CASES`: FOLDER/NAME/{model,gradient}/, expected.npz
    python tests/parity/reference.py answer JOBS.json       # [{"model": ..., "expected": ..., "answer": ...}, ...]

A model has random weights far from those that training begins with: norms and biases that do something, logits that
vary by more than one. What it says is computed with eager attention, on one thread.
"""

import json
import os
import sys
import zlib
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import numpy as np
import torch
import transformers

from tests.parity.cases import CASES, LENGTHS, NEW_TOKENS, PROMPTS, Case

MARGIN = 5e-3  # between the first and the second choice of every greedy token: nobody disagrees by rounding
SEEDS = 50


def build(name: str, case: Case) -> Any:
    """The model of `case` with its weights as the files hold them, computing in float32."""
    config = getattr(transformers, f"{case.kind}Config")(**case.settings)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    with torch.no_grad():
        for path, weight in model.named_parameters():
            value = drawn(path, weight.shape, generator, offset="gemma" in name)
            weight.copy_(value.to(getattr(torch, case.dtype)))  # weights alone: rotations stay in float32
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def drawn(path: str, shape: tuple[int, ...], generator: torch.Generator, *, offset: bool) -> torch.Tensor:
    """Random values for the parameter called `path`; norms of a family with an `offset` multiply by 1 + theirs."""
    noise = torch.randn(shape, generator=generator)
    if "norm" in path:
        return noise.clamp(-2, 2) * 0.3 + (0.0 if offset else 1.0)
    if path.endswith("bias"):
        return noise * 0.5
    if "embed_tokens" in path or "lm_head" in path:
        return noise * 0.5
    return noise * (2.0 if ".gate.weight" in path else 1.2) * shape[-1] ** -0.5


def batch(case: Case, seed: int) -> torch.Tensor:
    """Tokens i64[4, 12], rows beginning with the prompts that they share; what is past the end of a row is 0."""
    draw = np.random.default_rng(seed)
    tokens = draw.integers(1, case.settings["vocab_size"], (len(LENGTHS), max(LENGTHS)))
    for row, size in enumerate(PROMPTS):
        tokens[row, :size] = tokens[row - row % 2, :size]
        tokens[row, LENGTHS[row] :] = 0
    return torch.tensor(tokens)


def padded(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Logits f32[4, 12, V] of the whole batch at once."""
    mask = torch.arange(tokens.shape[1])[None] < torch.tensor(LENGTHS)[:, None]
    return model(input_ids=tokens, attention_mask=mask.long(), use_cache=False).logits


def alone(model: Any, tokens: torch.Tensor) -> np.ndarray:
    """The same of every row in a batch of its own, the shortest first, as some rotations remember the longest."""
    found = np.zeros((*tokens.shape, model.config.vocab_size), np.float32)
    for row in np.argsort(LENGTHS):
        size = LENGTHS[row]
        found[row, :size] = model(input_ids=tokens[row : row + 1, :size], use_cache=False).logits[0].numpy()
    return found


def greedy(model: Any, tokens: torch.Tensor) -> tuple[np.ndarray, np.ndarray, float]:
    """Continuations i64[2, 8] of the two prompts, their log-probabilities, and the smallest lead of a choice."""
    found, logp, lead = [], [], np.inf
    for row in (2, 0):
        prompt = tokens[row : row + 1, : PROMPTS[row]]
        whole = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=NEW_TOKENS
        )
        logits = model(input_ids=whole, use_cache=False).logits[0, PROMPTS[row] - 1 : -1]
        said = torch.log_softmax(logits, -1)
        found.append(whole[0, PROMPTS[row] :])
        logp.append(said.gather(1, found[-1][:, None])[:, 0])
        best = said.topk(2).values
        lead = min(lead, float((best[:, 0] - best[:, 1]).min()))
    return torch.stack(found[::-1]).numpy(), torch.stack(logp[::-1]).numpy(), lead


def loss(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood of the tokens behind the prompts."""
    said = torch.log_softmax(padded(model, tokens)[:, :-1], -1).gather(2, tokens[:, 1:, None])[..., 0]
    place = torch.arange(1, tokens.shape[1])[None]
    read = (place >= torch.tensor(PROMPTS)[:, None]) & (place < torch.tensor(LENGTHS)[:, None])
    return -said[read].mean()


def make(folder: Path, name: str) -> None:
    """Write everything about one case; the folder appears when it is complete."""
    case, unfinished = CASES[name], folder / f"{name}.part"
    model = build(name, case)
    with torch.no_grad():
        for seed in range(SEEDS):
            tokens = batch(case, seed)
            continuation, logp, lead = greedy(model, tokens)
            if lead > MARGIN or case.varies:
                break
        expected: dict[str, Any] = {"tokens": tokens.numpy(), "greedy": continuation, "greedy_logp": logp}
        expected["alone"] = alone(model, tokens)  # ends with the longest, which is what the whole batch is then read by
        expected["padded"] = padded(model, tokens).numpy()
    spread = float(np.std(expected["alone"][0, : LENGTHS[0]]))
    assert (lead > MARGIN or case.varies) and spread > 1, (name, lead, spread)
    value = loss(model, tokens)
    value.backward()
    gradients = {path: weight.grad.clone() for path, weight in model.named_parameters()}
    size = {"max_shard_size": "20KB"} if case.shards else {}
    model.to(getattr(torch, case.dtype)).save_pretrained(unfinished / "model", **size)
    assert not case.shards or len(list((unfinished / "model").glob("*.safetensors"))) > 1, name
    if case.version4:
        as_version4(unfinished / "model" / "config.json")
        with torch.no_grad():
            again = load(unfinished / "model")[0]
            np.testing.assert_allclose(padded(again, tokens).numpy(), expected["padded"], atol=1e-5)
    with torch.no_grad():
        model.float()
        for path, weight in model.named_parameters():
            weight.copy_(gradients[path])
    model.save_pretrained(unfinished / "gradient")
    np.savez(unfinished / "expected.npz", loss=value.item(), **expected)
    unfinished.rename(folder / name)


def as_version4(path: Path) -> None:
    """Rewrite a config.json to what transformers 4 wrote, and what most published models have."""
    config = json.loads(path.read_text())
    layers = config.pop("layer_types", None)
    rules = config.pop("rope_parameters")
    if "full_attention" in rules:
        config["rope_local_base_freq"] = rules["sliding_attention"]["rope_theta"]
        config["sliding_window_pattern"] = layers.index("full_attention") + 1
        rules = rules["full_attention"]
    config["rope_theta"] = rules.pop("rope_theta")
    config["rope_scaling"] = None if rules["rope_type"] == "default" else rules
    if (
        rules["rope_type"] in ("linear", "dynamic") and "sliding_window_pattern" not in config
    ):  # written before the key had its present name
        rules["type"] = rules.pop("rope_type")
    config["torch_dtype"] = config.pop("dtype")
    config["transformers_version"] = "4.46.0"
    path.write_text(json.dumps(config, indent=2))


def load(folder: Path) -> tuple[Any, list[str]]:
    """The model that a folder holds, in float32, and what was wrong with its weights."""
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True, local_files_only=True
    )
    model, found = loaded
    return model.eval(), sorted(f"{kind}: {name}" for kind, names in found.items() for name in names)


def answer(job: dict[str, str]) -> None:
    """What the model of a folder says of the batch of another's `expected.npz`."""
    with np.load(job["expected"], allow_pickle=False) as stored:
        tokens = torch.tensor(stored["tokens"])
    model, complaints = load(Path(job["model"]))
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    with torch.no_grad():
        found: dict[str, Any] = {"padded": padded(model, tokens).numpy(), "greedy": greedy(model, tokens)[0]}
    unfinished = Path(job["answer"]).with_suffix(".part.npz")
    found["complaints"] = np.array(complaints, dtype=str)
    np.savez(unfinished, **found)
    unfinished.rename(job["answer"])


def main() -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if sys.argv[1] == "make":
        for name in sys.argv[3:]:
            make(Path(sys.argv[2]), name)
    else:
        for job in json.loads(Path(sys.argv[2]).read_text()):
            answer(job)


if __name__ == "__main__":
    main()
