# What the batch scripts share; they source it. It finds the Python environment, starts one launcher per node, and decides
# what follows when they end.
#
#   PROCESSES_PER_NODE   ranks of a node; default: one for each of its GPUs in this job, or a single one where it has none
#   NETWORK_INTERFACE    what the ranks talk over, such as ib0; default: what leads to the address that SLURM has for the node
#   MAX_REQUEUES         times in a row that the job goes back into the queue without progress; default: 3
# shellcheck shell=bash
set -euo pipefail
asked_to_stop=''
trap 'asked_to_stop=yes' USR1 TERM

home=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[ ! -d "$home/.venv" ] || PATH="$home/.venv/bin:$PATH"
export PYTHONPATH="$home${PYTHONPATH:+:$PYTHONPATH}"
# shellcheck source=launch/functions.sh
source "$home/launch/functions.sh"

# of_job FIELD: what SLURM knows of this job. The environment may know of another one, from which this one was submitted; and
# the number of an array means all its tasks.
of_job() {
    scontrol show job "$SLURM_JOB_ID" | awk -v RS= -v id="JobId=$SLURM_JOB_ID" '$1 == id' | sed -n "s/.* $1=//p"
}

array=$(of_job ArrayJobId) task=$(of_job ArrayTaskId)
job=${array:+${array%% *}_${task%% *}}
job=${job:-$SLURM_JOB_ID}

say() {
    echo "job $job: $*"
}

fail() {
    say "error: $*" >&2
    exit 2
}

# prepare_job CONFIG [WORD ...]: check what can be checked before anything is started, and learn where run and logs lie.
prepare_job() {
    local values
    python -c 'import sys; from importlib.util import find_spec; sys.exit(not (find_spec("torch") and find_spec("fastai")))' ||
        fail "no Python with torch and fastai: run 'bash launch/setup.sh' in $home, or activate an environment, then submit"
    values=$(values_of "runs_dir name data.cache_dir" "$@")
    mapfile -t values <<< "$values"
    runs_dir=${values[0]} name=${values[1]} cache=${values[2]}
    find_log
}

# find_log: where other nodes write, and where requeues are counted: beside the job's own log, if that is a file.
find_log() {
    log=$(of_job StdOut)
    [ -f "$log" ] && [ -w "$(dirname "$log")" ] || log=$PWD/ulmfit-$job.log
    requeues=$(dirname "$log")/.ulmfit-$SLURM_JOB_ID.requeues
    [[ ${log##*/} != ?*.* ]] || log=${log%.*}
}

# on_nodes COMMAND CONFIG [WORD ...]: `ulmfit-dist COMMAND` on all ranks of the job, then what follows from its exit code.
on_nodes() {
    local code=0 restarts watcher
    rendezvous
    restarts=$(of_job Restarts)
    export SLURM_RESTART_COUNT=${restarts%% *}
    say "$name, start $((SLURM_RESTART_COUNT + 1)): $* on $SLURM_JOB_NUM_NODES node(s) with $PROCESSES_PER_NODE rank(s) each"
    say "ranks meet at $ADDRESS:$PORT; nodes other than the first write to ${log##*/}-node*.log"
    LAUNCHER=$(mktemp)
    export LOG=$log LAUNCHER
    [ -z "$asked_to_stop" ] || conclude 85
    [ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
    srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --wait=60 bash "$home/slurm/node.sh" "$@" &
    srun=$!
    trap 'kill -USR1 "$srun" 2> /dev/null || true' USR1 TERM # srun passes it on to the ranks
    leave_dead_nodes &
    watcher=$!
    while kill -0 "$srun" 2> /dev/null; do wait "$srun" 2> /dev/null || true; done # a signal ends the waiting, not srun
    wait "$srun" || code=$?
    [ "$code" -ne $((128 + $(kill -l USR1))) ] || code=85 # srun itself, before it could pass it on
    kill "$watcher" 2> /dev/null || true
    conclude "$code"
}

ADDRESS_OF='import psutil, socket, sys
print(*(address.address for address in psutil.net_if_addrs().get(sys.argv[1], []) if address.family == socket.AF_INET))'

# rendezvous: where the ranks meet, and how many there are on a node.
rendezvous() {
    local head gpus=0
    head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p) # this script runs there
    if [ -n "${NETWORK_INTERFACE:-}" ]; then
        export NCCL_SOCKET_IFNAME=$NETWORK_INTERFACE GLOO_SOCKET_IFNAME=$NETWORK_INTERFACE
        ADDRESS=$(python -c "$ADDRESS_OF" "$NETWORK_INTERFACE")
        [ -n "$ADDRESS" ] || fail "NETWORK_INTERFACE=$NETWORK_INTERFACE: $head has no such interface with an IPv4 address"
    else
        ADDRESS=$(scontrol show node "$head" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
    fi
    PORT=$((15000 + SLURM_JOB_ID % 15000))
    while (: < "/dev/tcp/$ADDRESS/$PORT") 2> /dev/null; do PORT=$((PORT + 1)); done # somebody listens there
    if ! wants_cpu; then
        gpus=$(visible_gpus)
        [ "$gpus" -gt 0 ] || say "no GPU in this job (--gpus-per-node=N asks for them): its CPUs are used"
    fi
    PROCESSES_PER_NODE=${PROCESSES_PER_NODE:-$((gpus > 0 ? gpus : 1))}
    [ "$gpus" -gt 0 ] || use_cpu "$PROCESSES_PER_NODE"
    export ADDRESS PORT PROCESSES_PER_NODE
}

# leave_dead_nodes: SLURM keeps srun waiting for minutes where a node is gone. Once the first node's launcher has ended,
# nobody else has anything to do, so a few seconds later srun is given up.
leave_dead_nodes() {
    until [ -s "$LAUNCHER" ] && ! kill -0 "$(cat "$LAUNCHER")" 2> /dev/null; do sleep 1; done
    sleep 10
    say "a node does not end with the others, and is left behind"
    kill -KILL "$srun"
}

# conclude CODE: the end of the job, or its way back into the queue.
conclude() {
    local code=$1 state
    rm -f "$LAUNCHER"
    state=$(of_job JobState) || state=RUNNING
    if [ "$code" -eq 85 ] && [[ $state == RUNNING* ]]; then
        requeue
        exit "$code"
    fi
    rm -f "$requeues"
    case $code in
        0) say "done" ;;
        2) say "ended with exit code 2, for what is said above" ;;
        85) say "SLURM has ended it (scancel, scontrol requeue, preemption, time limit); what was done is saved" ;;
        *) say "ended with exit code $code; what is saved stays, and 'scontrol requeue $job' goes on from it" ;;
    esac
    exit "$code"
}

# requeue: back into the queue, unless that has led nowhere for some times.
requeue() {
    local count=0 before='' now
    now=$({ find "$runs_dir/$name/checkpoints" "$cache" -name '*-*' 2> /dev/null || true; } | sort | cksum)
    [ ! -f "$requeues" ] || { read -r count && read -r before; } < "$requeues"
    [ "$now" = "$before" ] && count=$((count + 1)) || count=0
    if [ "$count" -ge "${MAX_REQUEUES:-3}" ]; then
        rm -f "$requeues"
        say "error: back in the queue $count time(s) without a step of progress: give it more --time, or checkpoint more often" >&2
        exit 1
    fi
    printf '%s\n' "$count" "$now" > "$requeues"
    if scontrol requeue "$job"; then
        say "stopped and saved; back in the queue to go on"
    else
        rm -f "$requeues"
        say "stopped and saved, but SLURM does not requeue it: submit the same command again to go on"
    fi
}
