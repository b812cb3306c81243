"""The reference's log-probabilities: computed once a pair, kept in the run's folder by what they are of."""

from __future__ import annotations

import json
from pathlib import Path

from sft import ranks
from sft.artefacts import content_hash


class ReferenceLogps:
    """Log-probabilities (nats, chosen and rejected side) that the reference gives the pairs, by hash of their content.

    `reference` names what they depend on beside the token ids: checkpoint, precision, ld_alpha, weights of tokens. The file
    gets a line for each pair as it is computed, so an interrupted run goes on; lines of other references or pairs are passed
    over.
    """

    def __init__(self, file: Path, reference: list):
        self.file, self.reference = file, reference
        self.found: dict[str, tuple[float, float]] = {}
        self.whole = False  # after `complete`
        if file.exists():
            for line in file.read_text(encoding="utf-8").splitlines():
                try:
                    key, chosen, rejected = json.loads(line)
                except ValueError:  # the last line of a run that was cut short
                    continue
                self.found[key] = (chosen, rejected)

    def key(self, row: dict) -> str:
        """What identifies a pair under this reference: {prompt_ids, chosen_ids, rejected_ids}."""
        return content_hash([self.reference, *(list(row[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids"))])

    def missing(self, rows: list[dict]) -> list[dict]:
        """Those rows, once each, that have no log-probabilities yet."""
        by_key = {self.key(row): row for row in rows}
        return [row for key, row in by_key.items() if key not in self.found]

    def complete(self, rows: list[dict], batch_size: int, compute) -> int:
        """Compute what is missing, all ranks together, `batch_size` pairs at a time on each; gives the number of pairs.

        `rows` are all pairs of all ranks, in the same order on each. `compute(rows)` gives (chosen, rejected) of each row. Every
        rank calls it equally often, with the last pair again where there are not enough: under ZeRO-3 a forward pass needs all
        ranks. What is known is what the first rank's file holds: another's may be older, or on a disk of its own.
        """
        self.found = ranks.gather(self.found)[0]
        missing = self.missing(rows)
        together = batch_size * ranks.world_size()
        for start in range(0, len(missing), together):
            chunk = missing[start : start + together]
            mine = chunk[ranks.rank() * batch_size :][:batch_size] or chunk[-1:]
            computed = [[self.key(row), *values] for row, values in zip(mine, compute(mine), strict=True)]
            lines = {key: (chosen, rejected) for part in ranks.gather(computed) for key, chosen, rejected in part}
            self.found |= lines
            if ranks.is_main():
                with open(self.file, "a", encoding="utf-8") as file:
                    file.writelines(json.dumps([key, *values]) + "\n" for key, values in lines.items())
        self.whole = True
        return len(missing)
