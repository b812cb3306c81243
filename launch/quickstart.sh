#!/usr/bin/env bash
# Both stages and the evaluation on the embedded model and a slice of the embedded data, on the CPU, in runs/quickstart.
# A step that is complete is not made again, and one that was interrupted goes on. Arguments: a run folder of your own.
set -euo pipefail
started=$SECONDS
. "$(dirname "$0")/environment.sh"
run=${1:-runs/quickstart}
begun=$SECONDS

echo "== stage one: LoRA fine-tuning on 1,600 questions (about 10 minutes on 2 cores)"
accelerate launch --quiet --config_file launch/cpu.yaml sft/run.py --set run="$run" data.train_limit=1600 data.dev_limit=64 \
  train.epochs=1.5 train.evaluations=1

echo "== stage two: sample, execute, pair, DPO under DeepSpeed ZeRO-2 (about 8 minutes)"
accelerate launch --quiet --config_file launch/cpu.yaml preference/dpo.py --set run="$run" sample.questions=200 \
  sample.samples=8

echo "== evaluation on 305 questions over databases that no stage has seen (about 5 minutes)"
accelerate launch --quiet --config_file launch/cpu.yaml preference/compare_models.py --output "$run" --data test --limit 305 \
  --batch-size 64 --models base=embedded sft="$run/sft" dpo="$run/round-1/dpo"
echo "quickstart done in $(( (SECONDS - begun) / 60 )) min $(( (SECONDS - begun) % 60 )) s after $((begun - started)) s of installation"
