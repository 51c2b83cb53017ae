#!/usr/bin/env bash
# Fresh machine → a restored picture to look at, then two and a half minutes of training.
set -euo pipefail
. "$(dirname "$0")/environment.sh" quickstart

echo
echo "1. Restoring patches of a photo that the model never saw ..."
python scripts/quickstart_data.py data/quickstart
python scripts/quickstart.py data/quickstart/held_out/coffee.png outputs/quickstart.png --train data/quickstart/train

echo
echo "2. Training a new model on seven photos for two and a half minutes, to show how it goes ..."
run=runs/first_try_$(date +%Y%m%d_%H%M%S)
python -m palette_ms.train --config configs/quickstart.yaml "training.output=$run" training.max_minutes=2.5 \
    training.log_every=20 training.sample_every=0

cat <<END

Look at outputs/quickstart.png: damaged | first guess | three samples | their mean | a classical method | original.
The model of two minutes is $run/model.safetensors; the one that ships had under three hours, on more photos. Both need more.

Next, with your own pictures (. .venv/bin/activate first):
  python -m palette_ms.sample --ckpt quickstart --task colorization --sampler ddpm --steps 4 --input PHOTO --output outputs
  python -m palette_ms.train --config configs/quickstart.yaml data.path=FOLDER training.output=runs/mine
END
