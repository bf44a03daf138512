# What the batch scripts share; they source it. It finds the Python environment, starts one launcher per node, and decides
# what follows when they end.
#
#   PROCESSES_PER_NODE   ranks of a node; default: one for each of its GPUs in this job, or a single one where it has none
#   NETWORK_INTERFACE    what the ranks talk over, such as ib0; default: what leads to the address that SLURM has for the node
#   MAX_REQUEUES         times in a row that the job goes back into the queue without progress; default: 3
# shellcheck shell=bash
set -euo pipefail

home=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[ ! -d "$home/.venv" ] || PATH="$home/.venv/bin:$PATH"
export PYTHONPATH="$home${PYTHONPATH:+:$PYTHONPATH}"
# shellcheck source=launch/functions.sh
source "$home/launch/functions.sh"

# The job's number; of an array's task, since that of the array would mean all of them.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}

say() {
    echo "job $job: $*"
}

fail() {
    say "error: $*" >&2
    exit 2
}

# of_job FIELD: what SLURM knows of this job.
of_job() {
    scontrol show job "$job" | sed -n "s/.* $1=//p"
}

# prepare_job CONFIG [WORD ...]: check what can be checked before anything is started, and learn where run and logs lie.
prepare_job() {
    local values
    python -c 'import sys; from importlib.util import find_spec; sys.exit(not (find_spec("torch") and find_spec("fastai")))' ||
        fail "no Python with torch and fastai: run 'bash launch/setup.sh' in $home, or activate an environment, then submit"
    values=$(values_of "runs_dir name data.cache" "$@")
    mapfile -t values <<< "$values"
    runs_dir=${values[0]} name=${values[1]} cache=${values[2]}
    log=$(of_job StdOut)
    log=${log%.*}
}

# on_nodes COMMAND CONFIG [WORD ...]: `ulmfit-dist COMMAND` on all ranks of the job, then what follows from its exit code.
on_nodes() {
    local code=0
    rendezvous
    say "$name, start $((${SLURM_RESTART_COUNT:-0} + 1)): $* on $SLURM_JOB_NUM_NODES node(s) with $PROCESSES_PER_NODE rank(s) each"
    say "ranks meet at $ADDRESS:$PORT; nodes other than the first write to ${log##*/}-node*.log"
    export LOG=$log
    rm -f "$log.pid"
    trap : TERM                    # the ranks have it, too, and end
    trap 'kill -USR1 "$srun"' USR1 # of scancel --batch: srun passes it on to the ranks
    [ -z "${SLURM_CPUS_PER_TASK:-}" ] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
    srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --wait=60 bash "$home/slurm/node.sh" "$@" &
    srun=$!
    leave_dead_nodes &
    while kill -0 "$srun" 2> /dev/null; do wait "$srun" 2> /dev/null || true; done # a signal ends the waiting, not srun
    wait "$srun" || code=$?
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
    if [ "${ACCELERATE_USE_CPU:-}" != true ]; then
        gpus=$(visible_gpus)
        [ "$gpus" -gt 0 ] || say "no GPU in this job (--gpus-per-node=N asks for them): its CPUs are used"
    fi
    PROCESSES_PER_NODE=${PROCESSES_PER_NODE:-$((gpus > 0 ? gpus : 1))}
    [ "$gpus" -gt 0 ] || use_cpu "$PROCESSES_PER_NODE"
    export ADDRESS PORT PROCESSES_PER_NODE
}

# leave_dead_nodes: SLURM keeps srun waiting for minutes where a node is gone. Once the first node has ended, nobody else has
# anything to do, so a few seconds later srun is given up.
leave_dead_nodes() {
    local launcher
    until [ -s "$log.pid" ]; do sleep 1; done
    launcher=$(cat "$log.pid")
    while kill -0 "$launcher" 2> /dev/null; do sleep 1; done
    sleep 10
    ! kill -0 "$srun" 2> /dev/null || say "a node does not end with the others, and is left behind"
    kill -KILL "$srun" 2> /dev/null
}

# conclude CODE: the end of the job, or its way back into the queue.
conclude() {
    local code=$1 state
    state=$(of_job JobState) || state=unknown
    rm -f "$log.pid"
    if [ "$code" -eq 0 ]; then
        rm -f "$log.requeues"
        say "done"
    elif [ "$code" -ne 85 ]; then
        say "ended with exit code $code; what is saved stays, and 'scontrol requeue $job' goes on from it"
    elif [[ $state != RUNNING* ]]; then
        say "SLURM has ended it (scancel, scontrol requeue, preemption, time limit); what was done is saved"
    else
        requeue
    fi
    exit "$code"
}

# requeue: back into the queue, unless that has led nowhere for some times.
requeue() {
    local count=0 before='' now
    now=$({ find "$runs_dir/$name/checkpoints" "$cache" -name '*-*' 2> /dev/null || true; } | sort | cksum)
    [ ! -f "$log.requeues" ] || { read -r count && read -r before; } < "$log.requeues"
    [ "$now" = "$before" ] && count=$((count + 1)) || count=0
    if [ "$count" -ge "${MAX_REQUEUES:-3}" ]; then
        rm -f "$log.requeues"
        say "error: back in the queue $count times without a step of progress: give it more --time, or checkpoint more often" >&2
        exit 1
    fi
    printf '%s\n' "$count" "$now" > "$log.requeues"
    if scontrol requeue "$job"; then
        say "stopped and saved; back in the queue to go on"
    else
        say "stopped and saved, but SLURM does not requeue it: submit the same command again to go on"
    fi
}
