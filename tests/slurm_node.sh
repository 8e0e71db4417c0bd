#!/bin/sh
# A Slurm of one node, this machine: for trying the Slurm executor where there is no cluster.
#
#     apt-get install slurm-wlm munge
#     tests/slurm_node.sh start     # as root; then sbatch, squeue and scancel work in every shell
#     tests/slurm_node.sh stop
#
# Nothing of the system's own Slurm is touched: configuration, state and logs lie in $SLURM_NODE (/tmp/slurm-node).
# There is no accounting (sacct says nothing), as on many a small cluster.
set -eu
NODE=${SLURM_NODE:-/tmp/slurm-node}
CONF=$NODE/slurm.conf

configure() {
    mkdir -p "$NODE/state" "$NODE/spool"
    memory=$(awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo)
    cat > "$CONF" <<END
ClusterName=one
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
CryptoType=crypto/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=512
SchedulerParameters=sched_interval=1,batch_sched_delay=0
ReturnToService=2
KillWait=2
StateSaveLocation=$NODE/state
SlurmdSpoolDir=$NODE/spool
SlurmctldPidFile=$NODE/slurmctld.pid
SlurmdPidFile=$NODE/slurmd.pid
SlurmctldLogFile=$NODE/slurmctld.log
SlurmdLogFile=$NODE/slurmd.log
NodeName=$(hostname -s) NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$memory State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=60 DefaultTime=10 State=UP
END
}

start() {
    configure
    if ! munge -n > /dev/null 2>&1; then
        [ -f /etc/munge/munge.key ] || mungekey --create
        mkdir -p /run/munge && chown munge: /run/munge
        setpriv --reuid=munge --regid=munge --clear-groups munged
        touch "$NODE/munged-is-ours"
    fi
    slurmctld -c -f "$CONF"
    slurmd -f "$CONF"
    export SLURM_CONF="$CONF"
    for _ in $(seq 100); do
        case $(sinfo --noheader --format=%t 2> /dev/null || true) in
            idle) echo "export SLURM_CONF=$CONF"; return ;;
        esac
        sleep 0.1
    done
    echo "the node did not come up; see $NODE/slurmctld.log and $NODE/slurmd.log" >&2
    exit 1
}

stop() {
    for daemon in slurmd slurmctld; do
        [ ! -f "$NODE/$daemon.pid" ] || kill "$(cat "$NODE/$daemon.pid")" 2> /dev/null || true
    done
    [ ! -f "$NODE/munged-is-ours" ] || kill "$(cat /run/munge/munged.pid)" 2> /dev/null || true
    rm -f "$NODE/munged-is-ours"
}

case ${1:-} in
    start) start ;;
    stop) stop ;;
    *) echo "usage: $0 start | stop" >&2; exit 2 ;;
esac
