"""The process that holds a vLLM engine: JSON lines in, JSON lines out, tensors in files.

Run as a script by the interpreter that has vllm, which need not have entropy-lab:
`python vllm_worker.py FOLDER`. Requests are {"do": "start" | "update" | "generate", ...}, with the
arguments of the functions below; the answer is an object, {"error": ...} after an exception. Then
the process ends: an engine that has failed is never used again. "missing" is true where vllm or a
module that it needs is not installed. The process also ends, and removes FOLDER, when its input is
closed, as it is by the death of the trainer.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import sys
import threading
from pathlib import Path
from typing import Any


class Engine:
    """vLLM's LLM in this very process, asleep between rollouts where it can sleep."""

    def __init__(self, options: dict[str, Any]):
        """options: arguments of vllm.LLM."""
        from vllm import LLM  # type: ignore[import-not-found]

        self.sleeps = bool(options.get("enable_sleep_mode"))
        self.llm = LLM(**options)
        self._sleep()

    def _sleep(self) -> None:
        if self.sleeps:
            self.llm.sleep(level=2)  # weights and cache are dropped: an update comes first

    def _wake(self, what: str) -> None:
        if self.sleeps:
            self.llm.wake_up(tags=[what])

    def update(self, weights: str, aliases: list[list[str]]) -> dict[str, Any]:
        """Take the weights from a safetensors file; aliases: (name, stored name of the same).

        A tied head is streamed under its own name too: where the kernels keep a copy of it,
        nothing else would refresh that copy.
        """
        from safetensors import safe_open

        with safe_open(weights, framework="pt") as stored:

            def stream() -> Any:
                for name in stored.keys():
                    yield name, stored.get_tensor(name)
                for name, same in aliases:
                    yield name, stored.get_tensor(same)

            self._wake("weights")
            self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": stream()})
        self._wake("kv_cache")
        # Keys and values of the old weights would answer for prompts longer than a block.
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("the prefix cache was not reset")
        return {}

    def generate(
        self, prompts: list[list[int]], seeds: list[list[int]], out: str, **sampling: Any
    ) -> dict[str, Any]:
        """One response to a prompt for each of its seeds, prompts in order, into the file `out`.

        length (B,), token_id and logp (sum of length,): the tokens drawn, with the one that ended
        the response, and their log-probabilities in the distribution that they were drawn from.
        """
        import torch
        from safetensors.torch import save_file
        from vllm import SamplingParams  # type: ignore[import-not-found]

        # ignore_eos: the ends are those of stop_token_ids, not what the engine makes of a config.
        params = [
            SamplingParams(seed=s, logprobs=0, detokenize=False, ignore_eos=True, **sampling)
            for row in seeds
            for s in row
        ]
        asked = [
            {"prompt_token_ids": p} for p, row in zip(prompts, seeds, strict=True) for _ in row
        ]
        rows = [r.outputs[0] for r in self.llm.generate(asked, params, use_tqdm=False)]
        odd = {r.finish_reason for r in rows} - {"stop", "length"}
        if odd or len(rows) != len(asked):
            raise RuntimeError(f"{len(rows)} of {len(asked)} responses, ended by {odd or 'EOS'}")
        tokens = [list(r.token_ids) for r in rows]
        logp = [
            step[token].logprob
            for row, ids in zip(rows, tokens, strict=True)
            for step, token in zip(row.logprobs, ids, strict=True)
        ]
        found = {
            "length": torch.tensor([len(ids) for ids in tokens]),
            "token_id": torch.tensor([t for ids in tokens for t in ids]),
            "logp": torch.tensor(logp, dtype=torch.float32),
        }
        save_file(found, out)
        self._sleep()
        return {}

    def facts(self) -> dict[str, Any]:
        import vllm  # type: ignore[import-not-found]

        limit = self.llm.llm_engine.model_config.max_model_len
        return {"version": getattr(vllm, "__version__", ""), "max_model_len": limit}


def main(folder: str) -> None:
    # This folder has a vllm.py too, which is not the package.
    here = Path(__file__).resolve().parent
    sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != here]
    # Answers go where output went; whatever else is printed belongs to the log.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    requests: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=listen, args=(requests, folder), daemon=True).start()
    engine, code = None, 0
    answer: dict[str, Any]
    while not code:
        request = requests.get()
        do = request.pop("do")
        try:
            if do == "start":
                engine = Engine(**request)
                answer = engine.facts()
            else:
                answer = getattr(engine, do)(**request)
        except BaseException as error:
            import traceback

            traceback.print_exc()
            text = " ".join(str(error).split()) or "no message"
            answer, code = {"error": f"{type(error).__name__}: {text}"}, 1
            answer["missing"] = do == "start" and isinstance(error, ModuleNotFoundError)
        print(json.dumps(answer), file=answers, flush=True)
    sys.stderr.flush()
    os._exit(code)  # threads of a broken engine may never end by themselves


def listen(requests: queue.SimpleQueue[dict[str, Any]], folder: str) -> None:
    """Hand on the requests; end the process when there is nobody left to ask."""
    with os.fdopen(os.dup(0), "rb") as lines:
        for line in lines:
            requests.put(json.loads(line))
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
