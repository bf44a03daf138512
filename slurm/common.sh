# Functions of the batch scripts, which source this file: finds the Python environment, starts one launcher per node, and
# requeues or ends the job by their exit code.
#
#   PROCESSES_PER_NODE   ranks per node; default: one per GPU of the job, or one without GPUs
#   NETWORK_INTERFACE    network interface of the ranks, such as ib0; default: that of the node's address in SLURM
#   MAX_REQUEUES         limit of consecutive requeues without progress; default: 3
# shellcheck shell=bash
set -euo pipefail
asked_to_stop=''
trap 'asked_to_stop=yes' USR1 TERM

home=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[ ! -d "$home/.venv" ] || PATH="$home/.venv/bin:$PATH"
[ ! -d "$home/ulmfit_dist" ] || export PYTHONPATH="$home${PYTHONPATH:+:$PYTHONPATH}" # not so in an installed package
# shellcheck source=launch/functions.sh
source "$home/launch/functions.sh"

# of_job FIELD: print a field of this job from scontrol. SLURM's variables may be those of a job that submitted this one, and
# the number of an array refers to all its tasks.
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

IS_INSTALLED='import sys; from importlib.util import find_spec
sys.exit(not all(map(find_spec, ("ulmfit_dist", "torch", "fastai"))))'

# prepare_job CONFIG [ARG ...]: check environment and config before the launch, and set the paths of run and logs.
prepare_job() {
    local values setup=''
    [ ! -f "$home/launch/setup.sh" ] || setup="run 'bash launch/setup.sh' in $home, or "
    python -c "$IS_INSTALLED" || fail "no Python with ulmfit_dist, torch and fastai: ${setup}activate an environment, then submit"
    choose_device "$@"
    values=$(values_of "runs_dir name data.cache_dir" "$@")
    mapfile -t values <<< "$values"
    runs_dir=${values[0]} name=${values[1]} cache=${values[2]}
    find_log
}

# find_log: set the paths of other nodes' logs and of the requeue counter: in the folder of the job's log, if it is a file.
find_log() {
    log=$(of_job StdOut)
    [ -f "$log" ] && [ -w "$(dirname "$log")" ] || log=$PWD/ulmfit-$job.log
    requeues=$(dirname "$log")/.ulmfit-$SLURM_JOB_ID.requeues
    [[ ${log##*/} != ?*.* ]] || log=${log%.*}
}

# on_nodes COMMAND CONFIG [ARG ...]: run `ulmfit-dist COMMAND` on all ranks of the job, then end or requeue the job.
on_nodes() {
    local code=0 restarts watcher
    rendezvous "$(device_of "$@")"
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
    trap 'kill -USR1 "$srun" 2> /dev/null || true' USR1 TERM # srun forwards it to the ranks
    leave_dead_nodes &
    watcher=$!
    while kill -0 "$srun" 2> /dev/null; do wait "$srun" 2> /dev/null || true; done # a signal ends `wait`, not srun
    wait "$srun" || code=$?
    [ "$code" -ne $((128 + $(kill -l USR1))) ] || code=85 # srun itself got it before it could forward it
    kill "$watcher" 2> /dev/null || true
    conclude "$code"
}

ADDRESS_OF='import psutil, socket, sys
print(*(address.address for address in psutil.net_if_addrs().get(sys.argv[1], []) if address.family == socket.AF_INET))'

# rendezvous DEVICE: set address and port of the ranks, and the number of ranks per node.
rendezvous() {
    local device=$1 head gpus=0
    head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p) # this script runs there
    if [ -n "${NETWORK_INTERFACE:-}" ]; then
        export NCCL_SOCKET_IFNAME=$NETWORK_INTERFACE GLOO_SOCKET_IFNAME=$NETWORK_INTERFACE
        ADDRESS=$(python -c "$ADDRESS_OF" "$NETWORK_INTERFACE")
        [ -n "$ADDRESS" ] || fail "NETWORK_INTERFACE=$NETWORK_INTERFACE: $head has no such interface with an IPv4 address"
    else
        ADDRESS=$(scontrol show node "$head" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')
    fi
    PORT=$((15000 + SLURM_JOB_ID % 15000))
    while (: < "/dev/tcp/$ADDRESS/$PORT") 2> /dev/null; do PORT=$((PORT + 1)); done # the port is in use
    if ! wants_cpu; then
        gpus=$(visible_gpus)
        if [ "$gpus" -eq 0 ]; then
            [ "$device" != cuda ] || fail "--device cuda: no GPU in this job: request GPUs with --gpus-per-node=N"
            say "no GPU in this job (request GPUs with --gpus-per-node=N): using its CPUs"
        fi
    fi
    PROCESSES_PER_NODE=${PROCESSES_PER_NODE:-$((gpus > 0 ? gpus : 1))}
    [ "$gpus" -gt 0 ] || use_cpu "$PROCESSES_PER_NODE"
    export ADDRESS PORT PROCESSES_PER_NODE
}

# leave_dead_nodes: kill srun some seconds after the first node's launcher has exited. Otherwise srun waits for minutes if a
# node is down.
leave_dead_nodes() {
    until [ -s "$LAUNCHER" ] && ! kill -0 "$(cat "$LAUNCHER")" 2> /dev/null; do sleep 1; done
    sleep 10
    say "a node has not exited with the others: no longer waiting for it"
    kill -KILL "$srun"
}

# conclude CODE: end or requeue the job.
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
        2) say "ended with exit code 2: see the error above" ;;
        85) say "ended by SLURM (scancel, scontrol requeue, preemption, time limit); checkpoints are saved" ;;
        *) say "ended with exit code $code; 'scontrol requeue $job' resumes from the last checkpoint" ;;
    esac
    exit "$code"
}

# requeue: requeue the job, unless it has made no progress for MAX_REQUEUES times.
requeue() {
    local count=0 before='' now
    # a self-training has checkpoints in the run directories of its rounds, and both directions in those of each
    now=$({ find "$runs_dir/$name"{,-forward,-backward,-round-*}/checkpoints "$cache" -name '*-*' 2> /dev/null || true; } | sort | cksum)
    [ ! -f "$requeues" ] || { read -r count && read -r before; } < "$requeues"
    [ "$now" = "$before" ] && count=$((count + 1)) || count=0
    if [ "$count" -ge "${MAX_REQUEUES:-3}" ]; then
        rm -f "$requeues"
        say "error: requeued $count time(s) without a step of progress: raise --time, or lower checkpoint.interval_minutes" >&2
        exit 1
    fi
    printf '%s\n' "$count" "$now" > "$requeues"
    if scontrol requeue "$job"; then
        say "stopped and saved; requeued to resume"
    else
        rm -f "$requeues"
        say "stopped and saved, but SLURM did not requeue it: submit the same command again to resume"
    fi
}
