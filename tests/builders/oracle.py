"""A second runtime of plan schema 2, for ONNX Runtime on a CPU, written from the page on the plan format alone."""

import hashlib
import json
import re
from itertools import groupby
from pathlib import Path
from typing import Any
from unicodedata import category

import numpy as np
import onnxruntime as ort
import safetensors

from videossm.runtime.elementary import cos_sin, log

Array = np.ndarray[Any, Any]
TYPES = {"float32": ("<f4", 1, "F32"), "float16": ("<f2", 10, "F16"), "bfloat16": ("<u2", 16, "BF16")}
TYPES |= {"int64": ("<i8", 7, "I64"), "int32": ("<i4", 6, "I32"), "uint8": ("|u1", 2, "U8")}  # NumPy, ONNX, safetensors
SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"  # Unicode's White_Space, and below its \\w
WORD = "[LM]|N[dl]|Pc|..[\u200c\u200d\u24b6-\u24e9\U0001f130-\U0001f149\U0001f150-\U0001f169\U0001f170-\U0001f189]"


def noise(seeds: list[int], chunk: int, draw: int, shape: list[int]) -> Array:
    """Noise for the streams of a batch, by Philox4x32-10."""
    count, low, key = int(np.prod(shape[1:])), 0xFFFFFFFF, np.array(seeds, np.uint64)[:, None]
    words = np.arange((count + 3) // 4), draw, chunk & low, chunk >> 32
    x: list[Array] = [np.full((len(seeds), len(words[0])), word, np.uint64) for word in words]
    for i in range(10):
        k, a, b = [(key & low) + i * 0x9E3779B9, (key >> 32) + i * 0xBB67AE85], x[0] * 0xD2511F53, x[2] * 0xCD9E8D57
        x = [b >> 32 ^ x[1] ^ k[0] & low, b & low, a >> 32 ^ x[3] ^ k[1] & low, a & low]
    u = (np.stack(x, -1).astype(np.float64) + 0.5) * 2.0**-32
    pairs = [np.sqrt(-2.0 * log(u[..., ::2])) * part for part in cos_sin(u[..., 1::2])]
    return np.stack(pairs, -1).astype(np.float32).reshape(len(seeds), -1)[:, :count].reshape(shape)


class Oracle:
    """A stream of a plan. `now` holds what engines read, by source; `state.N@k` is the copy that pass k has of N."""

    def __init__(self, path: str | Path, prompts: list[str] | None, seeds: list[int], threads: int = 1) -> None:
        folder, self.files, options = Path(path).resolve(), dict[str, Path](), ort.SessionOptions()
        data = (folder / "manifest.json").read_bytes()
        self.plan, digest = json.loads(data), hashlib.sha256(data[:-68]).hexdigest()
        assert data[-68:] == f'{digest}"\n}}\n'.encode() and self.plan["checksum"] == digest, "manifest.json: checksum"
        assert (len(data) <= 1 << 26, self.plan["schema_version"], self.plan["backend"]) == (True, 2, "onnxruntime")
        for name, entry in self.plan["files"].items():
            file = self.files[name] = folder / name
            assert file.resolve() == file and file.is_relative_to(folder) and file.is_file(), f"{name}: no regular file"
            found = file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest()
            assert found == (entry["size_bytes"], entry["sha256"]), f"{name}: {found}"
        self.engines, self.passes, self.text = (self.plan[key] for key in ("engines", "passes", "text"))
        window = self.plan["window"] or {"chunks": 1, "sink": 0, "chunk_frames": 0, "positions": "window"}
        self.size, self.sink, self.absolute = window["chunks"], window["sink"], window["positions"] == "absolute"
        self.frames, self.end = np.arange(window["chunk_frames"]), self.plan["stream"]["chunks"] or (1 << 48) - 1
        options.intra_op_num_threads, cpu = threads, ["CPUExecutionProvider"]
        if self.plan["precision"] == "int8" and "vnni" not in Path("/proc/cpuinfo").read_text():
            options.add_session_config_entry("session.x64quantprecision", "1")
        self.sessions = {n: ort.InferenceSession(self.files[e["file"]], options, cpu) for n, e in self.engines.items()}
        self.shape = next(t["shape"] for e in self.engines.values() for t in e["outputs"] if t["target"] == "sample")
        states = {f"state.{s['name']}": s for s in self.plan["states"]}
        kinds = {name: "copy" if s["per_pass"] else s["kind"] for name, s in states.items()}
        if self.text and "ring" in kinds.values():
            states["state.:sample"], kinds["state.:sample"] = {"dtype": "float32", "shape": self.shape}, "ring"
        self.rings, self.carries, self.copies = ([n for n in kinds if kinds[n] == k] for k in ("ring", "carry", "copy"))
        self.kept = {name: states[name] for name in self.rings + self.carries}
        self.kept |= {f"{name}@{k}": states[name] for name in self.copies for k in range(len(self.passes))}
        self.now = {name: np.zeros(state["shape"], TYPES[state["dtype"]][0]) for name, state in self.kept.items()}
        self.now |= {name: np.repeat(self.now[name], self.size, 1) for name in self.rings}
        self.chunk, self.prompts, self.seeds = 0, list[str](), seeds
        assert len(seeds) == self.plan["stream"]["batch"] and 0 <= min(seeds) <= max(seeds) < 1 << 64, f"seeds {seeds}"
        assert noise([0], 0, 0, [1, 8])[0].tolist() == self.plan["self_test"]["noise"], "manifest.json: self_test"
        self.set_prompt(prompts)

    def set_prompt(self, prompts: list[str] | None) -> None:
        """Sets the prompts of all streams from the next chunk on; none means no new ones."""
        if not prompts:
            self.next_prompts, self.next_text = prompts, dict[str, Array]()
            return
        file = json.loads(self.files["tokenizer.json"].read_bytes())
        kinds = [file[key] and file[key]["type"] for key in ("model", "post_processor", "normalizer", "pre_tokenizer")]
        assert re.fullmatch("WordLevel None (None|Lowercase) Whitespace(Split)?", " ".join(map(str, kinds))), f"{kinds}"
        special = "|".join(sorted((re.escape(t["content"]) for t in file["added_tokens"]), key=len)[::-1]) or "(?!)"
        vocab, unknown = file["model"]["vocab"], file["model"]["vocab"][file["model"]["unk_token"]]
        ids, mask = (np.full((len(self.seeds), self.text["length"]), n, np.int64) for n in (self.text["padding_id"], 0))
        for row, prompt in enumerate(prompts):
            letters = {c for c in prompt if kinds[3] != "Whitespace" or re.match(WORD, category(c) + c)}
            words = re.findall(f"({special})|((?:(?!{special})[^{SPACE}])+)", prompt)
            runs = [(token, groupby(token or word, bool if token else letters.__contains__)) for token, word in words]
            parts = [(token, "".join(run)) for token, groups in runs for _, run in groups]
            assert 0 < len(parts) <= self.text["length"] and len(prompts) == len(ids), f"prompt: {len(parts)} tokens"
            for at, (token, part) in enumerate(parts):
                ids[row, at], mask[row, at] = vocab.get(part.lower() if kinds[2] and not token else part, unknown), 1
                fine = not token and ids[row, at] not in (self.text["padding_id"], unknown)
                assert fine or self.text["unknown"] == "encode", f"prompt: unknown word {part!r}"
        self.next_prompts, self.next_text = prompts, {"text.ids": ids, "text.mask": mask}

    def run(self, name: str, sources: dict[str, Array]) -> dict[str, Array]:
        """Runs an engine and gives what it makes, by target."""
        binding, arrays, made = self.sessions[name].io_binding(), list[Array](), dict[str, Array]()
        for t in self.engines[name]["inputs"] + self.engines[name]["outputs"]:
            dtype, number, _ = TYPES[t["dtype"]]
            arrays.append(np.ascontiguousarray(sources[t["source"]]) if "source" in t else np.empty(t["shape"], dtype))
            assert (arrays[-1].dtype, [*arrays[-1].shape]) == (dtype, t["shape"]), f"manifest.json: {name}: {t}"
            bind = binding.bind_input if "source" in t else binding.bind_output
            bind(t["name"], "cpu", 0, number, t["shape"], arrays[-1].ctypes.data)
            made |= {t["target"]: arrays[-1]} if "target" in t else {}
        self.sessions[name].run_with_iobinding(binding)
        return made

    def calls(self, *moments: str) -> None:
        """Runs the calls of a moment; carries are seen when all are done."""
        carried = dict[str, Array]()
        for call in [call for call in self.plan["calls"] if call["when"] in moments]:
            for target, value in self.run(call["engine"], self.now).items():
                (carried if target in self.carries else self.now)[target] = value
        self.now |= carried

    def part(self, x: Array, c: int) -> Array:
        """The slot of chunk c in a ring x, as a view."""
        return np.split(x, self.size, 1)[c if c < self.sink else self.sink + (c - self.sink) % (self.size - self.sink)]

    def make(self, chunk: int, visible: list[int], clean: Array | None) -> None:
        """Makes a chunk, up to its place in the window; one that has been made only takes its place again."""
        many, done = len(self.frames), dict[str, Array]()
        slots, own = np.full((1, self.size * many), -1), (chunk if self.absolute else len(visible)) * many + self.frames
        for rank, b in enumerate(visible):
            self.part(slots, b)[:] = (b if self.absolute else rank) * many + self.frames
        rho = np.array([min(1.0, max(0.001, (self.chunk - self.size) / max(1, self.chunk)))], np.float32)
        self.now |= {"window.slot_position": slots[0], "window.frame_position": own, "window.rho": rho}
        self.calls("before")
        self.now["sample"] = noise(self.seeds, chunk, 0, self.shape) if clean is None else clean
        for k, step in enumerate(self.passes):
            if clean is None or step["commits"]:
                now = self.now | {f"pass.{name}": np.array([value], "<f4") for name, value in step["scalars"].items()}
                drawn = noise(self.seeds, chunk, k + 1, self.shape) if step["noise"] else np.zeros(self.shape, "<f4")
                wrote = self.run(step["engine"], now | {n: now[f"{n}@{k}"] for n in self.copies} | {"noise": drawn})
                self.now |= {name: wrote.pop(name) for name in [*wrote] if name in self.now.keys() - self.kept.keys()}
                done |= {f"{name}@{k}": wrote.pop(name) for name in self.copies} | (wrote if step["commits"] else {})
        done["state.:sample"] = self.now["clean"] = self.now["sample"]
        if chunk == self.chunk:
            self.now |= {name: value for name, value in done.items() if name not in self.rings}
            self.now |= {f"evicted{name[5:]}": self.part(self.now[name], chunk) for name in self.rings}
            self.calls("evict" if chunk >= self.size else "")
        for name in self.rings:
            self.part(self.now[name], chunk)[:] = done[name]

    def next(self, clean: Array | None = None) -> tuple[Array, Array]:
        """Makes a chunk, or takes its clean sample from outside; gives the clean sample and the frames."""
        c, asked, text = self.chunk, self.next_prompts, self.next_text
        assert c < self.end and (asked or self.prompts or not self.text), "the clip has ended, or there is no prompt"
        assert clean is None or not self.copies, "a clean sample, but a state of each pass"
        held = [b for b in (*range(self.sink), *range(max(self.sink, c - self.size + self.sink), c)) if b < c]
        self.set_prompt(None)
        if any(not np.array_equal(text[source], self.now.get(source, ())) for source in text):
            self.now, self.prompts = self.now | text, asked or []
            self.calls("prompt")
            for i, b in enumerate(held if self.rings else []):
                self.make(b, held[:i], self.part(self.now["state.:sample"], b))
        self.make(c, held, clean)
        self.calls("after", "after_later" if c else "after_first")
        self.chunk += 1
        return self.now["clean"], self.now.pop("frames")

    def save(self, path: str | Path) -> None:
        """Writes a state file."""
        rollout = {"prompts": self.prompts, "next_prompts": self.next_prompts, "seeds": [*map(str, self.seeds)]}
        text, data = json.dumps(rollout | {"chunk": str(self.chunk)}, separators=(",", ":")), b""
        meta = {"format": "videossm-state", "format_version": "2", "plan_name": self.plan["name"], "rollout": text}
        header: dict[str, Any] = {"__metadata__": meta | {"stream_identity": self.plan["stream_identity"]}}
        for name, state in self.kept.items():
            ends = [len(data), len(data := data + self.now[name].tobytes())]
            header[name[6:]] = {"dtype": TYPES[state["dtype"]][2], "shape": self.now[name].shape, "data_offsets": ends}
        head = json.dumps(header).encode()
        Path(path).write_bytes(len(head).to_bytes(8, "little") + head + data)

    def load(self, path: str | Path) -> None:
        """Goes on from a state file, if all of it holds."""
        data, now = Path(path).read_bytes(), dict[str, Array]()
        meta = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        rollout, tensors = json.loads(meta["rollout"]), dict(safetensors.deserialize(data))
        facts = meta["format"], meta["format_version"], meta["stream_identity"], set(tensors), sorted(rollout)
        keys = {name[6:] for name in self.kept}, ["chunk", "next_prompts", "prompts", "seeds"]
        assert facts == ("videossm-state", "2", self.plan["stream_identity"], *keys), f"state: {facts}"
        prompts, asked, numbers = rollout["prompts"], rollout["next_prompts"], [rollout["chunk"], *rollout["seeds"]]
        assert len(numbers) == len(self.seeds) + 1 and all(re.fullmatch("0|[1-9][0-9]*", n) for n in numbers), numbers
        chunk, *seeds = map(int, numbers)
        assert max(seeds) < 1 << 64 and chunk <= self.end and bool(prompts) == bool(chunk and self.text), f"{rollout}"
        for name, state in self.kept.items():
            given, new = tensors[name[6:]], state["dtype"]
            old, shape = {TYPES[t][2]: t for t in TYPES}[given["dtype"]], [*self.now[name].shape]
            assert (old == new or ("float" in old and "float" in new)) and given["shape"] == shape, name
            raw = np.frombuffer(given["data"], TYPES[old][0]).reshape(given["shape"]).copy()
            wide = (raw.astype("<u4") << 16).view("<f4") if old == "bfloat16" else raw.astype("<f4")
            half = (wide.view("<u4") + 0x7FFF + (wide.view("<u4") >> 16 & 1) >> 16).astype("<u2")  # to nearest even
            now[name] = raw if old == new else half if new == "bfloat16" else wide.astype(TYPES[new][0])
            assert np.isfinite(wide).all() and np.isfinite(now[name]).all() and (chunk or not wide.any()), name
        self.set_prompt(prompts)
        self.now, self.prompts, self.chunk, self.seeds = now | self.next_text, prompts, chunk, seeds
        self.calls("prompt" if prompts else "")
        self.set_prompt(asked)
