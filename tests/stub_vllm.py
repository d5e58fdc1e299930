"""What the engine's process asks of vllm, with defects on demand: the package `vllm` of some tests.

STUB_FAIL names the defect. A token is drawn with the request's own seed from 1..9; its logp is
minus the sum of all weights that were streamed, so that they can be checked from outside.
"""

from __future__ import annotations

import os
import random
import sys
import time
from types import SimpleNamespace
from typing import Any

FAIL = os.environ.get("STUB_FAIL", "")
if FAIL == "import":
    raise ModuleNotFoundError("No module named 'gears'", name="gears")


class SamplingParams(SimpleNamespace):
    pass


class LLM:
    def __init__(self, **options: Any):
        print("chatter that is no answer")
        print("chatter about the options", options, file=sys.stderr)
        if FAIL == "start":
            raise ValueError("no room\nfor the cache")
        if FAIL == "hang":
            time.sleep(60)
        self.options, self.sum, self.fresh = options, float("nan"), False
        limit = options["max_model_len"] or 64
        self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=limit))

    def collective_rpc(self, name: str, kwargs: dict[str, Any]) -> None:
        assert name == "reload_weights"
        self.sum = sum(float(w.double().sum()) for _, w in kwargs["weights_iterator"])
        if FAIL == "update":
            raise RuntimeError("half of it")

    def reset_prefix_cache(self) -> bool:
        self.fresh = FAIL != "cache"
        return self.fresh

    def generate(self, asked: list[Any], params: list[Any], use_tqdm: bool) -> list[Any]:
        if FAIL == "exit":
            print("the last words", file=sys.stderr, flush=True)
            os._exit(7)
        return [self._one(p) for _, p in zip(asked, params, strict=True)]

    def _one(self, p: Any) -> Any:
        assert self.fresh and p.ignore_eos and p.logprobs == 0
        rng = random.Random(p.seed)
        tokens: list[int] = []
        while len(tokens) < p.max_tokens and tokens[-1:] != p.stop_token_ids:
            tokens.append(rng.randint(1, 9))
        logp = float("nan") if FAIL == "nan" else -self.sum
        out = SimpleNamespace(
            token_ids=tokens,
            logprobs=[{t: SimpleNamespace(logprob=logp)} for t in tokens],
            finish_reason="abort" if FAIL == "abort" else "length",
        )
        return SimpleNamespace(outputs=[out])
