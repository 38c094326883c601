"""What knows no family names none: its models, engines, modules and tensors are the manifest's to name.

Looked at is what runs: names in the code and words in its strings. Docstrings and comments may say what was measured.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
# `memory`, `head` and `gate` are engines or modules, too, and words of any program.
WORDS = {
    *("shapes", "wan", "ssm_vdm"),
    *("text_encoder", "turn", "step", "steps", "decoder", "decoder_first"),
    *("transformer", "self_attn", "cross_attn", "ffn", "qkv", "patch_embedding", "out_gate", "gelu"),
    *(
        "latent",
        "latents",
        "latent_next",
        "sigma",
        "sigmas",
        "sigma_next",
        "past",
        "present",
        "seen_key",
        "seen_value",
        "decay",
        "beta",
    ),
    *("input_ids", "attention_mask"),
}
PLACES = (
    *("runtime", "export", "calib", "cost", "serve", "batch"),
    *(
        f"benchmarks/{name}.py"
        for name in ("batch", "bench", "engine_builds", "gpu_plans", "machine", "same_numbers", "serve")
    ),
)
SCAN = "an input of the scans' operators, which are the project's own"
ALLOWED = {  # file, word -> why
    ("export/lowering/batched_heads.py", "decay"): SCAN,
    ("export/lowering/batched_heads.py", "beta"): SCAN,
    ("export/lowering/contrib.py", "decay"): SCAN,
    ("export/lowering/contrib.py", "beta"): SCAN,
    ("export/lowering/standard.py", "decay"): SCAN,
    ("export/lowering/standard.py", "beta"): SCAN,
    ("export/lowering/standard.py", "shapes"): "of tensors",
    ("export/schemas.py", "decay"): SCAN,
    ("export/schemas.py", "beta"): SCAN,
    ("export/schemas.py", "step"): "the step size of a scan",
    ("export/tensorrt/phases.py", "step"): "TensorRT's word for a part of a phase",
    ("export/tensorrt/phases.py", "steps"): "TensorRT's word for the parts of a phase",
    ("runtime/program.py", "past"): "the value of a state before an engine has run",
    ("runtime/program.py", "present"): "what a commit leaves for the ring",
    ("runtime/wordlevel.py", "decoder"): "a field of a tokenizer's file",
    ("benchmarks/gpu_plans.py", "shapes"): "the plans that it makes by itself",
    ("calib/observers.py", "present"): "the bins of a histogram that hold something",
}


def words(source: str) -> Iterator[tuple[int, str]]:
    """Names and words of strings with their lines, docstrings left out."""
    tree = ast.parse(source)
    documented = [n for n in ast.walk(tree) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef) and n.body]
    docstrings = {id(n.body[0].value) for n in documented if isinstance(n.body[0], ast.Expr)}
    for node in ast.walk(tree):
        found = [getattr(node, field, None) for field in ("id", "arg", "attr", "name")]
        if isinstance(node, ast.Constant) and id(node) not in docstrings:
            found.append(node.value)
        for text in found:
            if isinstance(text, str):
                yield from ((getattr(node, "lineno", 0), word) for word in re.findall(r"[a-z][a-z0-9_]*", text))


def test_no_family_is_named() -> None:
    wrong, used = [], set()
    for place in PLACES:
        files = sorted((ROOT / place).rglob("*.py")) if (ROOT / place).is_dir() else [ROOT / place]
        assert files, f"{place}: got no modules, expected some"
        for file in files:
            name = file.relative_to(ROOT).as_posix()
            for line, word in words(file.read_text(encoding="utf-8")):
                if word in WORDS and (name, word) in ALLOWED:
                    used.add((name, word))
                elif word in WORDS:
                    wrong.append(f"{name}:{line}: {word}")
    assert not wrong, f"words of a family: {wrong}"
    assert used == ALLOWED.keys(), f"allowed, but not there: {ALLOWED.keys() - used}"


def test_a_family_is_named_in_its_own_folder_alone() -> None:
    """And where families are listed; what is tested, trained and told of it is its own."""
    named = []
    for folder in ("benchmarks", "calib", "commands", "examples", "export", "models", "plugins_trt", "runtime"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            name = file.relative_to(ROOT).as_posix()
            if not name.startswith("models/ssm_vdm/") and re.search(
                "(?i)ssm[-_]?vdm", file.read_text(encoding="utf-8")
            ):
                named.append(name)
    assert named == ["models/family.py"]


def test_names_strings_and_attributes_are_seen() -> None:
    source = '"""step"""\ndef f(past):\n    x.latents["self_attn.q of the ffn"]\n    g(sigma=1)'
    assert WORDS & {word for _, word in words(source)} == {"past", "latents", "self_attn", "ffn", "sigma"}
