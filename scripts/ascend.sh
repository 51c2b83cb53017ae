# Sourced by the run_*_ascend.sh scripts: Python, a check of the machine, and msrun.
#
# DEVICE (Ascend), MASTER_PORT (8118) and LOGS (a new folder in logs/) can be set in the environment, and FORCE=1, to go
# on where the check says that something is missing.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
DEVICE=${DEVICE:-Ascend}
LOGS=${LOGS:-logs/$(date +%Y%m%d_%H%M%S)}
if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -x "$ROOT/.venv/bin/python" ]; then
    . "$ROOT/.venv/bin/activate"
fi

usage() {
    echo "error: $1" >&2
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

check_machine() {  # CARDS, and what else palette_ms.check_ascend takes
    case $1 in
        ''|*[!0-9]*|0) usage "the number of cards must be a whole number above 0, not '$1'" ;;
    esac
    if [ "$DEVICE" = Ascend ]; then
        python -m palette_ms.check_ascend ${FORCE:+--force} "$@" || exit 2
    fi
    command -v msrun >/dev/null || { echo "error: msrun was not found: it comes with MindSpore" >&2; exit 2; }
}

# CARDS of this host, HOSTS, INDEX of this host, address of the first host, then a module of ours and its arguments
start() {
    local cards=$1 hosts=$2 index=$3 master=$4 options=()
    shift 4
    mkdir -p "$LOGS"
    unset RANK_TABLE_FILE  # ranks would meet by it rather than by msrun
    if [ "$hosts" -gt 1 ]; then  # one may be ready long before another
        options+=(--cluster_time_out=3600)
        export HCCL_CONNECT_TIMEOUT=${HCCL_CONNECT_TIMEOUT:-3600}
    fi
    if [ "$DEVICE" = Ascend ]; then
        options+=(--bind_core=True)
    fi
    echo "$((cards * hosts)) ranks, $cards of them here; each one's output goes to $LOGS/worker_<rank>.log" >&2
    exec python -m palette_ms.launch "$LOGS" msrun --worker_num=$((cards * hosts)) --local_worker_num="$cards" \
        --master_addr="$master" --master_port="${MASTER_PORT:-8118}" --node_rank="$index" --log_dir="$LOGS" --join=True \
        --tail_worker_log=$((index * cards)) ${options[@]+"${options[@]}"} python -m "$@"
}
