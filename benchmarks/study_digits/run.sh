#!/usr/bin/env bash
# The whole study, with the product's own commands: bash benchmarks/study_digits/run.sh [FOLDER]
# It can be killed at any moment and started again with the same words; what is finished is not repeated.
# About 50 minutes of one core. What comes out is copied next to this script.
set -euo pipefail
out=${1:-runs/study_digits}
here=$(cd "$(dirname "$0")" && pwd)
bossnet=${BOSSNET:-bossnet}

space=(--space hytra --space-option 'block_layers=[4,4]' --space-option base_width=8 --space-option se=false
  --space-option act_layer=relu --space-option default_resolution=32)
# The demo's settings as they were when the first two protocols were written; the third takes them as they are.
earlier=(--global-batch 64 --micro-batch 64)
search=(--preset demo "${space[@]}" --data digits:hard --coverage full --seed 0)

run() { # COMMAND FOLDER OPTIONS...: begin, or go on with, what FOLDER holds
  local command=$1 folder=$2
  shift 2
  if [ -e "$folder/config.json" ]; then
    "$bossnet" -q "$command" --resume "$folder" --device cpu
  else
    "$bossnet" -q "$command" "$@" --out "$folder" --device cpu
  fi
}

# 1. The truth: 32 architectures, each trained from scratch twice on 224 labels.
run truth "$out/truth" "${space[@]}" --data digits:hard --train-part search-val --sample 32 --seed 0 --seeds 2 \
  --recipe bossnet-t --smoke --epochs 30 --global-batch 32 --image-size 32 --weights ema --workers 0

# 2. BossNAS: 674 images without labels to train on, those 224 without labels to rate on.
run search "$out/bossnas" "${search[@]}" "${earlier[@]}" --base-lr 4.8 --target-momentum 0.99 \
  --resolution 32 --epochs 20 --rating-every 5

# 2b. The same at a rate at which the supernet learns: LARS 4.8 itself, not a 64th of it (README, second protocol).
run search "$out/bossnas_rate" "${search[@]}" "${earlier[@]}" --base-lr 307.2 --target-momentum 0.99 \
  --resolution 32 --epochs 20 --rating-every 5

# 2c. The same with the demo's settings of today: 4.8 at 32 images, a target that remembers 10 steps (third protocol).
run search "$out/bossnas_demo" "${search[@]}" --resolution 32 --epochs 20 --rating-every 5

# 3. DNA: a ResNet-50 of width 16 teaches; it has seen the labels of all 898 images that are not for testing.
if [ ! -e "$out/teacher/summary.json" ]; then
  if [ -e "$out/teacher/config.json" ]; then
    "$bossnet" -q train --resume "$out/teacher" --device cpu
  else
    "$bossnet" -q train 4ccc-8cccc-16cccccc-32ccc --option base_width=16 --data digits:hard --recipe bossnet-t --smoke \
      --epochs 10 --image-size 32 --workers 0 --device cpu --out "$out/teacher"
  fi
fi
run search "$out/dna" "${search[@]}" "${earlier[@]}" --method dna --teacher "$out/teacher" --resolution 32 --epochs 20

# 4. UnNAS: at 64 pixels, for its three extra convolutions leave an eighth of the side.
search_unnas=(--preset demo "${space[@]}" --data digits:hard --seed 0)
run search "$out/unnas" "${search_unnas[@]}" "${earlier[@]}" --method unnas --resolution 64 --epochs 60

# 5. How well each agrees with the truth.
cp "$out/truth/truth.json" "$here/truth.json"
for method in bossnas bossnas_rate bossnas_demo dna unnas; do
  cp "$out/$method/ratings.json" "$here/ratings_$method.json"
  "$bossnet" -q rank --ratings "$out/$method/ratings.json" --truth "$here/truth.json" \
    --plot "$here/ranking_$method.png" --json > "$here/ranking_$method.json"
done
