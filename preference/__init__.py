"""Stage two: candidates, preference pairs, DPO, and the evaluation of all models."""
