#!/usr/bin/env bash
# Brings up a Slurm cluster of one node on this machine, for `pytest -m slurm` and the benchmarks: the machine's cores (2 at
# least), two gres of type gpu with no hardware behind them, partitions debug and low (preempted by debug), and sacct.
# Needs root and Debian's packages (line `packages` below); neither systemd nor anything in /etc.
#
#     eval "$(benchmarks/slurm/up.sh [FOLDER])"      # FOLDER: ${TMPDIR:-/tmp}/dotlib-slurm; sets SLURM_CONF
#     benchmarks/slurm/down.sh [FOLDER]
#
# FOLDER holds configuration, keys, database, state, logs and pid files. A second call starts what is missing, if anything.
set -euo pipefail
umask 022
packages="slurmctld slurmd slurm-client slurmdbd munge mariadb-server"
PATH=$PATH:/usr/sbin:/sbin

say() { echo "up.sh: $*" >&2; }
die() { say "$*"; exit 1; }
alive() { local pid; pid=$(cat "$run/$1.pid" 2>/dev/null) && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$1" ]; }
await() {  # seconds, log, what is awaited, command
  local end=$((SECONDS + $1)) said
  until said=$("${@:4}" 2>&1); do
    [ "$SECONDS" -lt "$end" ] || die "no $3 after $1 s${said:+ (${said##*$'\n'})}; see $2"
    sleep 0.2
  done
}
start() {  # program, arguments; streams go to a log, or `$(up.sh)` would wait for the daemons' ends
  alive "$1" && return
  "$@" </dev/null >>"$log/$1.out" 2>&1 || die "$1 did not start; see $log/$1.out and $log/$1.log"
  await 15 "$log/$1.log" "$1" alive "$1"
}

[ "$(id -u)" = 0 ] || die "needs root"
for program in munged mariadbd mariadb-install-db mariadb-admin slurmdbd slurmctld slurmd sacctmgr; do
  command -v "$program" >/dev/null || die "no $program: apt-get install $packages"
done
folder=$(realpath -m -- "${1:-${TMPDIR:-/tmp}/dotlib-slurm}") run=$folder/run log=$folder/log
# A socket's path has 107 characters at most, and Slurm's files quote nothing.
[[ ${#folder} -le 60 && $folder =~ ^[A-Za-z0-9_./+-]+$ ]] || die "FOLDER: at most 60 letters, digits and _./+-: $folder"
# -O: in /tmp, another user may have made it.
[[ ! -e $folder || ( -O $folder && ( -f $folder/.dotlib-slurm || -z $(ls -A "$folder") ) ) ]] || die "$folder is something else"
mkdir -p "$run" "$log" "$folder"/{state,spool} && touch "$folder/.dotlib-slurm"
export SLURM_CONF=$folder/slurm.conf MYSQL_UNIX_PORT=$run/mariadb.sock  # slurmdbd has no setting for the socket

if [ ! -f "$SLURM_CONF" ]; then
  port=26814 host=$(hostname -s) cpus=$(nproc) memory=$(awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo)
  taken() { (: <"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
  until port=$((port + 3)) && ! taken "$port" && ! taken $((port + 1)) && ! taken $((port + 2)); do :; done
  (umask 077 && head -c 128 /dev/urandom >"$folder/munge.key")
  # Slurm sets CUDA_VISIBLE_DEVICES where a gpu is a device file; a link to one will do, and mknod may be refused.
  ln -sfn /dev/null "$folder/gpu0" && ln -sfn /dev/zero "$folder/gpu1"
  echo "Name=gpu File=$folder/gpu[0-1]" >"$folder/gres.conf"
  printf '%s\n' "[mariadbd]" "user=root" "datadir=$folder/database" "socket=$MYSQL_UNIX_PORT" "pid-file=$run/mariadbd.pid" \
    "log-error=$log/mariadbd.log" skip-networking innodb_lock_wait_timeout=900 innodb_buffer_pool_size=256M >"$folder/my.cnf"
  (umask 077 && printf '%s\n' "AuthInfo=socket=$run/munge.sock" DbdHost=localhost "DbdPort=$((port + 2))" SlurmUser=root \
    "LogFile=$log/slurmdbd.log" "PidFile=$run/slurmdbd.pid" StorageType=accounting_storage/mysql StorageHost=localhost \
    StorageUser=root StorageLoc=slurm >"$folder/slurmdbd.conf")
  # AccountingStoragePass is munge's socket. cred_expire is how long a requeued job waits before it starts again, 120 s by
  # default. config_overrides: one core passes for two. pgid: without cgroups (systemd's), and what a batch shell that is
  # killed leaves behind ends with it; under linuxproc it runs on.
  cat >"$SLURM_CONF.new" <<END
ClusterName=dotlib
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmctldPort=$port
SlurmdPort=$((port + 1))
AuthInfo=socket=$run/munge.sock,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$run/slurmctld.pid
SlurmdPidFile=$run/slurmd.pid
SlurmctldLogFile=$log/slurmctld.log
SlurmdLogFile=$log/slurmd.log
MailProg=/bin/true
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=30
MinJobAge=300
MaxJobCount=50000
MaxArraySize=20001
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=1,sched_interval=5,bf_interval=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=10
AccountingStorageType=accounting_storage/slurmdbd
AccountingStoragePass=$run/munge.sock
AccountingStoragePort=$((port + 2))
AccountingStorageTRES=gres/gpu
GresTypes=gpu
NodeName=$host NodeAddr=127.0.0.1 CPUs=$((cpus < 2 ? 2 : cpus)) RealMemory=$memory Gres=gpu:2
PartitionName=DEFAULT Nodes=$host MaxTime=INFINITE DefaultTime=60 GraceTime=30
PartitionName=debug Default=YES PriorityTier=10 PreemptMode=OFF
PartitionName=low PriorityTier=1 PreemptMode=REQUEUE
END
  mv "$SLURM_CONF.new" "$SLURM_CONF"
fi

start munged --key-file="$folder/munge.key" --seed-file="$folder/munge.seed" --socket="$run/munge.sock" \
  --pid-file="$run/munged.pid" --log-file="$log/munged.log"
[ -d "$folder/database/mysql" ] || mariadb-install-db --defaults-file="$folder/my.cnf" --auth-root-authentication-method=socket \
  --auth-root-socket-user=root --skip-test-db >>"$log/mariadbd.out" 2>&1 || die "no database; see $log/mariadbd.out"
if ! alive mariadbd; then setsid mariadbd --defaults-file="$folder/my.cnf" </dev/null >>"$log/mariadbd.out" 2>&1 & fi
await 60 "$log/mariadbd.log" database mariadb-admin --no-defaults --socket="$MYSQL_UNIX_PORT" ping
start slurmdbd
await 60 "$log/slurmdbd.log" accounting sacctmgr -n show cluster
for entity in "cluster dotlib" "account dotlib cluster=dotlib" "user root account=dotlib defaultaccount=dotlib"; do
  # shellcheck disable=SC2086
  sacctmgr -iQ add $entity >>"$log/sacctmgr.out" 2>&1 || true  # 1 also where it is there already; the check follows
done
sacctmgr -nP show assoc account=dotlib user=root format=account 2>>"$log/sacctmgr.out" | grep -q dotlib ||
  die "no account; see $log/sacctmgr.out"
start slurmctld
start slurmd
ready() { sinfo -h -p debug -o %T | grep -Eqx 'idle|mixed|allocated'; }
await 60 "$log/slurmctld.log and $log/slurmd.log" "idle node" ready
say "up: $(sinfo -h -p debug -o '%n %c CPUs %G %T'), logs in $log"
echo "export SLURM_CONF=$SLURM_CONF"
