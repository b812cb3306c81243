"""The sampler against transformers' `generate`: the same prompts, one process, in turns.

    python tests/benchmarks/sampling.py [--quick] [--model PATH] [--json FILE] [--cases NAME ...]

Cases: `short` (8 samples a prompt of about 90 tokens), `long` (16 samples a prompt of about 800 tokens, every schema
another), `schema` (the same with ten questions on each schema), `growth` (ours alone, a shard of questions and ten).
`generate` is set as well as its public options allow: the model's own number format, sdpa attention, prompts sorted by
length, num_return_sequences, and the best of the row counts tried. `--quick` gives `generate` fewer prompts of the same
kind, both at most 40 new tokens, and compares rates. Counted are the tokens kept, up to the first end token.
On a machine that others use too, the ratio by processor time says more than that by the clock.

Compared are also the outputs: our log-probabilities with those of a plain forward pass over the same tokens, and mean
length and mean log-probability a token of the samples of both sides. Peak memory is what each side adds
to the process, the loaded model aside: resident set on the CPU, allocated memory on a GPU. `--model RUN/sft` takes an
adapter: its answers end after some 25 tokens, as in stage two, where the base model goes on to the limit.
"""

import argparse
import json
import sys
import tempfile
import time
from functools import cache
from pathlib import Path
from statistics import mean, stdev

# This checkout's packages before the script's own folder, which has files of the same names.
sys.path.insert(0, str(Path(__file__).parents[2]))

from peak_memory import with_peak_bytes

# samples, questions (full, and quick: ours and generate's), rows at a time for ours and for generate
CASES = {
    "short": {"samples": 8, "questions": 64, "quick": (12, 3), "rows": 96, "plain_rows": 64},
    "long": {"samples": 16, "questions": 16, "quick": (4, 1), "rows": 96, "plain_rows": 64},
    "schema": {"samples": 16, "questions": 20, "quick": (10, 1), "rows": 96, "plain_rows": 64},
}
SETTINGS = {"temperature": 1.0, "top_k": 32, "top_p": 1.0}
MAX_NEW_TOKENS, QUICK_NEW_TOKENS = 96, 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", help="embedded, a model's or an adapter's folder, or a hub name")
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    parser.add_argument("--cases", nargs="+", choices=(*CASES, "growth"), default=[*CASES, "growth"])
    parser.add_argument("--quick", action="store_true", help="under three minutes on two cores")
    parser.add_argument("--rounds", type=int, default=1, help="times that both sides take turns (default: 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    arguments = parser.parse_args()
    from sft import ranks

    ranks.prepare_environment(distributed=False)
    ranks.start(zero=False)
    from sft.checkpoint import load_for_inference

    model, tokenizer, _ = load_for_inference(arguments.model, precision=arguments.precision, attention="sdpa",
                                             merge=True, place=ranks.device())
    sides = {"ours": ours, "generate": plain}
    found = {"model": arguments.model, "dtype": str(model.dtype), "device": str(model.device),
             "threads": ranks.threads_per_rank(),
             "settings": {"max_new_tokens": QUICK_NEW_TOKENS if arguments.quick else MAX_NEW_TOKENS, **SETTINGS}}
    for case in arguments.cases:
        found[case] = growth(model, tokenizer, arguments.quick) if case == "growth" else compare(
            model, tokenizer, case, arguments, sides)
        show(case, found[case])
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


# ---------------------------------------------------------------------- the two sides


def ours(model, tokenizer, prompts, case):
    """(token ids, log-probability or None) of every sample [prompts][samples]; ids hold the end token where it came."""
    from sft.sampler import generate

    names = [f"{case.get('turn', 0)}:{number}" for number in range(len(prompts))]  # draws depend on them
    found = generate(model, tokenizer, prompts, names, samples=case["samples"], batch_size=case["rows"], seed=0,
                     max_new_tokens=case.get("max_new_tokens", MAX_NEW_TOKENS), **SETTINGS)
    return [[((*row.token_ids, tokenizer.eos_token_id) if row.ended_with_eos else row.token_ids, row.logp_sum)
             for row in rows] for rows in found]


def plain(model, tokenizer, prompts, case):
    """The same by transformers' `generate`."""
    import torch

    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    results, together = [[] for _ in prompts], max(1, case["plain_rows"] // case["samples"])
    for start in range(0, len(order), together):
        batch = order[start : start + together]
        inputs = tokenizer.pad({"input_ids": [prompts[index] for index in batch]}, return_tensors="pt").to(model.device)
        width = inputs["input_ids"].shape[1]
        with torch.inference_mode():
            rows = model.generate(**inputs, do_sample=True, num_return_sequences=case["samples"], use_cache=True,
                                  max_new_tokens=case.get("max_new_tokens", MAX_NEW_TOKENS),
                                  eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **SETTINGS)
        for number, ids in enumerate(rows[:, width:].tolist()):
            end = ids.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in ids else len(ids)
            results[batch[number // case["samples"]]].append((tuple(ids[:end]), None))
    return results


# ---------------------------------------------------------------------- the work


@cache
def embedded_rows() -> list[dict]:
    """The embedded training questions."""
    from sft.embedded.questions import build

    with tempfile.TemporaryDirectory() as folder:
        return build(0, Path(folder))["train"]


def prompts_of(tokenizer, case: str) -> list[list[int]]:
    """Prompts from the embedded databases: short ones, or long ones whose schema holds several databases' tables."""
    from sft.prompt import prompt_ids, render

    rows = embedded_rows()
    questions: dict[str, list[str]] = {}
    for row in rows:
        questions.setdefault(row["context"], []).append(row["question"])

    def prompt(question: str, contexts: list[str]) -> list[int]:
        return prompt_ids(tokenizer, render({"question": question, "context": "\n".join(contexts)}, "compact"))

    contexts = list(questions)
    if case == "short":  # neighbours ask about different schemas
        found = [prompt(asked[number], [context]) for number in range(8)
                 for context, asked in questions.items() if number < len(asked)]
        return [ids for ids in found if 70 <= len(ids) <= 100]
    found = []
    for number, context in enumerate(contexts[:16]):
        # Tables of further databases, others for every schema, until there are 800 tokens.
        others = contexts[number:] + contexts[:number]
        count = next(count for count in range(1, len(others)) if len(prompt("?", others[:count])) >= 780)
        found += [prompt(question, others[:count]) for question in questions[context][: 10 if case == "schema" else 1]]
    return found


def compare(model, tokenizer, case: str, arguments, sides) -> dict:
    """Both sides in turns on the prompts of a case."""
    work = CASES[case] | ({"max_new_tokens": QUICK_NEW_TOKENS} if arguments.quick else {})
    prompts = prompts_of(tokenizer, case)
    counts = work["quick"] if arguments.quick else (work["questions"],) * 2
    parts = {"ours": prompts[: counts[0]], "generate": prompts[: counts[1]]}
    for side, run in sides.items():  # what happens once is not measured
        run(model, tokenizer, [prompt[-32:] for prompt in prompts[:2]], work | {"max_new_tokens": 4})
    (seconds, cpu, peaks), rows = (dict.fromkeys(sides, 0.0) for _ in range(3)), {}
    for turn in range(arguments.rounds):
        for side in sorted(sides, reverse=turn % 2 == 0):
            started, used = time.perf_counter(), time.process_time()
            rows[side], peak = with_peak_bytes(lambda side=side: sides[side](model, tokenizer, parts[side], work))
            peaks[side] = max(peaks[side], peak)
            seconds[side] += time.perf_counter() - started
            cpu[side] += time.process_time() - used
    found = {"samples": work["samples"], "prompt_tokens": mean(map(len, parts["ours"])), "rounds": arguments.rounds}
    for side in sides:
        tokens = sum(len(ids) for row in rows[side] for ids, _ in row) * arguments.rounds
        found[side] = {"questions": len(parts[side]), "rows": work["rows" if side == "ours" else "plain_rows"],
                       "seconds": seconds[side], "cpu_seconds": cpu[side], "tokens": tokens, "peak_bytes": peaks[side],
                       "tokens_per_s": tokens / seconds[side], "tokens_per_cpu_s": tokens / cpu[side],
                       "questions_per_s": len(parts[side]) * arguments.rounds / seconds[side]}
    found["ratio"] = found["ours"]["tokens_per_s"] / found["generate"]["tokens_per_s"]
    found["ratio_cpu"] = found["ours"]["tokens_per_cpu_s"] / found["generate"]["tokens_per_cpu_s"]
    found["ratio_questions"] = found["ours"]["questions_per_s"] / found["generate"]["questions_per_s"]
    found["outputs"] = check(model, parts["ours"], rows, counts[1], 1 if arguments.quick else 8)
    return found


def check(model, prompts, rows, count: int, scored: int) -> dict:
    """How far our log-probabilities are from a plain forward pass, and how far both sides' samples from each other.

    Lengths are those of `count` prompts' samples, log-probabilities those of some samples of `scored` prompts.
    """
    import torch

    apart = []
    for prompt, completions in list(zip(prompts, rows["ours"], strict=True))[:scored]:
        for ids, logp_sum in completions[:2]:
            again = log_probability(model, prompt, ids)
            apart.append(abs(again - logp_sum) / len(ids))
    found = {"logp_apart_per_token": mean(apart), "dtype_floor": torch.finfo(model.dtype).eps}
    for side in rows:
        lengths = [len(ids) for completions in rows[side][:count] for ids, _ in completions]
        scores = [log_probability(model, prompt, ids) / len(ids)
                  for prompt, completions in list(zip(prompts, rows[side]))[:scored] for ids, _ in completions[:4]]
        found[side] = {"mean_tokens": mean(lengths), "mean_tokens_error": stdev(lengths) / len(lengths) ** 0.5,
                       "mean_logp": mean(scores), "mean_logp_error": stdev(scores) / len(scores) ** 0.5}
    return found


def log_probability(model, prompt: list[int], ids) -> float:
    """Nats of a completion, summed, by a forward pass over prompt and completion."""
    import torch

    with torch.inference_mode():
        line = torch.tensor([[*prompt, *ids]], device=model.device)
        logits = model(input_ids=line, logits_to_keep=len(ids) + 1).logits[0, :-1].float()
    return float(logits.log_softmax(-1).gather(1, line[0, len(prompt) :].unsqueeze(1)).double().sum())


def growth(model, tokenizer, quick: bool) -> dict:
    """Seconds and peak memory of one shard of questions and of ten, each a call, as in stage two.

    The ten are the same questions, drawn anew: other ones would differ in length, and hide or feign growth.
    """
    shard = 4 if quick else 32
    prompts = prompts_of(tokenizer, "short")[:shard]
    case = {"samples": 8, "rows": 32} | ({"max_new_tokens": QUICK_NEW_TOKENS} if quick else {})
    ours(model, tokenizer, prompts[:2], case)
    found = {}
    for shards in (1, 10):
        started, used = time.perf_counter(), time.process_time()

        def sample(count: int = shards) -> int:
            return sum(len(ids) for turn in range(count)
                       for row in ours(model, tokenizer, prompts, case | {"turn": turn}) for ids, _ in row)

        tokens, peak = with_peak_bytes(sample)
        found[str(shard * shards)] = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - used,
                                      "tokens": tokens, "peak_bytes": peak}
    few, many = found.values()
    found["time_ratio"] = many["seconds"] / few["seconds"]
    found["cpu_ratio"] = many["cpu_seconds"] / few["cpu_seconds"]
    found["token_ratio"] = many["tokens"] / few["tokens"]
    return found


def show(case: str, found: dict) -> None:
    """One case as text."""
    if case == "growth":
        sizes = [size for size in found if size.isdigit()]
        print(f"growth    {' and '.join(sizes)} questions: {found['time_ratio']:.2f} times the time "
              f"({found['cpu_ratio']:.2f} of the processor) for {found['token_ratio']:.2f} times the tokens; peak memory "
              + " and ".join(f"{found[size]['peak_bytes'] / 2**20:.0f} MiB" for size in sizes))
        return
    print(f"{case:9} {found['samples']} samples, prompts of {found['prompt_tokens']:.0f} tokens: "
          f"{found['ratio']:.2f} times generate's tokens/s ({found['ratio_questions']:.2f} times its questions/s, "
          f"{found['ratio_cpu']:.2f} times its tokens a second of processor time)", flush=True)
    for side in ("ours", "generate"):
        row, output = found[side], found["outputs"][side]
        print(f"  {side:8} {row['tokens_per_s']:7.0f} tokens/s ({row['questions']} questions in {row['seconds']:.1f} s), "
              f"peak {row['peak_bytes'] / 2**20:.0f} MiB above the model; samples: {output['mean_tokens']:.1f} +- {output['mean_tokens_error']:.1f} tokens, "
              f"{output['mean_logp']:.3f} +- {output['mean_logp_error']:.3f} nats a token")
    print(f"  log-probabilities {found['outputs']['logp_apart_per_token']:.4f} nats a token from a plain pass's")


if __name__ == "__main__":
    main()
