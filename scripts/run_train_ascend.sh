#!/usr/bin/env bash
# bash scripts/run_train_ascend.sh CONFIG [CARDS] [key=value …] [--resume auto|PATH]
#
# Trains on the first CARDS cards of this machine (default: 1), after a check that it is ready.
# training.batch_size is that of one card. The rest goes to palette_ms.train.

set -euo pipefail
. "$(dirname "$0")/ascend.sh"
[ $# -ge 1 ] || usage "which config?"
config=$1 cards=1
shift
if [ $# -ge 1 ] && [[ $1 != *=* && $1 != -* ]]; then
    cards=$1
    shift
fi
check_machine "$cards" --config "$config" "$@"
start "$cards" 1 0 127.0.0.1 palette_ms.train --config "$config" --device "$DEVICE" "$@"
