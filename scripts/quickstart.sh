#!/usr/bin/env bash
# Fresh machine → restored photos to look at, one of yours too if you name it, then two and a half minutes of training.
#
#   bash scripts/quickstart.sh [PHOTO]
set -euo pipefail
own=()
if [ $# -gt 0 ]; then
    if [ $# -gt 1 ] || [ ! -f "$1" ]; then
        echo "error: no such picture: $*; usage: bash scripts/quickstart.sh [PHOTO]" >&2
        exit 2
    fi
    own=(--photo "$(cd -- "$(dirname -- "$1")" && pwd)/$(basename -- "$1")")
fi
. "$(dirname "$0")/environment.sh" quickstart

echo
echo "1. Restoring damaged photos that the model never saw ..."
python scripts/quickstart.py outputs/quickstart.png ${own[@]+"${own[@]}"}

echo
echo "2. Training a new model on seven photos for two and a half minutes, to show how it goes ..."
python scripts/quickstart_data.py data/quickstart
run=runs/first_try_$(date +%Y%m%d_%H%M%S)
python -m palette_ms.train --config configs/quickstart.yaml "training.output=$run" training.max_minutes=2.5 \
    training.log_every=20 training.sample_every=0

cat <<END

Look at outputs/quickstart.png: damaged | a method in use today | palette_ms | original, with PSNR and SSIM.
The model of two minutes is $run/model.safetensors; the one that ships had many hours, on more photos. Both need more.

Next, with your own pictures (. .venv/bin/activate first):
  python -m palette_ms.sample --ckpt photo --task jpeg_restoration --input PHOTO --output outputs
  python -m palette_ms.train --config configs/quickstart.yaml data.path=FOLDER training.output=runs/mine
END
